"""Routes and matrices of a plain torch module, for those who want the optimizer without our model.

Our own model declares its matrices; here they are found by the kinds of the
modules that own them, never by parameters' names. The rule is Moonlight's (arXiv
2502.16982, section 2.2): matrices inside the network by Muon, and by AdamW
whatever is looked up (embeddings), the head that maps back to their rows, and
vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from openk2.protocols import ParameterSpec


def module_specs(module: nn.Module, adamw: Sequence[str] = ()) -> list[ParameterSpec]:
    """Every parameter of `module` that is trained, with its route.

    Muon takes weights of two or more dimensions: a convolution's [out, in, ...] as one matrix [out, rest], the joint
    projection of torch's MultiheadAttention as three. AdamW takes embeddings, parameters that share memory with them,
    linear layers with as many outputs as the largest embedding has rows (output heads), vectors and parameters of one
    row or column, what a norm owns, and what `adamw` names: whole parameters or modules ("head", "layers.0.gate").
    ValueError for a name that fits nothing, and where several layers could be the output head (a vocabulary as large
    as the model is wide) and `adamw` names none of them.
    """
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    vocabulary = max((table.num_embeddings for table in tables), default=None)  # others look up positions or types
    looked_up = {id(table.weight) for table in tables}
    norms = {id(p) for m in module.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    joint = {id(m.in_proj_weight) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for pattern in adamw:
        if not any(name == pattern or name.startswith(pattern + ".") for name in named):
            raise ValueError(f"adamw: saw {pattern!r}, expected the name of a trained parameter or of its module")
    asked = {name for name in named for pattern in adamw if name == pattern or name.startswith(pattern + ".")}
    fitting = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == vocabulary}
    heads = [name for name, p in named.items() if id(p) in fitting and id(p) not in looked_up]
    if len(heads) > 1:
        if not asked.intersection(heads):
            shown = ", ".join(heads[:3]) + ", ..." * (len(heads) > 3)
            raise ValueError(
                f"from_module: saw {len(heads)} linear layers with as many outputs as the embedding has rows "
                f"({vocabulary}): {shown}; expected one, the output head; name it in adamw=[...]"
            )
        heads = [name for name in heads if name in asked]
    specs = []
    for name, parameter in named.items():
        if id(parameter) in looked_up or name in heads:
            role = "embedding" if id(parameter) in looked_up else "head"
            specs.append(ParameterSpec(name, parameter, "adamw", role))
        elif min(parameter.shape[0], prod(parameter.shape[1:])) < 2 or parameter.ndim < 2 or id(parameter) in norms:
            specs.append(ParameterSpec(name, parameter, "adamw", "vector"))
        elif name in asked:
            specs.append(ParameterSpec(name, parameter, "adamw", "other"))
        else:
            count = 3 if id(parameter) in joint else 1
            matrices = (count, parameter.shape[0] // count, prod(parameter.shape[1:]))
            specs.append(ParameterSpec(name, parameter, "muon", "matrix", matrices))
    return specs
