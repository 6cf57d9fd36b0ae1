"""X"""
def validation(report: Mapping[str, Any]) -> str:
    ours, xz = report.get("val_bpb") or {}, report.get("xz_bpb") or {}
    by_stage = report.get("val_bpb_by_stage") or {}
    if not (ours or by_stage):
        return ""
    axes = Axis("domain"), Axis("bits per byte (lower is better)", zero=True)
    bars = [Bars("this model", list(ours.values()))]
    if xz:
        bars.append(Bars("xz -9e", [xz.get(domain) for domain in ours], colour=1))
    charts = [bar_chart("Held-out text: model and xz", list(ours), bars, *axes)] if ours else []
    domains = list(dict.fromkeys(str(domain) for values in by_stage.values() for domain in values))
    stages = [
        Bars(STAGES.get(stage, stage), [values.get(domain) for domain in domains], colour=index)
        for index, (stage, values) in enumerate(by_stage.items())
    ]
    charts += [bar_chart("Held-out text after each stage", domains, stages, *axes)] if stages else []
    rows = [[domain, ours.get(domain), xz.get(domain), _ratio(ours.get(domain), xz.get(domain))] for domain in ours]
    return _charts(charts) + (
        table(["domain", "model, bits per byte", "xz -9e, bits per byte", "model / xz"], rows) if rows else ""
    )


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def synthesis(report: Mapping[str, Any]) -> str:
    return settings(report["synth"]) if report.get("synth") else ""


def tools(report: Mapping[str, Any]) -> str:
    success = report.get("tool_success") or {}
    stages = [stage for stage in STAGES if stage in success] + [stage for stage in success if stage not in STAGES]
    if not stages:
        return ""
    names = list(dict.fromkeys(name for stage in stages for name in success[stage].get("sets") or {}))
    columns = [(_MAIN_SET, [success[stage] for stage in stages])]
    columns += [
        (_SETS.get(name, name), [(success[s].get("sets") or {}).get(name) or {} for s in stages]) for name in names
    ]
    bars = [
        Bars(title, [entry.get("rate") for entry in entries], [entry.get("stderr") for entry in entries], colour=index)
        for index, (title, entries) in enumerate(columns)
    ]
    labels = [STAGES.get(stage, str(stage)) for stage in stages]
    axes = Axis("stage"), Axis("success", percent=True, zero=True)
    lengths = [success[stage].get("answer_tokens") for stage in stages]
    charts = [
        bar_chart("Tool-call success", labels, bars, *axes),
        bar_chart(
            "Answer length", labels, [Bars("", lengths)], Axis("stage"), Axis("mean tokens of an answer", zero=True)
        ),
    ]
    rows = [[label, *(rate(entries[i]) for _, entries in columns)] for i, label in enumerate(labels)]
    caption = (
        "Rate and standard error in percent, n in brackets; free-running: right tool, valid arguments, right answer"
    )
    return (
        _charts(charts)
        + table(["stage", *(title for title, _ in columns)], rows, caption=caption)
        + _failures(success, stages)
    )


def rate(entry: Mapping[str, Any]) -> str:
    if entry.get("rate") is None:
        return "-"
    error = f" ± {100 * entry['stderr']:.1f}" if entry.get("stderr") is not None else ""
    number = f" (n={entry['n']})" if entry.get("n") is not None else ""
    return f"{100 * entry['rate']:.1f}%{error}{number}"


def _failures(success: Mapping[str, Any], stages: Sequence[str]) -> str:
    reasons = dict.fromkeys(reason for stage in stages for reason in success[stage].get("failures") or {})
    rows = [[r, *((success[s].get("failures") or {}).get(r, 0) for s in stages)] for r in reasons]
    columns = ["failure", *(STAGES.get(stage, stage) for stage in stages)]
    return "<h3>Why it failed, items of set (a)</h3>" + table(columns, rows) if rows else ""


def benchmarks(report: Mapping[str, Any]) -> str:
    benchmarks = report.get("benchmarks") or {}
    if not benchmarks:
        return ""
    columns = list(dict.fromkeys(key for entry in benchmarks.values() if isinstance(entry, Mapping) for key in entry))
    if not columns:
        return settings(benchmarks)
    rows = [
        [name, *(entry.get(c) for c in columns)] for name, entry in benchmarks.items() if isinstance(entry, Mapping)
    ]
    return table(["task", *(column.replace("_", " ") for column in columns)], rows)


def critic(report: Mapping[str, Any]) -> str:
    critic = report.get("critic") or {}
    if not critic:
        return ""
    verdict = f'<p dir="auto"><b>{escape(critic["verdict"])}</b></p>' if critic.get("verdict") else ""
    explained = (
        "<p>How often the policy's own ranking of two samples agrees with what checking them found; "
        "a coin gives 50%.</p>"
    )
    rows = [[key.replace("_", " "), value] for key, value in critic.items() if key != "verdict"]
    return verdict + explained + table(["what", "measured"], rows)


def samples(report: Mapping[str, Any]) -> str:
    samples = report.get("samples") or ()
    content = ""
    for sample in samples:
        stage, prompt, text = (str(sample.get(key, "")) for key in ("stage", "prompt", "text"))
        content += f'<div class="sample"><span>{escape(STAGES.get(stage, stage))}</span>'
        content += f'<div class="prompt">{text_block(prompt)}</div>{text_block(text)}</div>'
    return f"<p>The first {len(samples)}, not the best. The prompt is grey.</p>{content}" if samples else ""


def trajectories(report: Mapping[str, Any]) -> str:
    given = report.get("trajectories") or {}
    columns = [(title, _dialogues(given.get(key))) for key, title in (("before", "Before RL"), ("after", "After RL"))]
    content = ""
    for index in range(max(len(dialogues) for _, dialogues in columns)):
        sides = (
            f"<div><h3>{title}</h3>{dialogue(dialogues[index]) if index < len(dialogues) else text_block('')}</div>"
            for title, dialogues in columns
        )
        content += f'<div class="pair">{"".join(sides)}</div>'
    return content


def _dialogues(given: Any) -> list[Sequence[Mapping[str, Any]]]:
    if not given:
        return []
    return [given] if isinstance(given[0], Mapping) else list(given)
