"""Tools in free text: each family's own format, replies as values, text that streams without markup."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, Field

import palmette as pm
from palmette.errors import VerificationError
from palmette.formats import TOOL_FORMATS
from palmette.interpreter.backends.local import Runtime
from palmette.ir import Constraint, Gen, dumps, loads
from palmette.lang.tool_use import form_of
from palmette.runtime import byte_tokenizer
from palmette.runtime.models.tiny import tiny_model
from palmette.specs import Reasoned, Tagged
from palmette.testing import Reply, ScriptedBackend
from palmette.types import GenerateRequest

HERMES = "{# tool calls stand in <tool_call> #}"
LLAMA = """{# <|start_header_id|> {"name": ..., "parameters": ...} #}"""


@pm.tool
def weather(city: Annotated[str, Field(max_length=12)], day: date = date(2024, 1, 1)) -> str:
    """The weather of a city."""
    return f"sunny in {city} on {day:%d %B}"


def double(n: Annotated[int, Field(ge=0, le=99)]) -> int:
    return 2 * n


def _even(n: int) -> int:
    if n % 2:
        raise ValueError("it is odd")
    return n


def halve(n: Annotated[int, AfterValidator(_even)]) -> int:
    return n // 2


ROME = '{"name": "weather", "arguments": {"city": "Rome", "day": "2024-05-01"}}'
DOUBLE = '{"name": "double", "arguments": {"n": 4}}'
BOTH = f"Let me look.\n<tool_call>\n{ROME}\n</tool_call>\n<tool_call>\n{DOUBLE}\n</tool_call>"


@pm.function
def use(s: pm.State, **options: Any) -> Any:
    s += "q" + pm.gen("x", **{"tools": [weather, double], "max_tokens": 400, **options})
    return s["x"]


def hermes(*replies: str | Reply, **options: Any) -> ScriptedBackend:
    return ScriptedBackend(list(replies), chat_template=HERMES, **options)


def test_text_and_calls_are_told_apart() -> None:
    reply = use(backend=hermes(BOTH))
    assert isinstance(reply, pm.ToolReply)
    assert reply.text == "Let me look.\n"
    assert [(call.name, call.arguments) for call in reply.calls] == [
        ("weather", {"city": "Rome", "day": date(2024, 5, 1)}),
        ("double", {"n": 4}),
    ]
    assert [call.call() for call in reply.calls] == ["sunny in Rome on 01 May", 8]
    assert use(backend=hermes("No need.")) == pm.ToolReply("No need.", ())


def test_markup_is_not_streamed_and_stays_in_the_state() -> None:
    for piece in (1, 3, 50):
        state = use.run(stream=True, backend=hermes(BOTH, piece=piece))
        assert "".join(state.stream("x")) == "".join(state.text_iter("x")) == "Let me look.\n"
        assert state.text_of("x") == BOTH
        assert state.text() == "q" + BOTH
        assert len(state["x"].calls) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tool_choice": "required"}, "No need."),
        ({"tool_choice": weather}, f"<tool_call>\n{DOUBLE}\n</tool_call>"),
        ({"tool_choice": double}, f"<tool_call>\n{ROME}\n</tool_call>"),
        ({"tool_choice": "double"}, "text"),
        ({"parallel_tool_calls": False}, BOTH),
        ({}, '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
        ({}, "<tool_call>\nnot a call"),
        ({"tools": double}, f"<tool_call>\n{ROME}\n</tool_call>"),
    ],
)
def test_what_was_not_asked_for_cannot_be_written(options: dict[str, Any], text: str) -> None:
    with pytest.raises(pm.RequestError, match="does not satisfy"):
        use(backend=hermes(text), **options)


def test_a_choice_names_a_tool_in_three_ways() -> None:
    for choice in (double, "double", pm.tool(double)):
        reply = use(tool_choice=choice, backend=hermes(f"<tool_call>\n{DOUBLE}\n</tool_call>"))
        assert [call.name for call in reply.calls] == ["double"]


@pytest.mark.parametrize("chat_template", ["", "{{ messages }}"])
def test_a_template_that_knows_no_calls_gets_plain_json(chat_template: str) -> None:
    def reply(text: str, **options: Any) -> Any:
        return use(backend=ScriptedBackend([text], chat_template=chat_template), **options)

    assert reply(ROME).calls[0].arguments["city"] == "Rome"
    assert reply(ROME).text == ""
    assert reply("It is warm: {}").text == "It is warm: {}"
    assert reply(DOUBLE, tool_choice="required").calls[0].name == "double"
    indented = f" {DOUBLE}".replace("double", "other")  # free text, whatever it looks like: its first character says so
    assert reply(indented) == pm.ToolReply(indented)


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=lambda form: form.name)
def test_every_family_calls_in_its_own_format(form: Any) -> None:
    template = "{# " + " ".join(form.markers) + " #}"
    assert form_of(template) is form
    name = '{"name": "double", "' + form.arguments_key + '": ' if form.name_end is None else "double" + form.name_end
    closing = "}" if form.name_end is None else ""
    text = f'{form.lead}{name}{{"n": 4}}{closing}{form.call_end}{form.section_end}'
    backend = ScriptedBackend([text], piece=2, chat_template=template)
    state = use.run(stream=True, backend=backend, tool_choice="required")
    assert [(call.name, call.arguments) for call in state["x"].calls] == [("double", {"n": 4})]
    assert "".join(state.text_iter("x")) == ""


def test_reasoning_comes_first() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.separate_reasoning(pm.gen("x", tools=[double]), "qwen3")

    backend = hermes(f"<think>\n4 times <2>?</think>\n\nSo:\n<tool_call>\n{DOUBLE}\n</tool_call>", piece=2)
    state = program.run(stream=True, backend=backend)
    assert state["x_reasoning_content"] == "4 times <2>?"
    assert state["x"].text == "".join(state.text_iter("x")) == "So:\n"
    assert state["x"].calls[0].call() == 8
    (request,) = backend.requests
    assert isinstance(request, GenerateRequest)
    assert isinstance(request.constraint, Reasoned)
    assert isinstance(request.constraint.content, Tagged)


def test_a_call_that_is_no_value_is_an_error_with_the_text() -> None:
    text = '<tool_call>\n{"name": "halve", "arguments": {"n": 3}}\n</tool_call>'
    with pytest.raises(pm.InvalidValue, match="call of halve: n: Value error, it is odd") as caught:
        use(tools=halve, backend=hermes(text))
    assert caught.value.text == text
    for stop in ('"n', '"arg', "4", "</tool"):
        with pytest.raises(pm.Truncated, match="cut the value"):
            use(stop=stop, backend=hermes(f"<tool_call>\n{DOUBLE}\n</tool_call>"))
        if stop != "</tool":
            with pytest.raises(pm.Truncated, match="cut the value"):
                use(stop=stop, backend=ScriptedBackend([DOUBLE]))
    with pytest.raises(pm.Truncated):
        use(backend=hermes(Reply(f"<tool_call>\n{DOUBLE}\n</tool_call>", steered=True)))


def test_a_conversation_goes_on_behind_a_call() -> None:
    @pm.function
    def agent(s: pm.State, question: str) -> str:
        s += pm.user(question)
        while True:
            with s.assistant():
                reply = s.gen(tools=[double])
            if not reply.calls:
                return str(reply.text)
            for call in reply.calls:
                s += pm.tool_result(call.call())

    state = agent.run("2 * 4?", backend=hermes(f"<tool_call>\n{DOUBLE}\n</tool_call>", "It is 8."))
    assert state.ret_value == "It is 8."
    assert [m["role"] for m in state.messages()] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": []}, "at least one"),
        ({"tools": [double, double]}, "name of its own"),
        ({"tools": [int]}, "functions or tools"),
        ({"tools": "double"}, "functions or tools"),
        ({"tools": [double], "tool_choice": "other"}, "auto, required, double"),
        ({"tools": [double], "tool_choice": halve}, "auto, required, double"),
        ({"tools": [double], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [double], "type": int}, "not together with type"),
        ({"tool_choice": "auto"}, "together with tools"),
        ({"parallel_tool_calls": True, "regex": "a"}, "together with tools"),
    ],
)
def test_tools_that_cannot_be_right_are_refused_on_their_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(pm.InvalidOption, match=message):
        pm.gen("x", **options)


def test_a_parameter_without_a_form_names_its_tool() -> None:
    def calls(back: complex) -> None:
        """Never called."""

    with pytest.raises(pm.UnsupportedConstraint, match=r"complex.*hole 'x'"):
        pm.gen("x", tools=[calls])


def test_a_backend_that_does_not_hold_a_model_to_tags_is_told_so() -> None:
    backend = hermes("a", constraints=("regex", "json_schema"))
    with pytest.raises(pm.UnsupportedConstraint, match="structural_tag, which it becomes"):
        use(backend=backend)
    assert backend.requests == []


def test_the_tools_of_a_hole_are_bound_when_it_is_loaded() -> None:
    graph = use.trace(tool_choice="required", parallel_tool_calls=False).graph
    data = dumps(graph)
    assert "tools=[weather, double] required" in str(use.trace(tool_choice="required"))
    made = pm.tool(double)
    assert loads(data, tools={"weather": weather, "double": made}) == graph
    with pytest.raises(VerificationError, match="'double' resolves to nothing"):
        loads(data, tools={"weather": weather})


def test_a_hole_that_was_built_by_hand_is_held_to_the_same() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q"
        s += Gen("x", constraint=Constraint("tools", "weather"))

    with pytest.raises(pm.InvalidOption, match="tools"):
        program.run(backend=hermes("a"))


# -- on the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["hermes", "llama3", "plain"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    template = {"hermes": HERMES, "llama3": LLAMA, "plain": None}[request.param]
    with Runtime(tiny_model(), chat_template=template, kv_tokens=1 << 14) as runtime:
        yield runtime


@pytest.mark.parametrize("choice", ["auto", "required", "double"])
def test_whatever_a_model_writes_is_a_reply(runtime: Runtime, choice: str) -> None:
    for seed in range(3):
        state = use.run(
            tool_choice=choice, max_tokens=150, temperature=1.5, seed=seed, on_budget="close", backend=runtime
        )
        reply = state["x"]
        assert isinstance(reply, pm.ToolReply)
        assert "".join(state.text_iter("x")) == reply.text
        if choice != "auto":
            assert reply.calls
            assert reply.text == ""
        if choice == "double":
            assert all(0 <= call.arguments["n"] <= 99 for call in reply.calls)


def test_marks_that_are_special_tokens_come_out_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    monkeypatch.setattr(byte_tokenizer, "SPECIAL", (*byte_tokenizer.SPECIAL, *marks))

    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.separate_reasoning(
            pm.gen("x", tools=[double], tool_choice="required", parallel_tool_calls=False, thinking_budget=3)
        )
        s += "n = " + pm.separate_reasoning(pm.gen("n", type=int, thinking_budget=3, token_healing=True))

    with Runtime(tiny_model(), chat_template=HERMES, kv_tokens=1 << 14) as runtime:
        special = runtime.get_tokenizer().special_tokens
        for seed in range(3):
            state = program.run(max_tokens=80, temperature=1.0, seed=seed, on_budget="close", backend=runtime)
            assert [call.name for call in state["x"].calls] == ["double"]
            assert state["x"].text == ""
            assert isinstance(state["n"], int)
            ids = state.token_ids()
            assert [ids.count(special[mark]) for mark in marks] == [1, 1, 2, 2]
            assert [state.text().count(mark) for mark in marks] == [1, 1, 2, 2]
            assert state.text().endswith(f"</think>\n\n{state['n']}")
