"""How the model families write tool calls. Data only, read from the families' chat templates; `detect` finds one.

    section_begin  call_begin CALL call_end  separator  call_begin CALL call_end  section_end

    CALL  {"name": "f", "arguments": {...}}      name_end None
    CALL  f name_end {...}                       otherwise

Families whose arguments are no JSON (XML-like or Pythonic calls) are not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from palmette.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One family. All texts but the keys are template text: special tokens by the text the template has for them."""

    name: str
    trigger: str  # the beginning of section_begin + call_begin that ends free text; "" = a call is the whole message
    call_begin: str
    call_end: str
    section_begin: str = ""  # before the first call
    section_end: str = ""  # behind the last one
    separator: str = ""  # between two calls
    arguments_key: str = "arguments"
    name_end: str | None = None  # between a name and its arguments, where a call is no JSON object
    may_begin: str = ""  # what the model may write before a call that is the whole message
    answer_begin: str = ""  # what an answer that is no call begins with
    parallel: bool = True  # several calls in one message
    markers: tuple[str, ...] = ()  # a chat template that holds all of these
    without: tuple[str, ...] = ()  # and none of these is the family's

    @property
    def lead(self) -> str:
        """All that stands before the first call."""
        return self.section_begin + self.call_begin


# DeepSeek's special tokens, with a fullwidth vertical line and a lower one eighth block.
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEP = (
    f"<\uff5ctool\u2581{name}\uff5c>"
    for name in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)

# In the order in which they are looked for.
TOOL_FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        ToolFormat(
            "gpt-oss",  # harmony; <|call|> behind a call ends the sequence
            trigger="<|channel|>commentary to=functions.",
            call_begin="<|channel|>commentary to=functions.",
            name_end=" <|constrain|>json<|message|>",
            call_end="",
            answer_begin="<|channel|>final<|message|>",
            parallel=False,
            markers=("<|channel|>", "functions"),
        ),
        ToolFormat(
            "deepseek-v3",
            trigger=_CALLS_BEGIN,
            section_begin=_CALLS_BEGIN,
            call_begin=_CALL_BEGIN + "function" + _SEP,
            name_end="\n```json\n",
            call_end="\n```" + _CALL_END,
            separator="\n",
            section_end=_CALLS_END,
            markers=(_CALLS_BEGIN, "```json"),
        ),
        ToolFormat(
            "deepseek-v3.1",
            trigger=_CALLS_BEGIN,
            section_begin=_CALLS_BEGIN,
            call_begin=_CALL_BEGIN,
            name_end=_SEP,
            call_end=_CALL_END,
            section_end=_CALLS_END,
            markers=(_CALLS_BEGIN,),
        ),
        ToolFormat(
            "mistral-args",  # tokenizers from v11 on
            trigger="[TOOL_CALLS]",
            call_begin="[TOOL_CALLS]",
            name_end="[ARGS]",
            call_end="",
            markers=("[TOOL_CALLS]", "[ARGS]"),
        ),
        ToolFormat(
            "mistral-tekken",
            trigger="[TOOL_CALLS]",
            section_begin="[TOOL_CALLS][",
            call_begin="",
            call_end="",
            separator=", ",
            section_end="]",
            markers=("[TOOL_CALLS][",),
        ),
        ToolFormat(
            "mistral",
            trigger="[TOOL_CALLS]",
            section_begin="[TOOL_CALLS] [",
            call_begin="",
            call_end="",
            separator=", ",
            section_end="]",
            markers=("[TOOL_CALLS]",),
        ),
        ToolFormat(
            "hermes",  # also Qwen 2.5 and Qwen 3
            trigger="<tool_call>",
            call_begin="<tool_call>\n",
            call_end="\n</tool_call>",
            separator="\n",
            markers=("<tool_call>",),
            without=("<function=", "<arg_key>"),
        ),
        ToolFormat(
            "llama3",  # 3.1 to 3.3, JSON calls
            trigger="",
            call_begin="",
            call_end="",
            arguments_key="parameters",
            may_begin="<|python_tag|>",
            parallel=False,
            markers=("<|start_header_id|>", '"parameters": '),
        ),
    )
}

# For models whose template knows no tool calls: a call is the whole message. Not among TOOL_FORMATS, whose names are
# families'.
PLAIN = ToolFormat("json", trigger="", call_begin="", call_end="", parallel=False)


def tool_format(name: str) -> ToolFormat:
    """Raises InvalidOption for a family without a known format."""
    found = TOOL_FORMATS.get(name.lower())
    if found is None:
        raise InvalidOption("tool format", name, f"one of {', '.join(TOOL_FORMATS)}")
    return found


def detect(template: str) -> ToolFormat | None:
    """The format a chat template writes calls in; None if it knows no calls, or writes them in another way."""
    for form in TOOL_FORMATS.values():
        if all(m in template for m in form.markers) and not any(m in template for m in form.without):
            return form
    return None
