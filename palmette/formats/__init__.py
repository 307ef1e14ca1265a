"""How the model families write tool calls and reasoning, as data; specifications and parsers made from that data."""

from palmette.formats.calls import ToolSchema, tool_spec
from palmette.formats.parser import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ParsedCall,
    ToolCallParser,
    parse_calls,
)
from palmette.formats.reasoning import REASONING_FORMATS, ReasoningFormat, reasoning_format
from palmette.formats.tools import TOOL_FORMATS, ToolFormat, detect, tool_format

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "ArgumentsDelta",
    "CallEnded",
    "CallStarted",
    "Content",
    "Event",
    "ParsedCall",
    "ReasoningFormat",
    "ToolCallParser",
    "ToolFormat",
    "ToolSchema",
    "detect",
    "parse_calls",
    "reasoning_format",
    "tool_format",
    "tool_spec",
]
