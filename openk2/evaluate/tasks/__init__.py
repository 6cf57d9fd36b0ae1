"""The tasks that can be asked for by name."""

from __future__ import annotations

from typing import Any

from openk2.evaluate.records import EvalTask
from openk2.evaluate.tasks.bits_per_byte import BitsPerByte
from openk2.evaluate.tasks.gsm8k import GSM8K
from openk2.evaluate.tasks.math import Math
from openk2.evaluate.tasks.mmlu import MMLU
from openk2.evaluate.tasks.tools import ToolCalls

TASKS: dict[str, EvalTask[Any]] = {
    task.name: task for task in (BitsPerByte(), ToolCalls("freehand"), GSM8K(), Math(), MMLU(), ToolCalls("phrasings"))
}
