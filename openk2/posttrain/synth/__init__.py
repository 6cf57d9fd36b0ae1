"""Agentic data synthesis: tools -> agents + tasks -> simulate -> judge -> filter (K2 report, 3.1.1)."""

from openk2.posttrain.synth.pipeline import synthesise
from openk2.posttrain.synth.tasks import held_out_tasks, write_held_out

__all__ = ["held_out_tasks", "synthesise", "write_held_out"]
