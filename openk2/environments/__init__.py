"""Tools that really run, and what is built on them: the MCP client, the graders and the episode driver.

Synthesis, RL, evaluation, chat and serving all act on the environments opened
here. Nothing in the package reads the clock, the network or a random source,
so a call's answer depends only on its arguments and the dialogue's state.
"""

from openk2.environments.environment import TOOL_NAMES, declarations, open_environment

__all__ = ["TOOL_NAMES", "declarations", "open_environment"]
