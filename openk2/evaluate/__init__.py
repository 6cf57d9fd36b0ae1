"""Measuring a policy through `Generate` and `Score`: tasks, statistics, files that say how it was asked.

The same code asks the engine in this process, our server, or any other
endpoint behind the two callables. Leaves out anything that trains.
"""

from openk2.evaluate.format import results_table
from openk2.evaluate.records import EvalSettings, Result
from openk2.evaluate.runner import Progress, evaluate
from openk2.evaluate.task_files import load_set, read_task_file
from openk2.evaluate.tasks import TASKS

__all__ = ["TASKS", "EvalSettings", "Progress", "Result", "evaluate", "load_set", "read_task_file", "results_table"]
