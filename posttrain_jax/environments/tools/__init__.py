"""Tools that a model calls: declared from typed functions, their arguments checked, their failures observations."""

from posttrain_jax.environments.tools.tool import Tool, ToolError, tool
from posttrain_jax.environments.tools.toolbox import Toolbox

__all__ = ["Tool", "ToolError", "Toolbox", "tool"]
