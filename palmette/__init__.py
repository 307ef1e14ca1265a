"""Palmette: a structured LLM programming language embedded in Python, and the runtime that executes it.

    import palmette as pm

    @pm.function
    def qa(s, question):
        s += "Q: " + question + "\\nA:" + pm.gen("answer", max_tokens=32, stop="\\n")

    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    print(qa.run(question="What is the capital of France?")["answer"])

Importing this loads no model code: `Runtime`, `RuntimeEndpoint` and `Engine` are loaded at first use.
"""

from typing import TYPE_CHECKING, Any

from palmette.errors import *  # noqa: F403 - every error is public; errors.__all__ lists them
from palmette.errors import __all__ as _errors
from palmette.interpreter.budget import Budget
from palmette.interpreter.choices import (
    exact_probability,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from palmette.lang.branches import Branches
from palmette.lang.expressions import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
    video,
)
from palmette.lang.program import Program, function
from palmette.lang.race import afirst, arace, first, race
from palmette.lang.session import flush_cache, get_server_info, options, set_default_backend
from palmette.lang.state import State
from palmette.lang.tool_use import ToolReply
from palmette.lang.tools import Tool, ToolCall, tool, tool_result

if TYPE_CHECKING:
    from palmette.interpreter.backends.http import RuntimeEndpoint
    from palmette.interpreter.backends.local import Runtime
    from palmette.lang.engine import Engine

__version__ = "0.1.0"

_LAZY = {
    "Engine": "palmette.lang.engine",
    "Runtime": "palmette.interpreter.backends.local",
    "RuntimeEndpoint": "palmette.interpreter.backends.http",
}

__all__ = [
    "Branches",
    "Budget",
    "Engine",
    "Program",
    "Runtime",
    "RuntimeEndpoint",
    "State",
    "Tool",
    "ToolCall",
    "ToolReply",
    "afirst",
    "arace",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "exact_probability",
    "first",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "options",
    "race",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "tool",
    "tool_result",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
    *_errors,
]


def __getattr__(name: str) -> Any:
    """The names that bring the runtime or a client along, loaded when they are first used."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'palmette' has no attribute {name!r}")
