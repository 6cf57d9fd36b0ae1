"""Routes and matrices of a plain torch module, for those who want the optimizer without our model.

Our own model declares its matrices; here they are found by the kinds of the
modules that own them, never by parameters' names. The rule is Moonlight's (arXiv
2502.16982, section 2.2): matrices inside the network by Muon, and by AdamW
whatever is looked up (embeddings), the head that maps back to their rows, and
vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from openk2.config.overrides import nearest_name
from openk2.protocols import ParameterSpec


def module_specs(
    module: nn.Module, adamw: Sequence[str] = (), matrices: Mapping[str, tuple[int, int, int]] | None = None
) -> list[ParameterSpec]:
    """Every parameter of `module` that is trained, with its route.

    Muon takes weights of two or more dimensions: a convolution's [out, in, ...] as one matrix [out, rest], the joint
    projection of torch's MultiheadAttention as three, and what `matrices` names as the (count, rows, columns) given
    there. AdamW takes embeddings, the output head (see `_heads`), vectors and parameters of one row or column, what a
    norm owns, and what `adamw` names: whole parameters or modules ("head", "layers.0.gate"). A parameter of two names
    (tied weights) answers to both; the prefix that torch.compile puts before names is left out.

    ValueError for a name that fits nothing, for several layers that could be the head, and for weights of three or more
    dimensions outside a convolution, which may be stacks of matrices or one, unless `matrices` or `adamw` says.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"from_module: saw {type(module).__name__}, expected a torch module; give it the model itself")
    if isinstance(adamw, str):
        raise ValueError(f"adamw: saw the text {adamw!r}, expected a list of names; write [{adamw!r}]")
    aliases = [(_plain(name), p) for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    asked = {id(p) for pattern in adamw for p in _named(aliases, pattern, "adamw")}
    views = {id(p): view for name, view in (matrices or {}).items() for p in _named(aliases, name, "matrices")}
    looked_up = {id(table.weight) for table in _tables(module)}
    heads = _heads(module, aliases, asked, looked_up)
    norms = {id(p) for m in module.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    joint = {id(m.in_proj_weight) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    windows = {id(m.weight) for m in module.modules() if isinstance(m, _ConvNd)}
    specs: list[ParameterSpec] = []
    seen: set[int] = set()
    for name, parameter in aliases:
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"from_module: {name}: saw a parameter without a shape; run one forward pass first")
        key, shape = id(parameter), tuple(parameter.shape)
        if key in seen:
            continue
        seen.add(key)
        if key in looked_up or key in heads:
            specs.append(ParameterSpec(name, parameter, "adamw", "embedding" if key in looked_up else "head"))
        elif len(shape) < 2 or min(shape[0], prod(shape[1:])) < 2 or key in norms:
            specs.append(ParameterSpec(name, parameter, "adamw", "vector"))
        elif key in asked:
            specs.append(ParameterSpec(name, parameter, "adamw", "other"))
        elif key in views:
            specs.append(ParameterSpec(name, parameter, "muon", "matrix", views[key]))
        elif len(shape) > 2 and key not in windows:
            raise ValueError(
                f"from_module: {name}: saw shape {shape} outside a convolution, expected to be told which matrices "
                f"that is: matrices={{{name!r}: (count, rows, columns)}}, or {name!r} in adamw"
            )
        else:
            count = 3 if key in joint else 1
            specs.append(ParameterSpec(name, parameter, "muon", "matrix", (count, shape[0] // count, prod(shape[1:]))))
    return specs


def _tables(module: nn.Module) -> list[nn.Embedding | nn.EmbeddingBag]:
    return [m for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _named(aliases: Sequence[tuple[str, nn.Parameter]], pattern: str, option: str) -> list[nn.Parameter]:
    found = [p for name, p in aliases if name == pattern or name.startswith(f"{pattern}.")]
    if not found:
        near = nearest_name(str(pattern), [name for name, _ in aliases])
        raise ValueError(f"{option}: saw {pattern!r}, expected the name of a trained parameter or of its module{near}")
    return found


def _heads(
    module: nn.Module, aliases: Sequence[tuple[str, nn.Parameter]], asked: set[int], looked_up: set[int]
) -> set[int]:
    """The output heads, as ids: the linear layer with as many outputs as some embedding has rows.

    None where a linear layer holds an embedding's own weight (a tied head). Where several layers fit (a vocabulary as
    large as a feed-forward, a table of positions), those of them that were asked for, and none where the embedding was.
    """
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if any(id(m.weight) in looked_up for m in linear):
        return set()
    sizes = {table.num_embeddings for table in _tables(module)}
    fitting = {id(m.weight) for m in linear if m.out_features in sizes}
    if len(fitting) < 2:
        return fitting
    if not asked & (fitting | looked_up):
        names = [name for name, p in aliases if id(p) in fitting]
        raise ValueError(
            f"from_module: saw {len(names)} linear layers with as many outputs as an embedding has rows: "
            f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}; expected one, the output head; name it in "
            "adamw=[...], or the embedding where there is no head"
        )
    return fitting & asked
