"""litellm as a client: completion, stream, response_format, tools, text completion, errors."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list would be fetched otherwise

import litellm
from checking import Raised, Suite, server
from pydantic import BaseModel, Field

suite = Suite("litellm", "openai")
litellm.suppress_debug_info = True
ASK = [{"role": "user", "content": "Name a colour."}]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string", "enum": ["up", "down"]}},
            "required": ["where"],
            "additionalProperties": False,
        },
    },
}


def options(prefix: str = "openai", **more: Any) -> Any:
    return {
        "model": f"{prefix}/{server.model}",
        "api_base": server.v1,
        "api_key": server.sent_key,
        "temperature": 0,
        "max_tokens": 16,
        "num_retries": 0,
        **more,
    }


@suite.check
def completion_answers() -> str:
    for prefix in ("openai", "hosted_vllm", "custom_openai"):
        answer = litellm.completion(**options(prefix, messages=ASK))
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return repr(answer.choices[0].message.content)


@suite.check
def a_stream_adds_up_to_the_answer() -> None:
    whole = litellm.completion(**options(messages=ASK)).choices[0].message.content
    chunks = list(litellm.completion(**options(messages=ASK, stream=True, stream_options={"include_usage": True})))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens >= 1
    rebuilt: Any = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert rebuilt.choices[0].message.content == whole


@suite.check
def response_format_takes_a_model_and_a_schema() -> str:
    found = litellm.completion(**options(messages=ASK, response_format=Person, max_tokens=60))
    person = Person.model_validate_json(found.choices[0].message.content)
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    found = litellm.completion(**options("hosted_vllm", messages=ASK, response_format=form, max_tokens=60))
    Person.model_validate_json(found.choices[0].message.content)
    found = litellm.completion(**options(messages=ASK, response_format={"type": "json_object"}, max_tokens=40))
    assert isinstance(json.loads(found.choices[0].message.content), dict)
    return repr(person)


@suite.check
def tools_are_called() -> None:
    answer = litellm.completion(**options(messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=60))
    (call, *_) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["where"] in ("up", "down")


@suite.check
def text_completion_answers() -> None:
    answer: Any = litellm.text_completion(
        model=f"text-completion-openai/{server.model}", prompt="The sky is", api_base=server.v1,
        api_key=server.sent_key, max_tokens=8, temperature=0,
    )  # fmt: skip
    assert answer.choices[0].text


@suite.check
def coroutines() -> None:
    async def ask() -> Any:
        return await asyncio.gather(*(litellm.acompletion(**options(messages=ASK)) for _ in range(4)))

    assert len({a.choices[0].message.content for a in asyncio.run(ask())}) == 1


@suite.check
def errors_have_their_classes() -> None:
    with Raised(litellm.BadRequestError) as raised:
        litellm.completion(**options(messages=ASK, top_p=2))
    assert "top_p" in str(raised.error)
    with Raised(litellm.ContextWindowExceededError) as raised:
        litellm.completion(**options(messages=[{"role": "user", "content": "word " * 20_000}]))
    if server.key:
        with Raised(litellm.AuthenticationError) as raised:
            litellm.completion(**options(messages=ASK, api_key="sk-not-a-key"))


@suite.check
def the_responses_api_answers() -> None:
    answer: Any = litellm.responses(
        model=f"openai/{server.model}", input="Name a colour.", api_base=server.v1, api_key=server.sent_key,
        max_output_tokens=16, temperature=0,
    )  # fmt: skip
    assert answer.output[0].content[0].text


suite.main()
