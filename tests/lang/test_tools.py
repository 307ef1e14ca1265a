"""Tools: what the model is shown, what it may write, and what its call comes to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

import palmette as pm
from palmette.errors import TemplateError
from palmette.ir import Tool as ToolNode
from palmette.lang.types import typed
from palmette.testing import ScriptedBackend
from palmette.types import Message, RolePieces
from tests.lang.walks import accepts, compiled


class Answer(BaseModel):
    answer: str


@pm.tool
def weather(city: str, day: date = date(2024, 1, 1)) -> str:
    """The weather of a city.

    One line is enough.
    """
    return f"sunny in {city} on {day:%d %B}"


@pm.tool(name="web-search", description="Look it up.")
async def search(query: Annotated[str, Field(description="words")], limit: int = 3) -> list[str]:
    return [query] * limit


def add(a: int, b: int) -> int:
    return a + b


CALL = '{"name": "weather", "arguments": {"city": "Rome", "day": "2024-05-01"}}'


def test_a_tool_is_still_its_function() -> None:
    assert weather("Oslo") == "sunny in Oslo on 01 January"
    assert weather.__name__ == "weather"
    assert asyncio.run(search("x", limit=1)) == ["x"]
    assert repr(weather) == "<tool weather>"


def test_a_tool_describes_itself_for_the_model() -> None:
    assert json.loads(weather.signature) == {
        "name": "weather",
        "description": "The weather of a city.\n\nOne line is enough.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "day": {"type": "string", "format": "date"},
            },
            "required": ["city"],
        },
    }
    shown = json.loads(search.signature)
    assert shown["name"] == "web-search"
    assert shown["description"] == "Look it up."
    assert shown["parameters"]["properties"]["query"]["description"] == "words"


@pytest.mark.parametrize(
    ("type_", "text", "name", "arguments"),
    [
        (pm.ToolCall[weather], CALL, "weather", {"city": "Rome", "day": date(2024, 5, 1)}),
        (pm.ToolCall[weather, search], CALL, "weather", {"city": "Rome", "day": date(2024, 5, 1)}),
        (pm.ToolCall[weather, search], '{"name": "web-search", "arguments": {"query": "q"}}', "web-search",
         {"query": "q"}),
        (pm.ToolCall[add], '{"name": "add", "arguments": {"a": 1, "b": 2}}', "add", {"a": 1, "b": 2}),
        (pm.ToolCall[weather] | Answer, CALL, "weather", {"city": "Rome", "day": date(2024, 5, 1)}),
    ],
)  # fmt: skip
def test_a_call_is_held_to_the_parameters_and_read_back(
    type_: Any, text: str, name: str, arguments: dict[str, Any]
) -> None:
    spec = typed(type_)
    assert accepts(compiled(spec.spec), text)
    call = spec.parse(text)
    assert isinstance(call, pm.ToolCall)
    assert call.name == name
    assert call.arguments == arguments


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "other", "arguments": {}}',
        '{"name": "weather", "arguments": {}}',
        '{"name": "weather", "arguments": {"city": 3}}',
        '{"name": "weather", "arguments": {"city": "x", "wind": 1}}',
        '{"arguments": {"city": "x"}}',
        '{"name": "web-search", "arguments": {"city": "x"}}',
    ],
)
def test_no_other_call_can_be_written(text: str) -> None:
    assert not accepts(compiled(typed(pm.ToolCall[weather, search]).spec), text)


def test_calling_what_the_model_asked_for() -> None:
    call = typed(pm.ToolCall[weather]).parse(CALL)
    assert call.call() == "sunny in Rome on 01 May"
    assert asyncio.run(call.acall()) == "sunny in Rome on 01 May"
    found = typed(pm.ToolCall[search]).parse('{"name": "web-search", "arguments": {"query": "q", "limit": 2}}')
    with pytest.raises(pm.UsageError, match=r"await call\.acall"):
        found.call()
    assert asyncio.run(found.acall()) == ["q", "q"]


def test_the_same_functions_make_the_same_type() -> None:
    assert typed(pm.ToolCall[add]) is typed(pm.ToolCall[add])
    assert pm.tool(add) == pm.tool(add)
    assert pm.tool(add) != weather


def test_a_conversation_with_tools() -> None:
    @pm.function
    def agent(s: pm.State, question: str) -> str:
        s += pm.system("Tools:\n" + weather + "\n" + search)
        s += pm.user(question)
        while True:
            with s.assistant():
                step = s.gen(pm.ToolCall[weather, search] | Answer)
            if isinstance(step, Answer):
                return step.answer
            s += pm.tool_result(step.call())

    backend = ScriptedBackend([CALL, '{"answer": "sunny"}'])
    state = agent.run("Rome?", backend=backend)
    assert state.ret_value == "sunny"
    assert [(m["role"], m["content"]) for m in state.messages()] == [
        ("system", f"Tools:\n{weather.signature}\n{search.signature}"),
        ("user", "Rome?"),
        ("assistant", CALL),
        ("tool", "sunny in Rome on 01 May"),
        ("assistant", '{"answer": "sunny"}'),
    ]


def test_results_are_text_or_json() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        for value in ("plain", Answer(answer="a"), [1, None], {"day": date(2024, 5, 1)}):
            s += pm.tool_result(value)
        s += pm.assistant(pm.gen("x"))

    contents = [m["content"] for m in program.run(backend=ScriptedBackend(["ok"])).messages()]
    assert contents == ["plain", '{"answer":"a"}', "[1,null]", '{"day":"2024-05-01"}', "ok"]
    with pytest.raises(pm.InvalidOption, match="tool_result"):
        pm.tool_result(object())


class NoToolRole(ScriptedBackend):
    """Its template writes system, user and assistant messages only."""

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        if role == "tool" or any(m.role == "tool" for m in messages):
            raise TemplateError("no such role")
        return super().role_pieces(messages, role)


def test_a_template_without_the_role_gets_the_result_from_the_user() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.user("q") + pm.assistant("call") + pm.tool_result("42") + pm.assistant(pm.gen("x"))

    messages = program.run(backend=NoToolRole(["ok"])).messages()
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]


def test_a_tool_is_in_the_trace_by_name_and_signature() -> None:
    @pm.function
    def program(s: pm.State, q: str) -> None:
        s += "Tools: " + weather + q + pm.gen("call", type=pm.ToolCall[weather])

    trace = program.trace()
    assert ToolNode("weather", weather.signature) in trace.nodes
    assert "tool weather" in str(trace)
    assert "ToolCall[weather]" in str(trace)
    trace.verify()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pm.tool(lambda *args: None), "name"),
        (lambda: pm.tool(name="any")(lambda *args: None), "passed by name"),
        (lambda: pm.tool(name="any")(lambda a, /: None), "passed by name"),
        (lambda: pm.tool(name="two words")(add), "letters, digits"),
        (lambda: pm.ToolCall[add, add], "name of its own"),
        (lambda: pm.ToolCall[int], "functions or tools"),
        (lambda: pm.gen(pm.ToolCall), "ToolCall"),
    ],
)
def test_what_is_no_tool_is_refused(make: Any, message: str) -> None:
    with pytest.raises(pm.InvalidOption, match=message):
        make()


def test_an_annotation_that_means_nothing_is_named() -> None:
    def broken(x: NoSuchType) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Never called."""

    with pytest.raises(pm.InvalidOption, match="NoSuchType"):
        pm.gen(pm.ToolCall[broken])
