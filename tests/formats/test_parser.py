"""The parser of tool calls: the same events however the text is cut, and nothing lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.formats import (
    TOOL_FORMATS,
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ParsedCall,
    ToolCallParser,
    ToolFormat,
    parse_calls,
    tool_format,
)

HERMES, LLAMA, MISTRAL = tool_format("hermes"), tool_format("llama3"), tool_format("mistral")
MARKED = [form for form in TOOL_FORMATS.values() if form.trigger]
FORMATS = list(TOOL_FORMATS.values())


def written(form: ToolFormat, calls: list[tuple[str, object]]) -> str:
    """Calls as the family writes them."""
    out = []
    for name, arguments in calls:
        text = json.dumps(arguments, ensure_ascii=False)
        if form.name_end is None:
            call = f'{{"name": "{name}", "{form.arguments_key}": {text}}}'
        else:
            call = name + form.name_end + text
        out.append(form.call_begin + call + form.call_end)
    return form.section_begin + form.separator.join(out) + form.section_end


def merged(events: list[Event]) -> list[Event]:
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, Content) and isinstance(last, Content):
            out[-1] = Content(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            out[-1] = ArgumentsDelta(last.index, last.text + event.text)
        else:
            out.append(event)
    return out


def events_of(form: ToolFormat, pieces: list[str]) -> list[Event]:
    parser = ToolCallParser(form)
    return merged([e for piece in pieces for e in parser.feed(piece)] + parser.finish())


ARGUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(['}"', "</tool_call>", "\\", "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["f", "get_weather", "a.b-c"]), st.dictionaries(st.text(max_size=4), ARGUMENTS, max_size=3)
    ),
    min_size=1,
    max_size=3,
)
WHOLE = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    '{"name": ',
    ', "arguments": ',
    '"parameters"',
]
BITS = [
    "\n",
    '"f"',
    "{}",
    "}",
    " [",
    "]",
    "x",
    "é<",
    '"a": {"b": [1, "}"]}',
    "f",
    '{"',
    ",",
    ":",
    "1",
    "<tool_",
    "{",
    "\\",
    " ",
]
PARTS = [part for form in MARKED for part in (form.lead, form.call_end, form.name_end or "x")]
PIECES = st.sampled_from(WHOLE + BITS + PARTS)


@given(st.sampled_from(FORMATS), st.text(max_size=8).filter(lambda t: "{" not in t), CALLS, st.data())
@settings(max_examples=300, deadline=None)
def test_calls_that_were_written_are_read_back(
    form: ToolFormat, before: str, calls: list[tuple[str, object]], data: st.DataObject
) -> None:
    if not form.parallel:
        calls = calls[:1]
    if not form.trigger:
        before = ""
    text = before + written(form, calls)
    content, parsed = parse_calls(form, text)
    assert content == before
    assert [(c.name, json.loads(c.arguments), c.is_complete) for c in parsed] == [(n, a, True) for n, a in calls]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert events_of(form, pieces) == events_of(form, [text])


@given(st.sampled_from(FORMATS), st.lists(PIECES, max_size=12).map("".join), st.data())
@settings(max_examples=600, deadline=None)
def test_any_text_gives_the_same_events_however_it_is_cut(form: ToolFormat, text: str, data: st.DataObject) -> None:
    whole = events_of(form, [text])
    assert events_of(form, list(text)) == whole
    cut = data.draw(st.integers(0, len(text)))
    assert events_of(form, [text[:cut], "", text[cut:]]) == whole
    open_call: int | None = None
    count = 0
    for event in whole:
        if isinstance(event, CallStarted):
            assert (open_call, event.index) == (None, count)
            open_call, count = event.index, count + 1
        elif isinstance(event, CallEnded):
            assert open_call == event.index
            open_call = None
        else:
            assert isinstance(event, Content) == (open_call is None)
    assert open_call is None
    if not count and not form.answer_begin:
        assert whole == ([Content(text)] if text else []), "what is no call is content, every character of it"


@pytest.mark.parametrize("form", MARKED, ids=lambda form: form.name)
def test_no_part_of_a_mark_is_shown_before_it_is_known_to_be_none(form: ToolFormat) -> None:
    text = "so " + written(form, [("f", {"a": 1})])
    parser = ToolCallParser(form)
    shown = ""
    for char in text:
        for event in parser.feed(char):
            if isinstance(event, Content):
                shown += event.text
    assert shown == "so "
    parser = ToolCallParser(form)
    half = form.trigger[:-1]
    assert merged(parser.feed("so " + half)) == [Content("so ")]
    assert merged(parser.feed("!")) == [Content(half + "!")]


def test_arguments_stream_as_they_come() -> None:
    parser = ToolCallParser(HERMES)
    assert parser.feed('<tool_call>\n{"name": "f"') == [CallStarted(0, "f")]
    assert parser.feed(', "arguments": {"a"') == [ArgumentsDelta(0, '{"a"')]
    assert parser.feed(": [1, 2") == [ArgumentsDelta(0, ": [1, 2")]
    assert parser.feed("]}}\n</tool_") == [ArgumentsDelta(0, "]}")]
    assert parser.feed("call>") == [CallEnded(0, True)]
    assert parser.feed("\n") == []
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "",
         [ParsedCall("f", '{"a": 1}', True)]),
        (HERMES, '<tool_call>{"id": "x", "name": "f", "arguments": {}, "b": 2}</tool_call> ok', " ok",
         [ParsedCall("f", "{}", True)]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a"', "", [ParsedCall("f", '{"a"', False)]),
        (HERMES, '<tool_call>{"name": "f"} and more', " and more", [ParsedCall("f", "", False)]),
        (HERMES, '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        (HERMES, '<tool_call>{"other": 3}', '<tool_call>{"other": 3}', []),
        (HERMES, "<tool_call><tool_call>{\"name\": \"f\"}</tool_call>", "<tool_call>", [ParsedCall("f", "", True)]),
        (HERMES, "a <tool_call> b", "a <tool_call> b", []),
        (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": "{"}}', "", [ParsedCall("f", '{"a": "{"}', True)]),
        (LLAMA, ' {"name": "f", "parameters": {}}', "", [ParsedCall("f", "{}", True)]),
        (LLAMA, 'so {"name": "f", "parameters": {}}', 'so {"name": "f", "parameters": {}}', []),
        (LLAMA, "<|python", "<|python", []),
        (LLAMA, "<|pythonic", "<|pythonic", []),
        (LLAMA, '{"a": 1}', '{"a": 1}', []),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}},{"name": "g", "arguments": {"x": []}}]', "",
         [ParsedCall("f", "{}", True), ParsedCall("g", '{"x": []}', True)]),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]', "",
         [ParsedCall("f", "{}", True)]),
        (tool_format("gpt-oss"), "<|channel|>final<|message|>hello", "hello", []),
    ],
)  # fmt: skip
def test_what_models_write_without_constraints(
    form: ToolFormat, text: str, content: str, calls: list[ParsedCall]
) -> None:
    assert parse_calls(form, text) == (content, tuple(calls))
