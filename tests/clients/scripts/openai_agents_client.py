"""openai-agents: a tool loop that ends in an output type, by chat completions and by responses."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checking import Suite, server
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

suite = Suite("openai-agents", "openai")
set_tracing_disabled(True)
calls: list[str] = []
MUST: Any = {"tool_choice": "required"}


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


@function_tool
def capital(country: Literal["France", "Italy"]) -> str:
    """The capital of a country."""
    calls.append(country)
    return {"France": "Paris", "Italy": "Rome"}[country]


@function_tool(is_enabled=lambda context, agent: not calls)
def capital_once(country: Literal["France", "Italy"]) -> str:
    """The capital of a country."""
    calls.append(country)
    return {"France": "Paris", "Italy": "Rome"}[country]


async def models() -> AsyncIterator[Any]:
    # A client belongs to one event loop, and every check has its own.
    async with AsyncOpenAI(base_url=server.v1, api_key=server.sent_key, max_retries=0) as client:
        yield OpenAIChatCompletionsModel(model=server.model, openai_client=client)
        yield OpenAIResponsesModel(model=server.model, openai_client=client)


def agent(model: Any, **options: Any) -> Any:
    wanted = {"temperature": 0, "max_tokens": 80, **options.pop("settings", {})}
    return Agent(
        name="clerk", instructions="You are brief.", model=model, model_settings=ModelSettings(**wanted), **options
    )


@suite.check
async def an_agent_answers() -> None:
    async for model in models():
        result = await Runner.run(agent(model, settings={"max_tokens": 16}), "Name a colour.")
        assert isinstance(result.final_output, str)
        assert result.final_output
        assert result.context_wrapper.usage.output_tokens >= 1


@suite.check
async def a_typed_answer() -> None:
    async for model in models():
        result = await Runner.run(agent(model, output_type=Person), "Invent a person.")
        assert isinstance(result.final_output, Person)


@suite.check
async def a_tool_loop_with_an_output_type() -> str:
    """The first turn must call the tool, which is then put away, so that the second writes the output."""
    told = []
    async for model in models():
        calls.clear()
        clerk = agent(model, tools=[capital_once], output_type=Person, settings=MUST)
        result = await Runner.run(clerk, "What is the capital of Italy? Then invent a person.", max_turns=2)
        assert calls
        assert isinstance(result.final_output, Person)
        kinds = [item.type for item in result.new_items]
        assert kinds[0] == "tool_call_item"
        assert kinds[-1] == "message_output_item"
        told.append(f"{len(calls)} calls, then {result.final_output!r}")
    return "; ".join(told)


@suite.check
async def a_tool_loop_free_to_end() -> str:
    """Tool and output type stay side by side, one grammar: the model decides, by its seed, when to write the output."""
    told = []
    async for model in models():
        ends = []
        for seed in range(4):
            calls.clear()
            drawn = {**MUST, "temperature": 1.2, "extra_body": {"seed": seed}, "parallel_tool_calls": False}
            clerk = agent(model, tools=[capital], output_type=Person, settings=drawn)
            try:
                result = await Runner.run(clerk, "What is the capital of Italy? Then invent a person.", max_turns=4)
            except MaxTurnsExceeded:
                assert len(calls) >= 4  # every turn was a valid call
                continue
            assert calls
            assert isinstance(result.final_output, Person)
            ends.append(len(calls))
        assert ends, "no seed of four came to an output"
        told.append(f"{len(ends)} of 4 ended, after {ends} calls")
    return "; ".join(told)


@suite.check
async def a_named_tool_ends_the_run() -> None:
    async for model in models():
        calls.clear()
        clerk = agent(
            model, tools=[capital], tool_use_behavior="stop_on_first_tool", settings={"tool_choice": "capital"}
        )
        result = await Runner.run(clerk, "What is the capital of Italy?")
        assert len(calls) >= 1
        assert result.final_output in ("Paris", "Rome")


@suite.check
async def a_loop_streams() -> None:
    async for model in models():
        calls.clear()
        clerk = agent(model, tools=[capital], tool_use_behavior="stop_on_first_tool", settings=MUST)
        run = Runner.run_streamed(clerk, "What is the capital of Italy?")
        kinds = [event.type async for event in run.stream_events()]
        assert "raw_response_event" in kinds
        assert "run_item_stream_event" in kinds
        assert calls
        assert run.final_output in ("Paris", "Rome")


@suite.check
async def a_handoff() -> str:
    told = []
    async for model in models():
        second = agent(model, output_type=Person)
        second.name = "inventor"
        first = agent(model, handoffs=[second], settings=MUST)
        result = await Runner.run(first, "Invent a person.", max_turns=4)
        assert isinstance(result.final_output, Person)
        assert result.last_agent.name == "inventor"
        told.append(result.final_output.name)
    return str(told)


suite.main()
