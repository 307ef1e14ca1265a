"""dspy: Predict with typed signatures, by the chat adapter's text and by the JSON adapter's schema."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list would be fetched otherwise

import dspy
from checking import Suite, server
from dspy.lm15 import (
    AccessPolicy,
    ModelSupport,
    OpenAIChatCompat,
    ProviderDefinition,
    register_provider,
)
from pydantic import BaseModel, Field

suite = Suite("dspy", "litellm", "openai")
# dspy sends a schema only to a provider that is said to read one.
register_provider(
    ProviderDefinition.chat(
        AccessPolicy(provider="palmette", env_keys=("PALMETTE_KEY",), base_url=server.v1),
        compat=OpenAIChatCompat.preset("openai"),
    ),
    supports=ModelSupport(function_calling=True, response_schema=True),
)


def language_model(**options: Any) -> Any:
    return dspy.LM(
        f"palmette/{server.model}",
        api_key=server.sent_key,
        temperature=0,
        cache=False,
        num_retries=0,
        **{"max_tokens": 120, **options},
    )


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


class Invent(dspy.Signature):
    """Invent a person."""

    wish: str = dspy.InputField()
    person: Person = dspy.OutputField()
    mood: Literal["glad", "sad"] = dspy.OutputField()
    sure: bool = dspy.OutputField()


@suite.check
def a_plain_call() -> str:
    lm = language_model(max_tokens=16)
    (text,) = lm("Name a colour.")
    plain = dspy.LM(
        f"openai/{server.model}", api_base=server.v1, api_key=server.sent_key, temperature=0, max_tokens=16, cache=False
    )
    assert plain("Name a colour.") == [text]  # without a registration, too
    assert isinstance(text, str)
    assert text
    assert lm.history[-1]["usage"]["completion_tokens"] >= 1
    return repr(text)


@suite.check
def a_typed_signature() -> str:
    """The JSON adapter hands the signature over as a schema, so that even this model fills it."""
    with dspy.context(lm=language_model(), adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Invent)(wish="somebody kind")
    assert isinstance(found.person, Person)
    assert found.mood in ("glad", "sad")
    assert isinstance(found.sure, bool)
    return repr(found.person)


@suite.check
def the_default_adapter_falls_back_to_the_schema() -> None:
    """The chat adapter asks for text in a form that this model misses; dspy then asks again by schema."""
    with dspy.context(lm=language_model()):
        found = dspy.Predict(Invent)(wish="somebody kind")
    assert isinstance(found.person, Person)


@suite.check
def tools_are_called_natively() -> str:
    def look(where: Literal["up", "down"]) -> str:
        """Look somewhere."""
        return f"nothing {where} there"

    class Use(dspy.Signature):
        """Use a tool."""

        wish: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    with dspy.context(
        lm=language_model(tool_choice="required"), adapter=dspy.ChatAdapter(use_native_function_calling=True)
    ):
        found = dspy.Predict(Use)(wish="Look up.", tools=[dspy.Tool(look)])
    assert found.calls.tool_calls
    assert {c.name for c in found.calls.tool_calls} == {"look"}
    assert found.calls.tool_calls[0].args["where"] in ("up", "down")
    return str(found.calls.tool_calls[0].args)


@suite.check
def coroutines() -> None:
    async def ask() -> Any:
        with dspy.context(lm=language_model(), adapter=dspy.JSONAdapter()):
            return await dspy.Predict(Invent).acall(wish="somebody kind")

    assert isinstance(asyncio.run(ask()).person, Person)


suite.main()
