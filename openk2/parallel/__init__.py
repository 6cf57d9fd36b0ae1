"""Parallelism from outside: the model's and the optimizer's code know nothing of it."""
