"""DeepSpeed's ZeRO-1 as an engine, run by MuonClip's own step. The only module that names DeepSpeed.

What DeepSpeed does: it keeps the parameters in one flat buffer, sums the
gradients over the processes, gives each process's piece of both to its client
optimizer, and then gathers the pieces into whole parameters everywhere. What
it does not do, because MuonClip does: clip, skip a step, keep a checkpoint.
Invariants: weights and gradients are fp32; QK-Clip has happened before the
pieces are gathered. DeepSpeed is imported when a model is laid out, not before.
Left out: stages 2 and 3, and what DeepSpeed could do on a GPU.
Source: ZeRO (arXiv 1910.02054), section 5.1.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from openk2.parallel.placement import Flattened
from openk2.parallel.world import World
from openk2.protocols import Result

# Older ones pass over settings that they do not know, and would average the gradients without a word.
NEEDED = "0.19.8"

SETTINGS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # it asks for one and uses it to count samples
    "managed_gradient_accumulation": False,  # gradients add up until our step is called, however many passes that takes
    "gradient_allreduce_op": "sum",  # losses are divided by the whole step's totals already
    "communication_data_type": "fp32",
    "gradient_clipping": 0.0,  # MuonClip clips AdamW's gradients, and no others
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 1,
        "contiguous_gradients": False,  # no hooks in the backward pass: `param.grad` is autograd's until the step
        "compute_grad_norm": False,  # it would skip a spoilt step behind MuonClip's back
    },
}


def refuse_without_deepspeed() -> None:
    """ValueError where DeepSpeed is not installed, or too old."""
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        found = ""
    if _numbers(found) < _numbers(NEEDED):
        raise ValueError(
            f"parallel.engine: saw deepspeed {found or 'not installed'}, expected version {NEEDED} or newer; run "
            f"DS_BUILD_OPS=0 pip install --no-build-isolation 'deepspeed>={NEEDED}', or choose fsdp"
        )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


class Client(torch.optim.Optimizer):
    """What DeepSpeed takes for the optimizer: it runs `work`.

    All parameters are one group: DeepSpeed calls `step` for each group by itself with the others out of sight, but
    MuonClip's norm, its skipped steps and QK-Clip are about all of them.
    """

    work: Callable[[], None]

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__([{"params": list(parameters)}], {"lr": 0.0})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.work()

    @property
    def piece(self) -> Tensor:
        """This process's piece of the flat buffer, which DeepSpeed puts in the parameters' place."""
        piece: Tensor = self.param_groups[0]["params"][0]
        return piece


class ZeroOne(Flattened):
    """A `Placement` whose gradients and parameters are moved by a DeepSpeed engine."""

    def __init__(self, world: World, parameters: list[nn.Parameter], engine: Any, client: Client) -> None:
        super().__init__(world, parameters, client.piece)
        self.parameters, self.engine, self.client = parameters, engine, client
        for parameter in parameters:
            begin = self.first_element(parameter)
            held = self.local(parameter)
            if not torch.equal(parameter.detach().flatten()[begin : begin + len(held)], held):
                raise ValueError(
                    f"deepspeed: saw version {version('deepspeed')} lay out parameters otherwise than one after the "
                    f"other, expected what version {NEEDED} does; install that one"
                )

    def update(self, step: Callable[[], Result]) -> Result:
        results: list[Result] = []
        for parameter in self.parameters:
            if parameter.grad is None:  # every process must bring the same gradients to the sum; here those are zeros
                parameter.grad = torch.zeros_like(parameter)
        self.client.work = lambda: results.append(step())
        self.engine.step()
        (result,) = results
        return result


def zero_one(model: nn.Module, world: World) -> ZeroOne:
    """Lay `model` out in place: its parameters become views into the flat buffer of DeepSpeed's ZeRO-1."""
    refuse_without_deepspeed()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when it is imported; looking for others, it warns
    os.environ.setdefault("LOCAL_RANK", str(world.rank))  # it insists; torchrun sets it
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it writes to stdout, where our results go
    # A collective of its own for inference, which it would spend a minute on compiling, and nothing here calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)  # its call, not ours
    parameters = list(model.parameters())
    client = Client(parameters)
    engine = deepspeed.initialize(model=model, optimizer=client, config=SETTINGS, dist_init_required=False)[0]
    return ZeroOne(world, parameters, engine, client)
