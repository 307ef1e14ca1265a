"""What a model may write for a chat request, and what is read of it, whatever the pieces it comes in."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.formats import TOOL_FORMATS, ToolFormat, ToolSchema, reasoning_format, tool_format, tool_spec
from palmette.formats.tools import PLAIN
from palmette.fsm.compile import Constraint, compile
from palmette.runtime.conversation import ToolRequest
from palmette.runtime.server.openai.reply import (
    CallArguments,
    CallStart,
    ContentDelta,
    Delta,
    Kind,
    Reasoning,
    ReasoningDelta,
    Reply,
    ReplyPlan,
    ReplyReader,
    answer_spec,
    new_call_id,
    plan_reply,
    read_reply,
    reasoning_behind,
)
from palmette.specs import Choices, Grammar, JsonSchema, Reasoned, Regex, SchemaOptions, Spec, Tagged
from palmette.types import FinishReason, TextPiece
from tests.formats.test_calls import PLAIN as BYTES
from tests.formats.test_calls import SCHEMAS, SPECIAL, TOOLS, drawn

PERSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PERSON = JsonSchema.of(PERSON_SCHEMA)
FORMS = [PLAIN, *TOOL_FORMATS.values()]
THINKS = Reasoning(reasoning_format("qwen3"), is_open=False)


def template_of(form: ToolFormat) -> str:
    """A chat template's source from which the form is told."""
    return " ".join(form.markers)


def plan(form: ToolFormat, **options: Any) -> ReplyPlan:
    made = plan_reply(chat_template=template_of(form), tools=options.pop("tools", TOOLS), **options)
    assert made.form in (form, None)
    return made


def ids() -> Callable[[], str]:
    count = itertools.count()
    return lambda: f"call_{next(count)}"


def read(made: ReplyPlan, text: str) -> Reply:
    return read_reply(made, text, new_id=ids())


def written(form: ToolFormat, calls: Sequence[tuple[str, str]]) -> str:
    """Calls, name and arguments' text of each, as the family writes them."""
    bodies = [
        name + form.name_end + arguments
        if form.name_end is not None
        else f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}'
        for name, arguments in calls
    ]
    return (
        form.section_begin + form.separator.join(form.call_begin + b + form.call_end for b in bodies) + form.section_end
    )


def deltas_of(made: ReplyPlan, pieces: Sequence[str]) -> tuple[list[Delta], Reply]:
    """Of a text in pieces, neighbours of one kind joined."""
    reader = ReplyReader(made, new_id=ids())
    out: list[Delta] = []
    for delta in [*(d for piece in pieces for d in reader.feed(piece)), *reader.finish()]:
        last = out[-1] if out else None
        if isinstance(delta, ContentDelta) and isinstance(last, ContentDelta):
            out[-1] = ContentDelta(last.text + delta.text)
        elif isinstance(delta, ReasoningDelta) and isinstance(last, ReasoningDelta):
            out[-1] = ReasoningDelta(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments):
            out[-1] = replace(last, text=last.text + delta.text)
        else:
            out.append(delta)
    return out, reader.reply


def joined(deltas: Sequence[Delta]) -> Reply:
    """The message that a client puts together."""
    content: str | None = None
    reasoning = ""
    calls: list[ToolRequest] = []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content = (content or "") + delta.text
        elif isinstance(delta, ReasoningDelta):
            reasoning += delta.text
        elif isinstance(delta, CallStart):
            assert delta.index == len(calls)
            calls.append(ToolRequest(delta.id, delta.name, ""))
        else:
            calls[delta.index] = replace(calls[delta.index], arguments=calls[delta.index].arguments + delta.text)
    return Reply(content if content is not None or calls else "", tuple(calls), reasoning)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_without_tools_the_answer_alone_is_constrained() -> None:
    assert plan_reply(chat_template="") == ReplyPlan(None)
    assert plan_reply(chat_template="", answer=PERSON) == ReplyPlan(PERSON)
    assert plan_reply(chat_template="", choice="none").spec is None


def test_tools_that_are_only_shown_cannot_be_called() -> None:
    made = plan(tool_format("hermes"), choice="none", answer=PERSON)
    assert made == ReplyPlan(PERSON)
    text = written(tool_format("hermes"), [("now", "{}")])
    assert read(plan(tool_format("hermes"), choice="none"), text) == Reply(text)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_tools_and_an_answer_are_one_specification(form: ToolFormat) -> None:
    made = plan(form, answer=PERSON)
    assert made.spec == tool_spec(form, TOOLS, answer=PERSON)
    assert made.kind is Kind.EITHER


def test_a_template_that_knows_no_calls_has_the_plain_form() -> None:
    assert plan_reply(chat_template="{{ messages }}", tools=TOOLS).form == PLAIN


def test_choices_that_cannot_be_are_refused() -> None:
    for choice in ("required", "weather"):
        with pytest.raises(InvalidOption, match="tool_choice"):
            plan_reply(chat_template="", choice=choice)
    with pytest.raises(InvalidOption, match="weather, now"):
        plan(PLAIN, choice="cook")
    with pytest.raises(InvalidOption, match="thinking_budget"):
        plan_reply(chat_template="", thinking_budget=5)


# -- what is written under a plan is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("answer", [None, PERSON], ids=["free", "person"])
def test_every_text_under_the_specification_is_read_into_valid_parts(form: ToolFormat, answer: Spec | None) -> None:
    rng = random.Random(f"{form.name} {answer}")
    seen = {"calls": 0, "answers": 0}
    for special, choice in itertools.product((False, True), ("auto", "required", "now")):
        made = plan(form, choice=choice, answer=answer)
        assert made.spec is not None
        constraint = compile(made.spec, SPECIAL if special else BYTES)
        for _ in range(8):
            reply = read(made, text := drawn(constraint, rng))
            for call in reply.calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
            assert reply.calls or choice == "auto", text
            if reply.calls and (answer is not None or choice != "auto" or not form.trigger):
                assert reply.content is None, text
            if not reply.calls and answer is not None:
                jsonschema.validate(json.loads(reply.content or ""), PERSON_SCHEMA)
            seen["calls" if reply.calls else "answers"] += 1
    assert min(seen.values()) > 0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_an_answer_whose_strings_hold_a_call_is_an_answer(form: ToolFormat) -> None:
    call = written(form, [("now", "{}")])
    made = plan(form, answer=JsonSchema.of({"type": "object"}))
    for data in ({"name": "now", "age": 3}, {"text": call}, {"name": "cook", form.arguments_key: {}}):
        text = json.dumps(data)
        assert read(made, form.answer_begin + text) == Reply(text)


def test_an_answer_that_begins_as_a_call_does_is_read_as_one() -> None:
    reply = read(plan(PLAIN, answer=PERSON), '{"name": "now", "arguments": {}}')
    assert reply == Reply(None, (ToolRequest("call_0", "now", "{}"),))


def test_text_may_stand_before_a_call() -> None:
    form = tool_format("hermes")
    reply = read(plan(form), "Let me see.\n" + written(form, [("weather", '{"city": "Rome"}'), ("now", "{}")]))
    assert reply == Reply(
        "Let me see.\n", (ToolRequest("call_0", "weather", '{"city": "Rome"}'), ToolRequest("call_1", "now", "{}"))
    )
    assert reply.finish_reason(FinishReason.STOP) == "tool_calls"


def test_whitespace_before_what_looks_like_a_call_makes_it_an_answer() -> None:
    text = ' {"name": "now", "arguments": {}}'
    assert read(plan(PLAIN), text) == Reply(text)


# -- truncated ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_that_is_cut_is_what_was_written_of_it(form: ToolFormat, choice: str) -> None:
    whole = written(form, [("weather", '{"city": "Rome"}')])
    text = whole[: whole.index("Ro") + 2]
    reply = read(plan(form, choice=choice), text)
    assert reply == Reply(None, (ToolRequest("call_0", "weather", '{"city": "Ro'),))
    assert reply.finish_reason(FinishReason.LENGTH) == "length"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_call_that_is_cut_before_its_arguments_is_not_lost(form: ToolFormat) -> None:
    whole = written(form, [("weather", '{"city": "Rome"}')])
    for length in range(1, whole.index("Rome")):
        reply = read(plan(form), whole[:length])
        assert reply.content == whole[:length] or reply.calls


def test_nothing_written_is_an_empty_content() -> None:
    assert read(plan(PLAIN), "") == Reply("")
    assert read(ReplyPlan(None), "") == Reply("")
    assert Reply("").finish_reason(FinishReason.STOP) == "stop"


# -- reasoning ---------------------------------------------------------------------------------------------------------


def test_reasoning_is_told_from_the_answer() -> None:
    for is_open in (False, True):
        made = plan_reply(chat_template="", reasoning=Reasoning(THINKS.form, is_open=is_open))
        assert made.spec == Reasoned("</think>", None, begin="" if is_open else "<think>")
        text = ("" if is_open else "<think>") + "\nhm <b\n</think>\n\nHello"
        assert read(made, text) == Reply("Hello", reasoning="\nhm <b\n")
        assert read(made, text[: text.index("ink>\n\n")]) == Reply("", reasoning="\nhm <b\n</th")


@pytest.mark.parametrize("form", [PLAIN, tool_format("hermes"), tool_format("mistral")], ids=lambda form: form.name)
def test_reasoning_stands_before_calls_and_answers(form: ToolFormat) -> None:
    rng = random.Random(form.name)
    made = plan(form, answer=PERSON, reasoning=THINKS, thinking_budget=6)
    assert made.spec is not None
    constraint: Constraint = compile(made.spec, BYTES)
    for _ in range(6):
        reply = read(made, drawn(constraint, rng, 150))
        assert reply.reasoning is not None
        if reply.calls:
            assert reply.content is None
        else:
            jsonschema.validate(json.loads(reply.content or ""), PERSON_SCHEMA)


def test_where_the_model_goes_on_is_told_from_the_prompt() -> None:
    form = THINKS.form

    def behind(*pieces: TextPiece) -> Reasoning | None:
        return reasoning_behind(form, pieces)

    assert behind(TextPiece("<|im_start|>assistant\n", special=True)) == Reasoning(form, is_open=False)
    assert behind(TextPiece("<|im_start|>assistant\n<think>\n", special=True)) == Reasoning(form, is_open=True)
    assert behind(TextPiece("assistant\n<think>\n\n</think>\n\n", special=True)) is None
    assert behind(TextPiece("assistant\n", special=True), TextPiece("I said <think>")) is None
    assert reasoning_behind(None, [TextPiece("assistant\n", special=True)]) is None


# -- streaming ---------------------------------------------------------------------------------------------------------

PARTS = [
    "Hi", " ", "\n", "<", "{", "}", '"', "<think>", "</think>", "\n\n", '{"name": "', "now", '", "arguments": ',
    '{"city": "Rome"}', "<tool_call>", "\n</tool_call>", "[TOOL_CALLS]", " [", "]", '", "parameters": ', "[ARGS]",
    "<|python_tag|>", "<|channel|>", "final<|message|>", "commentary to=functions.", " <|constrain|>json<|message|>",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def cut(text: str, places: list[int]) -> list[str]:
    at = [0, *sorted(min(p, len(text)) for p in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    choice=st.sampled_from(["none", "auto", "required", "now"]),
    answer=st.sampled_from([None, PERSON]),
    reasoning=st.sampled_from([None, THINKS, replace(THINKS, is_open=True)]),
    begin=st.sampled_from(["", *(written(form, [("now", '{"a": 1}')]) for form in FORMS)]),
    text=TEXTS,
    places=CUTS,
)
def test_the_deltas_do_not_depend_on_the_pieces(
    form: ToolFormat,
    choice: str,
    answer: Spec | None,
    reasoning: Reasoning | None,
    begin: str,
    text: str,
    places: list[int],
) -> None:
    made = plan(form, choice=choice, answer=answer, reasoning=reasoning)
    whole, reply = deltas_of(made, [begin + text])
    parts, streamed = deltas_of(made, cut(begin + text, places))
    letters, _ = deltas_of(made, list(begin + text))
    assert parts == letters == whole
    assert streamed == reply == read(made, begin + text)
    assert joined(whole) == replace(reply, reasoning=reply.reasoning or "")


def test_text_is_handed_out_as_soon_as_it_is_sure() -> None:
    reader = ReplyReader(plan(PLAIN), new_id=ids())
    assert reader.feed("H") == [ContentDelta("H")]
    assert reader.feed("ello") == [ContentDelta("ello")]
    reader = ReplyReader(plan(PLAIN), new_id=ids())
    assert reader.feed('{"name": "wea') == []
    assert reader.feed('ther", "arguments": {"ci') == [CallStart(0, "call_0", "weather"), CallArguments(0, '{"ci')]
    assert reader.feed('ty": 1}') == [CallArguments(0, 'ty": 1}')]
    assert reader.feed("}") == reader.finish() == []


def test_ids_of_calls_are_their_own() -> None:
    made = {new_call_id() for _ in range(100)}
    assert len(made) == 100
    assert all(len(i) == 29 and i.startswith("call_") for i in made)


# -- response_format and its kin ---------------------------------------------------------------------------------------

TAG = {
    "type": "structural_tag",
    "triggers": ["<f"],
    "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}],
}
LAX = SchemaOptions(strict=False)


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, **more}}


@pytest.mark.parametrize(
    ("response_format", "spec"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonSchema.of({"type": "object"})),
        ({"type": "json_object", "schema": PERSON_SCHEMA}, JsonSchema.of(PERSON_SCHEMA, LAX)),
        (named(PERSON_SCHEMA, strict=True), PERSON),
        (named(PERSON_SCHEMA, strict=False), JsonSchema.of(PERSON_SCHEMA, LAX)),
        (named(PERSON_SCHEMA), JsonSchema.of(PERSON_SCHEMA, LAX)),
        ({"type": "json_schema", "name": "person", "schema": PERSON_SCHEMA, "strict": True}, PERSON),
        ({"type": "regex", "pattern": "a+"}, Regex("a+")),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, Grammar('root ::= "a"')),
        ({"type": "choices", "choices": ["a", "b"]}, Choices(("a", "b"))),
    ],
)
def test_response_formats(response_format: Any, spec: Spec | None) -> None:
    assert answer_spec(response_format, {}) == spec


def test_a_structural_tag_is_a_response_format() -> None:
    assert isinstance(answer_spec(TAG, {}), Tagged)
    assert answer_spec(None, {"structured_outputs": {"structural_tag": json.dumps(TAG)}}) == answer_spec(TAG, {})


@pytest.mark.parametrize(
    ("extensions", "spec"),
    [
        ({"regex": "a+"}, Regex("a+")),
        ({"ebnf": 'root ::= "a"'}, Grammar('root ::= "a"')),
        ({"choices": ["a"]}, Choices(("a",))),
        ({"json_schema": PERSON_SCHEMA}, PERSON),
        ({"json_schema": json.dumps(PERSON_SCHEMA)}, PERSON),
        ({"guided_json": PERSON_SCHEMA}, PERSON),
        ({"guided_regex": "a+"}, Regex("a+")),
        ({"guided_choice": ["a", "b"]}, Choices(("a", "b"))),
        ({"guided_grammar": 'root ::= "a"'}, Grammar('root ::= "a"')),
        ({"structured_outputs": {"json": PERSON_SCHEMA, "regex": None, "json_object": False}}, PERSON),
        ({"structured_outputs": {"regex": "a+", "disable_fallback": True}}, Regex("a+")),
        ({"structured_outputs": {"choice": ["a"]}}, Choices(("a",))),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar('root ::= "a"')),
        ({"structured_outputs": {"json_object": True}}, JsonSchema.of({"type": "object"})),
        ({"regex": None, "guided_decoding_backend": "xgrammar", "user": "x"}, None),
    ],
)
def test_extensions(extensions: dict[str, Any], spec: Spec | None) -> None:
    assert answer_spec(None, extensions) == spec
    assert answer_spec({"type": "text"}, extensions) == spec


@pytest.mark.parametrize(
    ("response_format", "extensions", "names"),
    [
        ({"type": "yaml"}, {}, "response_format.type"),
        ({}, {}, "response_format.type"),
        ({"type": "json_schema"}, {}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, {}, "json_object"),
        (named(5), {}, "response_format.json_schema.schema"),
        (named({}, strict="yes"), {}, "response_format.json_schema.strict"),
        ({"type": "regex"}, {}, "response_format.pattern"),
        ({"type": "structural_tag", "triggers": 5, "structures": 5}, {}, "structures"),
        ({"type": "structural_tag", "format": {"type": "or", "elements": 5}}, {}, "elements"),
        ({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<"], "tags": 5}}, {}, "tags"),
        ({"type": "json_object"}, {"regex": "a"}, "response_format and regex"),
        (None, {"regex": "a", "guided_json": {}}, "regex and guided_json"),
        (None, {"regex": 5}, "regex"),
        (None, {"regex": ""}, "regex"),
        (None, {"choices": "abc"}, "choices"),
        (None, {"choices": []}, "choices"),
        (None, {"guided_json": "{"}, "guided_json"),
        (None, {"structured_outputs": "x"}, "structured_outputs"),
        (None, {"structured_outputs": {}}, "structured_outputs"),
        (
            None,
            {"structured_outputs": {"json": {}, "regex": "a"}},
            "structured_outputs.json and structured_outputs.regex",
        ),
        (None, {"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object"),
    ],
)
def test_what_is_no_constraint_is_refused_by_its_field(
    response_format: Any, extensions: dict[str, Any], names: str
) -> None:
    with pytest.raises(InvalidOption, match=names):
        answer_spec(response_format, extensions)


@pytest.mark.parametrize(
    ("extensions", "says"),
    [
        ({"structured_outputs": {"whitespace_pattern": " *", "json": {}}}, "whitespace_pattern"),
        ({"structured_outputs": {"xml": "a"}}, "known are json, regex, choice"),
        ({"guided_xml": "a"}, "guided_regex"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ],
)
def test_a_constraint_that_nobody_knows_says_which_there_are(extensions: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedConstraint, match=says):
        answer_spec(None, extensions)


def test_the_field_of_another_api_is_named() -> None:
    with pytest.raises(InvalidOption, match=r"text\.format\.type"):
        answer_spec({"type": "yaml"}, {}, field="text.format")


def test_a_tools_name_that_is_in_another_one_is_told_from_it() -> None:
    tools = [ToolSchema(name, "", JsonSchema.of({"type": "object"})) for name in ("a", "ab")]
    for form in FORMS:
        for name in ("a", "ab"):
            reply = read(plan(form, tools=tools, answer=PERSON), written(form, [(name, "{}")]))
            assert [call.name for call in reply.calls] == [name]
