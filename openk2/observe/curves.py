"""Which curves of a stage the report draws, and what they say in words.

Validation figures measured during training are records' `extra` entries named
`val_bpb.<domain>`; RL's own are `reward_mean`, `reward_std`, `mean_length`,
`entropy`, `kl_mismatch` and the shares (0 to 1) in `_SHARES`. Any other entry
of `extra` gets a chart of its own, under its own name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from openk2.observe.metrics import StepRecord, load_summary
from openk2.observe.svg import NUM_COLOURS, Axis, HeatWords, Series, heat_map, line_chart

Records = Sequence[StepRecord]

VALIDATION_PREFIX = "val_bpb."
HEAT_COLUMNS = 80  # stretches of a run that the map of heads shows
_STEP = Axis("step")
_SHARES = {
    "degenerate_groups": "groups without spread",
    "parse_fail_rate": "unparsable calls",
    "env_fail_rate": "environment failures",
    "truncated_rate": "cut by the budget",
}
_RL_OWN = {*_SHARES, "reward_mean", "reward_std", "mean_length", "entropy", "kl_mismatch"}


def training_charts(records: Records, tau: float | None) -> list[str]:
    """Loss, validation, attention logits and clips of one stage."""
    steps = _steps(records)
    logits = Series("", steps, [record.max_logit for record in records])
    level = (tau, f"clipped above tau = {tau:g}") if tau is not None else None
    return [
        _smoothed("Training loss", records, [record.loss for record in records], "nats per token"),
        _smoothed("Training text", records, [record.bits_per_byte for record in records], "bits per byte (estimated)"),
        _validation_chart(records),
        line_chart("Largest attention logit", [logits], _STEP, Axis("logit", zero=True), reference=level),
        _layer_chart(records),
        head_map(records, tau),
        _single("Heads clipped", records, [r.clipped_heads for r in records], Axis("heads", zero=True, whole=True)),
    ]


def engine_room_charts(records: Records) -> list[str]:
    """Optimizer and speed of any stage, and whatever figures the stage has beside the known ones."""
    share = Axis("share of peak", percent=True, zero=True)
    names = dict.fromkeys(name for record in records for name in record.extra)
    others = [name for name in names if name not in _RL_OWN and not name.startswith(VALIDATION_PREFIX)]
    return [
        _single("Gradient norm", records, [record.grad_norm for record in records], Axis("gradient norm", log=True)),
        _update_chart(records),
        _single("Learning rate", records, [record.lr for record in records], Axis("learning rate", zero=True)),
        _single("Speed", records, [record.tokens_per_s for record in records], Axis("tokens per second", zero=True)),
        _single("Share of the measured matmul peak", records, [record.matmul_share for record in records], share),
        *(_single(_words(name), records, _extra(records, name), Axis(_words(name))) for name in others),
    ]


def expert_charts(records: Records, first_layer: int | None) -> list[str]:
    """Expert load at the end and its imbalance over time; `first_layer` is the number of dense layers below."""
    loaded = [record for record in records if record.expert_load]
    if not loaded:
        return []
    last = loaded[-1]
    summaries = [load_summary(record.expert_load) for record in loaded]
    rows = [[float(load) for load in row] for row in last.expert_load]
    return [
        load_map(f"Expert load at step {last.step}", rows, first_layer or 0),
        _single("Imbalance", loaded, [ratio for _, ratio in summaries], Axis("busiest expert / mean, worst layer")),
        _single(
            "Dead experts",
            loaded,
            [dead for dead, _ in summaries],
            Axis("experts that no token chose", zero=True, whole=True),
        ),
        _smoothed("Balance loss", records, [record.balance_loss for record in records], "balance loss"),
    ]


def load_map(title: str, rows: Sequence[Sequence[float]], first_layer: int) -> str:
    """Relative load (mean 1) of experts by layer; those that no token chose are crossed out."""
    top = max(2.0, *(load for row in rows for load in row if math.isfinite(load)))
    dead = [[load == 0 for load in row] for row in rows]
    columns = max(map(len, rows))
    described = (
        f"Load of {columns} experts in {len(rows)} layers, largest {top:.2f} times the mean, {sum(map(sum, dead))} dead"
    )
    return heat_map(
        title,
        rows,
        Axis("expert"),
        Axis("layer"),
        HeatWords(f"{top:.1f}x the mean load", "no token chose it", described),
        top=top,
        crossed=dead,
        row_names=[str(layer + first_layer) for layer in range(len(rows))],
        column_names=[str(expert) for expert in range(columns)],
    )


def _exactness(records: Records) -> str:
    """How often a bound on a layer's logits decided, and how often it took their exact maxima."""
    layers = [
        logits == bounds
        for record in records
        for logits, bounds in zip(record.max_logits, record.logit_bounds, strict=False)
    ]
    return f"; exact maxima in {sum(layers)} of {len(layers)} layer-steps, bounds in the others" if layers else ""


def head_map(records: Records, tau: float | None) -> str:
    """The largest attention logit of every head over the run, and where QK-Clip shrank one: its flight recorder."""
    heads = [record for record in records if record.max_logits]
    if not heads:
        return ""
    size = math.ceil(len(heads) / HEAT_COLUMNS)
    spans = [heads[start : start + size] for start in range(0, len(heads), size)]
    names = [f"{layer}.{head}" for layer, row in enumerate(heads[0].max_logits) for head in range(len(row))]
    rows = [[max(_flat(record.max_logits)[index] for record in span) for span in spans] for index in range(len(names))]
    clipped = [
        [any(record.gamma and _flat(record.gamma)[index] < 1 for record in span) for span in spans]
        for index in range(len(names))
    ]
    top = tau or max((value for row in rows for value in row if math.isfinite(value) and value > 0), default=1.0)
    hit = sum(map(any, clipped))
    return heat_map(
        "Largest logit of every head",
        rows,
        _STEP,
        Axis("layer.head"),
        HeatWords(
            f"{top:.0f}" + (" (tau)" if tau else ""),
            "clipped",
            f"{len(names)} heads over {len(heads)} steps, {hit} of them clipped at least once{_exactness(heads)}",
        ),
        top=top,
        crossed=clipped,
        row_names=names,
        column_names=[str(span[0].step) for span in spans],
    )


def _flat(rows: Sequence[Sequence[float | None]]) -> list[float]:
    return [math.nan if value is None else value for row in rows for value in row]


def rl_charts(records: Records) -> list[str]:
    """Reward, length, entropy, mismatch, failures, and the optimizer's own curves."""
    steps = [record.step for record in records]
    shares = [
        Series(title, steps, _extra(records, name), index, dots=len(records) < 40)
        for index, (name, title) in enumerate(_SHARES.items())
        if any(value is not None for value in _extra(records, name))
    ]
    return [
        _smoothed("Reward", records, _extra(records, "reward_mean"), "mean reward"),
        _single("Spread of the reward", records, _extra(records, "reward_std"), Axis("standard deviation", zero=True)),
        _single("Length", records, _extra(records, "mean_length"), Axis("mean sampled tokens", zero=True)),
        _single("Entropy", records, _extra(records, "entropy"), Axis("nats per sampled token", zero=True)),
        _single(
            "Sampler against trainer", records, _extra(records, "kl_mismatch"), Axis("mismatch KL, nats", log=True)
        ),
        line_chart("Samples that teach nothing or fail", shares, _STEP, Axis("share", percent=True, zero=True)),
        _smoothed("RL loss", records, [record.loss for record in records], "objective"),
        _single("Largest attention logit", records, [record.max_logit for record in records], Axis("logit", zero=True)),
    ]


def rl_in_words(records: Records) -> str:
    """Whether the reward rose and how much of the sampling was of use, in a sentence or two."""
    quarter = max(1, len(records) // 4)
    rewards = _extra(records, "reward_mean")
    first, last = _mean(rewards[:quarter]), _mean(rewards[-quarter:])
    words = f"{len(records)} steps."
    if first is not None and last is not None:
        words += f" Mean reward {first:.3f} in the first quarter of the steps, {last:.3f} in the last"
        words += "." if last > first else ": the reward did not rise."
    degenerate = _mean(_extra(records, "degenerate_groups"))
    if degenerate is not None:
        words += f" {degenerate:.0%} of the groups had no spread in reward and taught nothing."
    return words


def _layer_chart(records: Records) -> str:
    """The layers' own maxima: all where they are few, else evenly chosen ones."""
    layered = [record for record in records if record.max_logits]
    count = min((len(record.max_logits) for record in layered), default=0)
    if count < 2:
        return ""
    shown = sorted({round(index * (count - 1) / (NUM_COLOURS - 1)) for index in range(NUM_COLOURS)})
    series = [
        Series(f"layer {layer}", _steps(layered), [max(_flat([r.max_logits[layer]])) for r in layered], index)
        for index, layer in enumerate(shown)
    ]
    return line_chart("Largest logit by layer", series, _STEP, Axis("logit"))


def _validation_chart(records: Records) -> str:
    domains = dict.fromkeys(name for record in records for name in record.extra if name.startswith(VALIDATION_PREFIX))
    series = []
    for index, name in enumerate(domains):
        measured = [record for record in records if record.extra.get(name) is not None]
        title = name.removeprefix(VALIDATION_PREFIX)
        series.append(Series(title, _steps(measured), _extra(measured, name), index % NUM_COLOURS, dots=True))
    return line_chart("Validation text", series, _STEP, Axis("bits per byte"))


def _update_chart(records: Records) -> str:
    groups = dict.fromkeys(name for record in records for name in record.update_rms)
    series = [
        Series(name, _steps(records), [record.update_rms.get(name) for record in records], index % NUM_COLOURS)
        for index, name in enumerate(groups)
    ]
    return line_chart("Size of the update", series, _STEP, Axis("RMS by parameter group", log=True))


def _single(title: str, records: Records, values: Sequence[float | None], y: Axis) -> str:
    """One line; a logarithmic axis turns linear where a value could not be drawn on it."""
    if y.log and any(value is not None and value <= 0 for value in values):
        y = Axis(y.label)
    return line_chart(title, [Series("", _steps(records), values)], _STEP, y)


def _smoothed(title: str, records: Records, values: Sequence[float | None], label: str) -> str:
    """The values, faint, and their mean over a twenty-fifth of the run around each step."""
    reach = len(values) // 50
    means = [_mean(values[max(0, middle - reach) : middle + reach + 1]) for middle in range(len(values))]
    steps = _steps(records)
    raw = [Series("", steps, values, faint=True)] if reach else []
    return line_chart(title, [*raw, Series("", steps, means)], _STEP, Axis(label))


def _steps(records: Records) -> list[float]:
    return [record.step for record in records]


def _words(name: str) -> str:
    words = name.replace("_", " ").replace(".", ", ")
    return words[:1].upper() + words[1:]


def _extra(records: Records, name: str) -> list[float | None]:
    return [record.extra.get(name) for record in records]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
