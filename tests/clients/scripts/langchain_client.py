"""langchain-openai: invoke, stream, both structured-output methods, tools."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
from typing import Any, Literal

from checking import Suite, server
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

suite = Suite("langchain-openai", "langchain-core", "openai")
ASK = [SystemMessage("You are brief."), HumanMessage("Name a colour.")]


def model(**options: Any) -> Any:
    return ChatOpenAI(
        model=server.model,
        base_url=server.v1,
        api_key=server.sent_key,
        temperature=0,
        max_retries=0,
        timeout=120,
        **{"max_tokens": 16, **options},
    )


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


@tool
def weather(city: Literal["Paris", "Rome"], days: int) -> str:
    """The weather of a city."""
    return f"{city}: sunny for {days} days"


@suite.check
def invoke_answers() -> str:
    answer = model().invoke(ASK)
    assert isinstance(answer, AIMessage)
    assert answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return repr(answer.content)


@suite.check
def a_stream_adds_up_to_the_answer() -> None:
    chunks = list(model(stream_usage=True).stream(ASK))
    whole = model().invoke(ASK)
    assert "".join(c.content for c in chunks) == whole.content
    assert len(chunks) > 2
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@suite.check
def structured_output_by_json_schema() -> str:
    found = model(max_tokens=60).with_structured_output(Person, method="json_schema").invoke(ASK)
    assert isinstance(found, Person)
    raw = model(max_tokens=60).with_structured_output(Person, method="json_schema", include_raw=True).invoke(ASK)
    assert raw["parsed"] == found
    assert raw["parsing_error"] is None
    return repr(found)


@suite.check
def structured_output_by_function_calling() -> str:
    found = model(max_tokens=80).with_structured_output(Person, method="function_calling").invoke(ASK)
    assert isinstance(found, Person)
    strict = model(max_tokens=80).with_structured_output(Person, method="function_calling", strict=True).invoke(ASK)
    assert isinstance(strict, Person)
    return repr(found)


@suite.check
def structured_output_by_json_mode() -> None:
    found = model(max_tokens=60).with_structured_output(None, method="json_mode").invoke("Write JSON.")
    assert isinstance(found, dict)


@suite.check
def structured_output_streams() -> None:
    parts = list(model(max_tokens=60).with_structured_output(Person, method="json_schema").stream(ASK))
    assert isinstance(parts[-1], Person)


@suite.check
def bound_tools_are_called() -> str:
    bound = model(max_tokens=80).bind_tools([weather], tool_choice="any")
    answer = bound.invoke("What is the weather in Rome?")
    assert answer.tool_calls
    assert not answer.invalid_tool_calls
    results = [weather.invoke(call) for call in answer.tool_calls]
    assert all(isinstance(r, ToolMessage) and "sunny" in r.content for r in results)
    after = model().bind_tools([weather], tool_choice="none").invoke([HumanMessage("Rome?"), answer, *results])
    assert after.content
    named = model(max_tokens=80).bind_tools([weather], tool_choice="weather").invoke("Rome?")
    assert {c["name"] for c in named.tool_calls} == {"weather"}
    return str(answer.tool_calls[0]["args"])


@suite.check
def streamed_tool_calls_add_up() -> None:
    bound = model(max_tokens=80).bind_tools([weather], tool_choice="any")
    whole = bound.invoke("Rome?")
    total: Any = None
    for chunk in bound.stream("Rome?"):
        total = chunk if total is None else total + chunk
    assert [(c["name"], c["args"]) for c in total.tool_calls] == [(c["name"], c["args"]) for c in whole.tool_calls]


@suite.check
def batches_and_coroutines() -> None:
    one = model().invoke(ASK).content
    assert [a.content for a in model().batch([ASK] * 4)] == [one] * 4

    async def ask() -> Any:
        return await model().ainvoke(ASK)

    assert asyncio.run(ask()).content == one


@suite.check
def the_responses_api_answers() -> None:
    answer = model(use_responses_api=True).invoke(ASK)
    assert answer.text
    found = (
        model(use_responses_api=True, max_tokens=60).with_structured_output(Person, method="json_schema").invoke(ASK)
    )
    assert isinstance(found, Person)


suite.main()
