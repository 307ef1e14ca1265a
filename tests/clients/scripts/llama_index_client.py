"""llama-index's OpenAILike: chat, complete, both as streams, structured prediction, tools."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
from typing import Any, Literal

from checking import Suite, server
from llama_index.core.llms import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

suite = Suite("llama-index-llms-openai-like", "llama-index-core", "openai")
ASK = [ChatMessage(role="system", content="You are brief."), ChatMessage(role="user", content="Name a colour.")]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


def model(**options: Any) -> Any:
    return OpenAILike(
        model=server.model,
        api_base=server.v1,
        api_key=server.sent_key,
        context_window=8192,
        temperature=0,
        max_retries=0,
        timeout=120,
        **{"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 16, **options},
    )


@suite.check
def chat_answers_and_streams() -> str:
    whole = model().chat(ASK)
    assert whole.message.content
    parts = list(model().stream_chat(ASK))
    assert parts[-1].message.content == whole.message.content
    assert "".join(p.delta or "" for p in parts) == whole.message.content
    return repr(whole.message.content)


@suite.check
def complete_answers_and_streams() -> str:
    """Without a chat model behind it, OpenAILike speaks to /v1/completions."""
    for is_chat in (True, False):
        llm = model(is_chat_model=is_chat, is_function_calling_model=is_chat)
        whole = llm.complete("The sky is")
        assert whole.text
        parts = list(llm.stream_complete("The sky is"))
        assert parts[-1].text == whole.text
        assert "".join(p.delta or "" for p in parts) == whole.text
    return repr(whole.text)


@suite.check
def structured_prediction_by_tool() -> str:
    program = FunctionCallingProgram.from_defaults(
        output_cls=Person, llm=model(max_tokens=90), prompt_template_str="Invent {who}.", tool_required=True
    )
    found = program(who="a person")
    assert isinstance(found, Person)
    return repr(found)


@suite.check
def structured_prediction_by_schema() -> str:
    llm = model(max_tokens=90, should_use_structured_outputs=True)
    found = llm.as_structured_llm(Person).complete("Invent a person.").raw
    assert isinstance(found, Person)
    return repr(found)


@suite.check
def tools_are_called() -> None:
    class Where(BaseModel):
        where: Literal["up", "down"]

    def look(where: str) -> str:
        """Look somewhere."""
        return where

    tool = FunctionTool.from_defaults(look, fn_schema=Where)
    llm = model(max_tokens=60)
    answer = llm.chat_with_tools([tool], user_msg="Look up.", tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "look"
    assert call.tool_kwargs["where"] in ("up", "down")
    result = llm.predict_and_call([tool], user_msg="Look up.", tool_required=True)
    assert str(result) in ("up", "down")


@suite.check
def coroutines() -> None:
    async def ask() -> Any:
        llm = model()
        answers = await asyncio.gather(*(llm.achat(ASK) for _ in range(4)))
        stream = await llm.astream_chat(ASK)
        last = [part async for part in stream][-1]
        return {a.message.content for a in answers} | {last.message.content}

    assert len(asyncio.run(ask())) == 1


suite.main()
