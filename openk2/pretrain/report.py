"""The page of one pre-training run: its curves, the experts' load and the flight recorder of QK-Clip."""

from __future__ import annotations

from pathlib import Path

from openk2.config.run import PretrainConfig
from openk2.config.serialize import to_dict
from openk2.observe.metrics import logit_figures, read_metrics
from openk2.observe.report import write_report
from openk2.observe.run_folder import git_commit
from openk2.plan.parameters import plan_parameters


def write_page(config: PretrainConfig, path: Path, command: str) -> Path:
    """Write `report.html` and `report.json` into the run's folder, from its records; returns the page's path."""
    records = read_metrics(path / "metrics.jsonl")
    parameters = plan_parameters(config.model)
    report = {
        "stage": "pretrain",
        "name": f"pre-training in {path.name}",
        "command": command,
        "commit": git_commit(),
        "config": to_dict(config),
        "seed": config.train.seed,
        "parameters": {"total": parameters.total, "active": parameters.active},
        **logit_figures(records),
        "metrics": {"pretrain": records},
    }
    return write_report(report, path)
