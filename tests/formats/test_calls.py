"""What `tool_spec` allows is what the parser reads, for every family, with its special tokens and without."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import jsonschema
import pytest

from palmette.errors import InvalidOption
from palmette.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ToolFormat,
    ToolSchema,
    detect,
    parse_calls,
    reasoning_format,
    tool_format,
    tool_spec,
)
from palmette.fsm.compile import Constraint, compile
from palmette.fsm.language import to_language
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import JsonSchema, Regex, Spec

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 7]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [ToolSchema(name, f"the {name}", JsonSchema.of(schema)) for name, schema in SCHEMAS.items()]
FORMATS = list(TOOL_FORMATS.values())
DEEPSEEK = tool_format("deepseek-v3.1")
MARKS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>", "</think>",
    "<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>",
    DEEPSEEK.section_begin, DEEPSEEK.section_end, DEEPSEEK.call_begin, DEEPSEEK.call_end, DEEPSEEK.name_end or "",
]  # fmt: skip
WORDS = [b" ", b"so", b"{", b'"', b'{"', b"<", b"name", b"weather", b"]", b"\n\n", b"city", b'": "', b'"}']


def vocabulary(*, special: bool) -> Vocabulary:
    """Every byte, some words, and the marks as special tokens if `special`."""
    marks = MARKS if special else []
    tokens = [b"", *[bytes([b]) for b in range(256)], *[w for w in WORDS if len(w) > 1]]
    ids: Mapping[int, str] = {len(tokens) + n: mark for n, mark in enumerate(marks)}
    return Vocabulary([*tokens, *[b""] * len(marks)], eos_ids=[0], special=ids)


PLAIN, SPECIAL = vocabulary(special=False), vocabulary(special=True)


def text_of(constraint: Constraint, tokens: tuple[int, ...]) -> str:
    """The text of tokens, special ones as the template writes them."""
    names = {i: text.encode() for text, i in constraint.vocabulary.special.items()}
    return b"".join(names.get(t, constraint.vocabulary.tokens[t]) for t in tokens if t != 0).decode()


def drawn(constraint: Constraint, rng: random.Random, budget: int = 500) -> str:
    """A random message of at most `budget` tokens; forced ways and what leads to calls are taken more often."""
    matcher = constraint.matcher()
    left = max(budget, matcher.cost_to_accept())
    while not matcher.is_terminated:
        allowed = matcher.allowed(budget=left).tolist()
        rare = [t for t in allowed if t > 256 or (t == 0 and rng.random() < 0.3)]
        matcher.advance(rng.choice(rare if rare and rng.random() < 0.5 else allowed))
        left -= 1
    return text_of(constraint, matcher.tokens)


def accepts(spec: Spec, text: str, *, special: bool) -> bool:
    """Whether a text, its marks read as special tokens if `special`, satisfies `spec`."""
    matcher = compile(spec, SPECIAL if special else PLAIN).matcher()
    rest = text
    while rest:
        marks = [m for m in MARKS if special and rest.startswith(m)]
        if marks:
            fits = matcher.try_advance(SPECIAL.special[marks[0]])
            rest = rest[len(marks[0]) :]
        else:
            fits = matcher.advance_bytes(rest[0].encode())
            rest = rest[1:]
        if not fits:
            return False
    return matcher.is_accepting


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_message_under_the_mask_is_parsed_into_valid_calls(form: ToolFormat, special: bool) -> None:
    rng = random.Random(f"{form.name} {special}")
    known = SPECIAL if special else PLAIN
    found = several = 0
    for choice in ("required", "now", "auto"):
        for parallel in (True, False):
            constraint = compile(tool_spec(form, TOOLS, choice=choice, parallel=parallel), known)
            for _ in range(6):
                message = drawn(constraint, rng)
                content, calls = parse_calls(form, message)
                assert all(call.is_complete for call in calls), message
                for call in calls:
                    jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
                    assert choice in ("required", "auto", call.name)
                if choice != "auto":
                    assert calls
                    assert content == "", message
                assert len(calls) <= 1 or (parallel and form.parallel and choice != "now")
                found += len(calls)
                several += len(calls) > 1
    assert found > 10
    assert bool(several) == form.parallel


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_messages_as_the_templates_write_them_are_allowed(form: ToolFormat, special: bool) -> None:
    def call(name: str, arguments: str) -> str:
        if form.name_end is not None:
            return form.call_begin + name + form.name_end + arguments + form.call_end
        return f'{form.call_begin}{{"name": "{name}", "{form.arguments_key}": {arguments}}}{form.call_end}'

    one, two = call("weather", '{"city": "Oslo", "days": 7}'), call("now", "{}")
    single = form.section_begin + one + form.section_end
    double = form.section_begin + one + form.separator + two + form.section_end
    answer = form.answer_begin + "It rains < 3 mm."
    before = "" if form.answer_begin or not form.trigger else "Let me look. "
    auto, required = tool_spec(form, TOOLS), tool_spec(form, TOOLS, choice="required")
    assert accepts(auto, answer, special=special)
    assert accepts(auto, before + single, special=special)
    assert accepts(auto, before + double, special=special) == form.parallel
    assert accepts(required, single, special=special)
    assert not accepts(required, answer, special=special)
    assert not accepts(required, single.replace("Oslo", "Kristiania"), special=special)
    assert not accepts(auto, single.replace("Oslo", "Kristiania"), special=special)
    assert not accepts(tool_spec(form, TOOLS, choice="now"), single, special=special)
    assert not accepts(tool_spec(form, TOOLS, parallel=False), double, special=special)
    typed = tool_spec(form, TOOLS, answer=Regex("yes|no"))
    assert accepts(typed, form.answer_begin + "yes", special=special)
    assert accepts(typed, single, special=special)
    assert not accepts(typed, answer, special=special)
    if form.may_begin:
        assert accepts(required, form.may_begin + single, special=special)


@pytest.mark.parametrize("special", [False, True])
def test_reasoning_stands_before_calls_and_answers(special: bool) -> None:
    hermes, thinks = tool_format("hermes"), reasoning_format("qwen3")
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    spec = tool_spec(hermes, TOOLS, choice="required", reasoning=thinks)
    assert accepts(spec, "<think>\nhm, <tool_call> or not?</think>\n\n" + call, special=False)
    assert accepts(spec, "<think>\nhm</think>\n\n" + call, special=special)
    assert not accepts(spec, "<think>\nhm</think>" + call, special=special)
    assert not accepts(spec, call, special=special)
    is_open = tool_spec(hermes, TOOLS, choice="required", reasoning=thinks, is_open=True)
    assert accepts(is_open, "\nhm</think>\n\n" + call, special=special)
    assert thinks.is_open("<|im_start|>assistant\n<think>\n")
    assert not thinks.is_open("<|im_start|>assistant\n")
    free = tool_spec(hermes, TOOLS, reasoning=reasoning_format("deepseek-r1"))
    assert accepts(free, "hm</think>It is noon.", special=special)
    harmony = tool_spec(tool_format("gpt-oss"), TOOLS, reasoning=reasoning_format("gpt-oss"))
    for rest in ("final<|message|>noon", "commentary to=functions.now <|constrain|>json<|message|>{}"):
        message = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>" + rest
        assert accepts(harmony, message, special=special)


def test_a_thinking_budget_bounds_the_reasoning_before_calls() -> None:
    rng = random.Random(8)
    spec = tool_spec(
        tool_format("hermes"), TOOLS, choice="required", reasoning=reasoning_format("qwen3"), thinking_budget=9
    )
    constraint = compile(spec, SPECIAL)
    for _ in range(10):
        message = drawn(constraint, rng)
        thought = message.removeprefix("<think>").partition("</think>")[0]
        assert len(thought.encode()) <= 9 * max(map(len, WORDS))
        assert parse_calls(tool_format("hermes"), message)[1]


def test_rules_of_the_tools_schemas_stay_apart() -> None:
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
        "additionalProperties": False,
    }
    chain = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    tools = [ToolSchema(n, "", JsonSchema.of(s)) for n, s in (("tree", tree), ("chain", chain))]
    spec = tool_spec(tool_format("llama3"), tools, choice="required")
    for name, arguments, expected in [
        ("tree", '{"kids": [{}, {"kids": []}]}', True),
        ("chain", '{"next": {"next": {}}}', True),
        ("tree", '{"next": {}}', False),
        ("chain", '{"next": {"kids": []}}', False),
    ]:
        message = f'{{"name": "{name}", "parameters": {arguments}}}'
        assert accepts(spec, message, special=False) == expected, message


def test_what_cannot_be_meant_is_refused() -> None:
    form = tool_format("hermes")
    with pytest.raises(InvalidOption, match="tools"):
        tool_spec(form, [])
    with pytest.raises(InvalidOption, match="tools"):
        tool_spec(form, [TOOLS[0], TOOLS[0]])
    with pytest.raises(InvalidOption, match="weather, now"):
        tool_spec(form, TOOLS, choice="none")
    with pytest.raises(InvalidOption, match="thinking_budget"):
        tool_spec(form, TOOLS, thinking_budget=3)
    for name in ("auto", "", 'a"b', "x" * 65):
        with pytest.raises(InvalidOption, match="name"):
            ToolSchema(name, "", JsonSchema("{}"))
    with pytest.raises(InvalidOption, match="hermes"):
        tool_format("unknown")
    with pytest.raises(InvalidOption, match="qwen3"):
        reasoning_format("unknown")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('{%- for tool_call in message.tool_calls %}{{- \'<tool_call>\\n{"name": "\' }}{%- endfor %}', "hermes"),
        ("{{- '<tool_call>\\n<function=' + name + '>' }}", None),
        ("{{ '<tool_call>' + name }}<arg_key>{{ k }}</arg_key>", None),
        ("{{- '<|start_header_id|>assistant' }}{{- '\"parameters\": ' }}", "llama3"),
        ("{{- '<|start_header_id|>assistant' }}", None),
        ('{{- "[TOOL_CALLS] [" }}', "mistral"),
        ('{{- "[TOOL_CALLS][" }}', "mistral-tekken"),
        ("{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", "mistral-args"),
        ("{{ '<|channel|>commentary to=functions.' + name }}", "gpt-oss"),
        ("{{ '<\uff5ctool\u2581calls\u2581begin\uff5c>' + '\\n```json\\n' }}", "deepseek-v3"),
        ("{{ '<\uff5ctool\u2581calls\u2581begin\uff5c>' }}", "deepseek-v3.1"),
        ("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}", None),
        ("", None),
    ],
)
def test_a_chat_template_tells_the_format(template: str, name: str | None) -> None:
    found = detect(template)
    assert (found and found.name) == name


def test_the_data_is_consistent() -> None:
    for form in FORMATS:
        assert form.lead.startswith(form.trigger), form.name
        assert tool_format(form.name.upper()) is form
        to_language(tool_spec(form, TOOLS))
    for thinks in REASONING_FORMATS.values():
        assert thinks.begin
        assert thinks.end
