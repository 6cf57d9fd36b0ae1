"""Settings of a run, stage by stage: frozen, typed, and free of torch.

A field may carry `metadata={"needs": (path, values)}`: setting it while the
field at `path` (relative to the same section) has another value would change
nothing, so the overrides refuse it. Schedules count steps, never seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from openk2.config.model import ModelConfig


def _needs(name: str, *values: object) -> dict[str, Any]:
    return {"needs": (name, values)}


RULES: dict[str, Callable[[float], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "at least 2": lambda value: value >= 2,
    "above 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
}


def _check(section: str, config: Any, **names_by_rule: str) -> None:
    """Refuse values outside a rule (its words joined by `_`) or outside their field's choices; None passes."""
    for key, names in names_by_rule.items():
        rule = key.replace("_", " ")
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not RULES[rule](value):
                raise ValueError(f"{section}.{name}: saw {value}, expected {rule}")
    for item in fields(config):
        choices = item.metadata.get("choices")
        if choices and getattr(config, item.name) not in choices:
            listed = ", ".join(choices)
            raise ValueError(f"{section}.{item.name}: saw {getattr(config, item.name)}, expected one of {listed}")


@dataclass(frozen=True)
class DataConfig:
    """What text is read. `path` (a folder or a file of text or JSONL) replaces the built-in `sources`."""

    path: str | None = None
    sources: tuple[str, ...] = field(default=("stdlib", "sotu", "shakespeare", "kjv"), metadata=_needs("path", None))
    max_bytes: int = 24_000_000  # of training text, over all domains
    val_bytes: int = 262_144  # held out per domain, whole documents
    code_fraction: float = field(default=0.5, metadata=_needs("path", None))  # of the training bytes
    seed: int = 0

    def __post_init__(self) -> None:
        _check("data", self, at_least_1="max_bytes val_bytes", from_0_to_1="code_fraction")
        if not self.sources:
            raise ValueError("data.sources: saw none, expected at least one")


@dataclass(frozen=True)
class OptimConfig:
    """MuonClip (K2 report, section 2.1); `adamw` is the baseline that uses AdamW for every parameter."""

    name: str = field(default="muonclip", metadata={"choices": ("muonclip", "adamw")})
    lr: float = 3e-3
    weight_decay: float = 0.1
    momentum: float = field(default=0.95, metadata=_needs("name", "muonclip"))
    nesterov: bool = field(default=True, metadata=_needs("name", "muonclip"))  # False: Algorithm 1 as it is printed
    ns_steps: int = field(default=5, metadata=_needs("name", "muonclip"))
    ns_dtype: str = field(default="bf16", metadata={"choices": ("bf16", "fp32"), **_needs("name", "muonclip")})
    update_rms: float = field(default=0.2, metadata=_needs("name", "muonclip"))
    muon_split: bool = field(default=False, metadata=_needs("name", "muonclip"))  # queries and keys head by head
    qk_clip_tau: float | None = field(default=100.0, metadata=_needs("name", "muonclip"))
    cautious_weight_decay: bool = False  # only where it pulls the way the update does
    adam_lr_scale: float = 1.0  # AdamW's rate relative to Muon's
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    adam_grad_clip: float = 1.0  # of the AdamW group's raw gradients only; never of an orthogonalised update

    def __post_init__(self) -> None:
        _check(
            "optim",
            self,
            above_0="lr update_rms qk_clip_tau adam_lr_scale adam_eps adam_grad_clip",
            at_least_0="weight_decay",
            at_least_1="ns_steps",
            at_least_0_and_below_1="momentum adam_beta1 adam_beta2",
        )


@dataclass(frozen=True)
class TrainConfig:
    """The step: how many tokens, which precision, which schedule, what is saved when."""

    steps: int = 400
    batch_tokens: int = 16_384  # per optimizer step
    micro_batch_tokens: int = 8_192  # per forward and backward
    sequence_length: int = 512
    warmup_steps: int = 20
    decay_steps: int = 80  # the last ones: cosine from lr to lr * final_lr_ratio
    final_lr_ratio: float = 0.1
    balance_loss_alpha: float = 1e-4  # sequence-wise balance loss, per document
    bias_update_rate: float = 1e-3  # of the router's selection bias, each step
    dtype: str = field(default="auto", metadata={"choices": ("auto", "bf16", "fp32")})
    attention: str = field(default="auto", metadata={"choices": ("auto", "tiled", "flex", "sdpa", "invariant")})
    # Norms, the router's input, latent attention's up-projections and the tokens sorted for the experts are made again
    # instead of kept; activations and experts' outputs never are.
    recompute: str = field(default="none", metadata={"choices": ("none", "selective")})
    seed: int = 0
    checkpoint_every: int = 50
    eval_every: int = 100

    def __post_init__(self) -> None:
        _check(
            "train",
            self,
            at_least_1="steps batch_tokens micro_batch_tokens checkpoint_every eval_every",
            at_least_2="sequence_length",
            at_least_0="warmup_steps decay_steps balance_loss_alpha bias_update_rate",
            from_0_to_1="final_lr_ratio",
        )
        if self.micro_batch_tokens < self.sequence_length:
            raise ValueError(
                f"train.micro_batch_tokens: saw {self.micro_batch_tokens}, expected at least "
                f"sequence_length ({self.sequence_length})"
            )
        if self.batch_tokens % self.micro_batch_tokens or self.micro_batch_tokens % self.sequence_length:
            raise ValueError(
                f"train.batch_tokens: saw {self.batch_tokens}, expected a multiple of micro_batch_tokens "
                f"({self.micro_batch_tokens}), itself a multiple of sequence_length ({self.sequence_length})"
            )
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"train.warmup_steps: saw {self.warmup_steps} + decay_steps {self.decay_steps}, "
                f"expected together at most steps ({self.steps}); set --train.warmup_steps and --train.decay_steps too"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over processes, which torchrun starts. It changes no result but by rounding."""

    dp: int = 1  # processes: each takes its share of a step's micro-batches and holds its share of the parameters
    ep: int = 1  # of them, those that share one set of experts: 1 (none; experts are sharded like the rest) or dp
    engine: str = field(default="fsdp", metadata={"choices": ("fsdp", "deepspeed")})  # FSDP2, or DeepSpeed's ZeRO
    zero: int | None = None  # stage of DeepSpeed's ZeRO: 1 (as if none is given), which cuts the optimizer's state only

    def __post_init__(self) -> None:
        _check("parallel", self, at_least_1="dp ep")
        if self.ep not in (1, self.dp):
            raise ValueError(f"parallel.ep: saw {self.ep}, expected 1 or parallel.dp ({self.dp})")
        if self.zero not in (None, 1):
            raise ValueError(f"parallel.zero: saw {self.zero}, expected 1; of ZeRO's stages openk2 runs the first only")
        if self.zero is not None and self.engine != "deepspeed":
            raise ValueError(
                f"parallel.zero: saw {self.zero} with engine {self.engine}, where it would change nothing, "
                "expected none; drop it or set --parallel.engine deepspeed"
            )
        if self.engine == "deepspeed" and self.ep > 1:
            raise ValueError(
                f"parallel.ep: saw {self.ep} with engine deepspeed, expected 1; set --parallel.ep 1, "
                "or --parallel.engine fsdp"
            )
        if self.engine == "deepspeed" and self.dp < 2:
            raise ValueError(
                f"parallel.engine: saw deepspeed with parallel.dp {self.dp}, expected 2 processes or more; "
                "set --parallel.dp and start as many with torchrun"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """For runs too short to grow heads that copy: start with them (model/induction.py), keep them (data/copying.py)."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    induction: bool = False
    copy_fraction: float = 0.0  # of all rows: random tokens said twice instead of text

    def __post_init__(self) -> None:
        _check("pretrain", self, at_least_0_and_below_1="copy_fraction")
        if self.train.batch_tokens // self.train.sequence_length % self.parallel.dp:
            raise ValueError(
                f"parallel.dp: saw {self.parallel.dp}, expected a divisor of the rows of a step "
                f"({self.train.batch_tokens // self.train.sequence_length})"
            )

    def copy_rows(self, step: int) -> int:
        """Rows of step `step` (from 0) that are to be copied: spread evenly over all steps, whatever the batch."""
        rows = self.train.batch_tokens // self.train.sequence_length
        return int(self.copy_fraction * rows * (step + 1)) - int(self.copy_fraction * rows * step)


@dataclass(frozen=True)
class SynthConfig:
    """Agentic data synthesis. `attempts` tasks are simulated; what the judge fails is dropped."""

    attempts: int = 6000
    plain_fraction: float = 0.1  # plain dialogues beside the trajectories, of their number
    critique_fraction: float = 0.1  # pairs that teach the policy to judge, of their number
    error_rate: float = 0.02  # of the teacher's turns that are made wrong on purpose, so that judging has work
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            "synth",
            self,
            at_least_1="attempts",
            at_least_0="plain_fraction critique_fraction",
            from_0_to_1="error_rate",
        )


@dataclass(frozen=True)
class SFTConfig:
    optim: OptimConfig = OptimConfig(lr=1.5e-3)
    train: TrainConfig = TrainConfig(steps=200, warmup_steps=10, decay_steps=100, eval_every=25)


@dataclass(frozen=True)
class RLConfig:
    """K2's objective: (reward - mean reward - tau * log-ratio)^2, no value network (K2 report, section 3.2.3)."""

    steps: int = 20
    prompts_per_step: int = 8
    group_size: int = 8  # samples per prompt
    tau: float = 0.1
    temperature_start: float = 1.0
    temperature_end: float = 0.6
    token_budget: int = 96  # sampled tokens per dialogue; beyond it the sample is cut and penalised
    budget_penalty: float = 0.5
    pool_tasks: int = 384  # training tasks that prompts are drawn from, hard ones more often
    max_user_turns: int = 2  # longer tasks are left to SFT: one reward says little about many turns
    warmup_steps: int = 2
    ptx_weight: float = 0.1  # of the supervised loss on a few of the pool's own dialogues, each step
    ptx_examples: int = field(default=16, metadata=_needs("ptx_weight", "nonzero"))
    critic_weight: float = 0.1  # of the self-critique's rank reward beside the verifiable one
    critic_pairs: int = field(default=4, metadata=_needs("critic_weight", "nonzero"))
    micro_batch_tokens: int = 8_192
    checkpoint_every: int = 5
    dtype: str = field(default="auto", metadata={"choices": ("auto", "bf16", "fp32")})
    seed: int = 0
    optim: OptimConfig = OptimConfig(lr=3e-4)

    def __post_init__(self) -> None:
        _check(
            "rl",
            self,
            at_least_1="steps prompts_per_step pool_tasks max_user_turns ptx_examples token_budget micro_batch_tokens "
            "checkpoint_every",
            at_least_2="group_size",  # the baseline is the mean over the others and itself
            above_0="temperature_start temperature_end",
            at_least_0="warmup_steps tau budget_penalty ptx_weight critic_weight critic_pairs",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    tool_tasks: int = 200  # items of the held-out numbers-and-names set
    set_tasks: int | None = None  # items of each hand-written set; all of them if none
    base_tasks: int = 40  # at most so many of each set for the base model, which has never seen a tool
    max_new_tokens: int = 96  # per assistant turn
    samples: int = 8  # shown in the report: the first ones, unselected
    seed: int = 1234

    def __post_init__(self) -> None:
        _check("evaluate", self, at_least_1="tool_tasks set_tasks base_tasks max_new_tokens", at_least_0="samples")


@dataclass(frozen=True)
class SpeedrunConfig:
    """The whole recipe; each section is what the stage's own command takes."""

    pretrain: PretrainConfig
    synth: SynthConfig = SynthConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
