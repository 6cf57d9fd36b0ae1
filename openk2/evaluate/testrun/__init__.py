"""Test runs: a folder of prompts put to models behind OpenAI-compatible URLs, the answers kept and set side by side.

Leaves out any judgement that a check cannot make: that is what the page, its
notes and a reader are for.
"""

from openk2.evaluate.testrun.diff import RunDiff, diff_runs
from openk2.evaluate.testrun.figures import summary_table
from openk2.evaluate.testrun.prompts import STARTER, Prompt, failed_proofs, load_prompts
from openk2.evaluate.testrun.report import Report, render_report
from openk2.evaluate.testrun.runner import run_prompts
from openk2.evaluate.testrun.settings import RunSettings
from openk2.evaluate.testrun.targets import Price, Target, parse_extra, parse_price, with_options

__all__ = [
    "STARTER",
    "Price",
    "Prompt",
    "Report",
    "RunDiff",
    "RunSettings",
    "Target",
    "diff_runs",
    "failed_proofs",
    "load_prompts",
    "parse_extra",
    "parse_price",
    "render_report",
    "run_prompts",
    "summary_table",
    "with_options",
]
