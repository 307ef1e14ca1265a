"""pydantic-ai: agents with a typed output (by tool and native), with a tool, streaming."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

from typing import Any, Literal

from checking import Suite, server
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, Tool, ToolOutput
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

suite = Suite("pydantic-ai-slim", "openai")
provider = OpenAIProvider(base_url=server.v1, api_key=server.sent_key)
MODEL: Any = OpenAIChatModel(server.model, provider=provider)
RESPONSES: Any = OpenAIResponsesModel(server.model, provider=provider)


def settings(max_tokens: int = 80, **more: Any) -> Any:
    return ModelSettings(**{"temperature": 0, "max_tokens": max_tokens, **more})


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


@suite.check
def an_agent_answers() -> str:
    result = Agent(MODEL, instructions="You are brief.", model_settings=settings(16)).run_sync("Name a colour.")
    assert isinstance(result.output, str)
    assert result.output
    usage = result.usage() if callable(result.usage) else result.usage
    assert usage.requests == 1
    assert 1 <= usage.output_tokens <= 16
    return repr(result.output)


@suite.check
def typed_output_by_tool() -> str:
    agent: Any = Agent(MODEL, output_type=ToolOutput(Person, name="person"), model_settings=settings())
    result = agent.run_sync("Invent a person.", usage_limits=UsageLimits(request_limit=1))
    assert isinstance(result.output, Person)
    return repr(result.output)


@suite.check
def typed_output_as_it_is_by_default() -> None:
    agent: Any = Agent(MODEL, output_type=Person, model_settings=settings())
    assert isinstance(agent.run_sync("Invent.", usage_limits=UsageLimits(request_limit=1)).output, Person)


@suite.check
def typed_output_natively() -> str:
    agent: Any = Agent(MODEL, output_type=NativeOutput(Person), model_settings=settings())
    result = agent.run_sync("Invent a person.", usage_limits=UsageLimits(request_limit=1))
    assert isinstance(result.output, Person)
    return repr(result.output)


@suite.check
def one_of_two_output_types() -> None:
    class Refusal(BaseModel):
        """No person comes to mind."""

        reason: Literal["tired", "bored"]

    agent: Any = Agent(MODEL, output_type=[Person, Refusal], model_settings=settings())
    assert isinstance(agent.run_sync("Invent a person.").output, Person | Refusal)


@suite.check
def a_tool_and_then_a_typed_output() -> str:
    """Each turn is the tool or an output tool; once called, the tool is put away."""
    calls: list[int] = []
    agent: Any = Agent(
        MODEL, output_type=ToolOutput(Person, name="final"), model_settings=settings(parallel_tool_calls=False)
    )

    async def until_called(context: Any, definition: Any) -> Any:
        return None if calls else definition

    @agent.tool_plain(prepare=until_called)
    def dice(sides: Literal[6, 20]) -> int:
        """Throw dice."""
        calls.append(sides)
        return 4

    result = agent.run_sync("Throw the dice, then invent a person.", usage_limits=UsageLimits(request_limit=2))
    assert len(calls) == 1
    assert calls[0] in (6, 20)
    assert isinstance(result.output, Person)
    return f"dice({calls[0]}), then {result.output!r}"


@suite.check
def a_tool_beside_a_native_output() -> str:
    """Tool and schema in one request, one grammar: whatever the model does is one of them."""

    class Verdict(BaseModel):
        mood: Literal["glad", "sad"]
        sure: bool

    # What this model does hangs on a call's and an output's first key, and on what was done before.
    habit: Any = [
        ModelRequest(parts=[UserPromptPart("What is the capital of France?")]),
        ModelResponse(parts=[ToolCallPart("capital", {"country": "France"}, "call_1")]),
        ModelRequest(parts=[ToolReturnPart("capital", "Paris", "call_1")]),
    ]
    seen: list[str] = []

    def capital(country: Literal["France", "Italy"]) -> str:
        """The capital of a country."""
        seen.append(country)
        return {"France": "Paris", "Italy": "Rome"}[country]

    ends = 0
    for seed, output, history in [(0, Person, None), (1, Person, None), (0, Verdict, habit), (1, Verdict, habit)]:
        wanted = {**settings(temperature=1.2), "seed": seed}
        agent: Any = Agent(MODEL, output_type=NativeOutput(output), model_settings=wanted, tools=[Tool(capital)])
        try:
            result = agent.run_sync(
                "What is the capital of Italy?", message_history=history, usage_limits=UsageLimits(request_limit=3)
            )
        except UsageLimitExceeded:
            continue
        assert isinstance(result.output, output)
        ends += 1
    assert ends, "no run came to an output"
    assert seen, "no run called the tool"
    return f"{ends} of 4 ended, after {len(seen)} calls in all"


@suite.check
async def text_streams() -> None:
    agent: Any = Agent(MODEL, model_settings=settings(16))
    whole = (await agent.run("Name a colour.")).output
    async with agent.run_stream("Name a colour.") as run:
        parts = [part async for part in run.stream_text(delta=True, debounce_by=None)]
    assert "".join(parts).strip() == whole.strip()
    assert len(parts) > 1


@suite.check
async def typed_output_streams() -> None:
    agent: Any = Agent(MODEL, output_type=NativeOutput(Person), model_settings=settings())
    async with agent.run_stream("Invent a person.") as run:
        assert isinstance(await run.get_output(), Person)


@suite.check
def the_responses_model_answers() -> str:
    agent: Any = Agent(RESPONSES, output_type=NativeOutput(Person), model_settings=settings())
    result = agent.run_sync("Invent a person.", usage_limits=UsageLimits(request_limit=1))
    assert isinstance(result.output, Person)
    tool: Any = Agent(RESPONSES, output_type=ToolOutput(Person), model_settings=settings())
    assert isinstance(tool.run_sync("Invent.", usage_limits=UsageLimits(request_limit=1)).output, Person)
    return repr(result.output)


suite.main()
