"""openai's own client: chat, structured output, tools, completions, responses, errors, cancellation."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
from checking import Raised, Suite, server
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

suite = Suite("openai")
client: Any = OpenAI(base_url=server.v1, api_key=server.sent_key, max_retries=0, timeout=120)
MODEL = server.model
ASK: Any = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour."}]


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def chat(**options: Any) -> Any:
    options = {"model": MODEL, "messages": ASK, "max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(**options)


def is_weather(call: Any) -> bool:
    arguments = json.loads(call.function.arguments)
    return (
        call.type == "function"
        and call.function.name == "get_weather"
        and arguments["city"] in ("Paris", "Rome")
        and 1 <= arguments["days"] <= 7
        and set(arguments) == {"city", "days"}
    )


# -- models --------------------------------------------------------------------------------------------------------


@suite.check
def models_are_listed() -> str:
    names = [m.id for m in client.models.list()]
    assert MODEL in names, names
    assert client.models.retrieve(MODEL).id == MODEL
    return ", ".join(names)


@suite.check
def an_unknown_model_is_not_found() -> None:
    with Raised(openai.NotFoundError) as raised:
        client.models.retrieve("no-such-model")
    with Raised(openai.NotFoundError) as raised:
        chat(model="no-such-model")
    assert MODEL in str(raised.error), raised.error
    assert raised.error.code == "model_not_found", raised.error.body


# -- chat ----------------------------------------------------------------------------------------------------------


@suite.check
def chat_answers() -> str:
    answer = chat()
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 1 <= usage.completion_tokens <= 16
    return repr(choice.message.content)


@suite.check
def a_stream_adds_up_to_the_answer() -> str:
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert all(c.object == "chat.completion.chunk" and c.id == chunks[0].id for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    *body, last = chunks
    assert last.choices == []
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in body)
    text = "".join(c.choices[0].delta.content or "" for c in body)
    assert text == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in body]
    assert finishes[-1] == whole.choices[0].finish_reason
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    return f"{len(body)} chunks"


@suite.check
def without_include_usage_every_chunk_has_a_choice() -> None:
    chunks = list(chat(stream=True))
    assert all(len(c.choices) == 1 and c.usage is None for c in chunks)


@suite.check
def the_stream_helper_accumulates() -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK, max_tokens=16, temperature=0) as stream:
        events = [e.type for e in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events
    assert "content.done" in events
    assert final.choices[0].message.content == chat().choices[0].message.content


@suite.check
def the_same_prompt_is_read_from_the_cache() -> str:
    chat()
    usage = chat().usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    return f"{usage.prompt_tokens_details.cached_tokens} of {usage.prompt_tokens} tokens"


@suite.check
def messages_come_in_every_shape() -> None:
    messages = [
        {"role": "developer", "content": "You are brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [{"type": "text", "text": "Name"}, {"type": "text", "text": " one."}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        {"role": "assistant", "content": [{"type": "text", "text": "Noon."}]},
        {"role": "user", "content": "Thanks."},
    ]
    answer = chat(messages=messages, tools=[CLOCK], tool_choice="none")
    assert answer.choices[0].message.content


@suite.check
def special_tokens_in_a_message_are_text() -> None:
    count = chat(messages=[{"role": "user", "content": "<|im_end|>"}]).usage.prompt_tokens
    plain = chat(messages=[{"role": "user", "content": ""}]).usage.prompt_tokens
    assert count > plain + 1, (count, plain)


@suite.check
def length_and_stop_are_told_apart() -> None:
    assert chat(max_tokens=3, extra_body={"ignore_eos": True}).choices[0].finish_reason == "length"
    answer = chat(max_completion_tokens=5, max_tokens=openai.NOT_GIVEN, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 5
    text = chat(max_tokens=24, extra_body={"ignore_eos": True}).choices[0].message.content
    stop = text[6:9]
    stopped = chat(max_tokens=24, stop=[stop, "never such a text"], extra_body={"ignore_eos": True}).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(stop)]
    streamed = chat(max_tokens=24, stop=stop, stream=True, extra_body={"ignore_eos": True})
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == stopped.message.content


@suite.check
def seeds_and_n() -> None:
    def texts(**options: Any) -> list[str]:
        choices = chat(temperature=1.5, max_tokens=12, **options).choices
        assert [c.index for c in choices] == list(range(len(choices)))
        return [c.message.content for c in choices]

    three = texts(n=3, seed=7)
    assert len(three) == 3
    assert len(set(three)) > 1
    assert texts(n=3, seed=7) == three
    assert texts(seed=7)[0] == three[0]
    assert texts(n=3, seed=8) != three


@suite.check
def n_streams_side_by_side() -> None:
    options: Any = {"n": 3, "seed": 5, "temperature": 1.2, "max_tokens": 10}
    whole = [c.message.content for c in chat(**options).choices]
    texts, ends = ["", "", ""], [0, 0, 0]
    for chunk in chat(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason is not None
    assert texts == whole
    assert ends == [1, 1, 1]


@suite.check
def logprobs_belong_to_the_text() -> None:
    answer = chat(logprobs=True, top_logprobs=3, max_tokens=8)
    rows = answer.choices[0].logprobs.content
    assert 1 <= len(rows) <= 8
    text = answer.choices[0].message.content
    joined = b"".join(bytes(r.bytes) for r in rows).decode(errors="replace")
    assert joined.startswith(text), (joined, text)
    for row in rows:
        assert row.logprob <= 0
        assert len(row.top_logprobs) == 3
        assert row.top_logprobs[0].logprob >= row.top_logprobs[1].logprob
        assert abs(row.top_logprobs[0].logprob - row.logprob) < 1e-6  # greedy
    streamed: list[Any] = []
    for chunk in chat(logprobs=True, top_logprobs=3, max_tokens=8, stream=True):
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [r.token for r in streamed] == [r.token for r in rows]


@suite.check
def logit_bias_decides() -> None:
    (token,) = server.tokens(" blue")
    answer = chat(logit_bias={str(token): 100}, max_tokens=3)
    assert answer.choices[0].message.content == " blue blue blue"


# -- structured output ---------------------------------------------------------------------------------------------


@suite.check
def parse_gives_a_pydantic_value() -> str:
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Person, max_tokens=60, temperature=0
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Person)
    assert message.refusal is None
    assert answer.choices[0].finish_reason == "stop"
    return repr(message.parsed)


@suite.check
def a_small_budget_still_gives_a_value() -> None:
    for budget in (26, 32, 40):
        answer = client.chat.completions.parse(
            model=MODEL, messages=ASK, response_format=Person, max_tokens=budget, temperature=1.5, seed=budget
        )
        assert isinstance(answer.choices[0].message.parsed, Person)


@suite.check
def streamed_json_is_parsed() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Person, max_tokens=60, temperature=0
    ) as stream:
        done = [e for e in stream if e.type == "content.done"]
        final = stream.get_final_completion()
    assert isinstance(done[0].parsed, Person)
    assert final.choices[0].message.parsed == done[0].parsed


@suite.check
def json_object_and_schemas_without_strict() -> None:
    answer = chat(response_format={"type": "json_object"}, max_tokens=40)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    for strict in ({}, {"strict": False}, {"strict": True}):
        answer = chat(
            response_format={"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, **strict}},
            max_tokens=40,
        )
        assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)


@suite.check
def extensions_constrain_too() -> None:
    def text(**extra: Any) -> str:
        found: str = chat(temperature=1, seed=3, max_tokens=20, extra_body=extra).choices[0].message.content
        return found

    assert text(regex="[0-9]{3}-[0-9]{2}").replace("-", "").isdigit()
    assert text(choices=["poor", "fair", "good"]) in ("poor", "fair", "good")
    assert text(ebnf='root ::= "yes" | "no"') in ("yes", "no")
    assert text(structured_outputs={"choice": ["a", "b"]}) in ("a", "b")
    assert text(structured_outputs={"regex": "x{2,4}"}) in ("xx", "xxx", "xxxx")
    assert text(top_k=1, min_p=0.1, repetition_penalty=1.1) == text(top_k=1, min_p=0.1, repetition_penalty=1.1)


# -- tools ---------------------------------------------------------------------------------------------------------


@suite.check
def a_tool_loop() -> str:
    messages = [{"role": "user", "content": "What is the weather in Rome?"}]
    first = chat(messages=messages, tools=[WEATHER], tool_choice="required", max_tokens=64)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert all(is_weather(call) and call.id for call in choice.message.tool_calls)
    messages.append(choice.message)
    messages += [{"role": "tool", "tool_call_id": c.id, "content": "Sunny."} for c in choice.message.tool_calls]
    second = chat(messages=messages, tools=[WEATHER], tool_choice="none")
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls
    assert second.choices[0].finish_reason in ("stop", "length")
    return str(choice.message.tool_calls[0].function.arguments)


@suite.check
def streamed_tool_calls_add_up() -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 64, "parallel_tool_calls": False}
    (whole,) = chat(**options).choices[0].message.tool_calls
    name, arguments, ids, finish = "", "", [], None
    for chunk in chat(stream=True, **options):
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0
            ids += [delta.id] if delta.id else []
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert len(ids) == 1
    assert (name, arguments) == (whole.function.name, whole.function.arguments)
    assert finish == "tool_calls"


@suite.check
def the_stream_helper_parses_tool_calls() -> None:
    class Look(BaseModel):
        """Look at something."""

        where: Literal["up", "down"]

    tool = openai.pydantic_function_tool(Look)
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[tool], tool_choice="required", max_tokens=64, temperature=0
    ) as stream:
        kinds = [e.type for e in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, Look)


@suite.check
def a_named_tool_is_called() -> None:
    for name in ("get_time", "get_weather"):
        answer = chat(
            tools=[WEATHER, CLOCK], tool_choice={"type": "function", "function": {"name": name}}, max_tokens=64
        )
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert {c.function.name for c in calls} == {name}
        assert answer.choices[0].finish_reason in ("stop", "tool_calls")
    with Raised(openai.BadRequestError) as raised:
        chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "nobody"}})
    assert "nobody" in str(raised.error), raised.error


@suite.check
def auto_and_none() -> None:
    answer = chat(tools=[WEATHER], tool_choice="none").choices[0]
    assert answer.message.content
    assert not answer.message.tool_calls
    answer = chat(tools=[WEATHER], max_tokens=64).choices[0]
    assert bool(answer.message.tool_calls) == (answer.finish_reason == "tool_calls")
    assert answer.message.content or answer.message.tool_calls


@suite.check
def one_call_where_parallel_calls_are_off() -> None:
    for seed in range(3):
        answer = chat(
            tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False,
            max_tokens=80, temperature=1.3, seed=seed,
        )  # fmt: skip
        assert len(answer.choices[0].message.tool_calls) == 1


@suite.check
def tools_together_with_a_response_format() -> str:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome", "days": 1}'},
    }
    habit = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        {"role": "user", "content": "What is the weather in Paris?"},
    ]
    kinds: dict[str, int] = {"calls": 0, "answers": 0}
    for messages in (ASK, habit):
        for seed in range(6):
            options: Any = {"messages": messages, "tools": [WEATHER], "response_format": form, "max_tokens": 80}
            answer = chat(**options, temperature=1.0, seed=seed).choices[0]
            if answer.message.tool_calls:
                assert all(is_weather(c) for c in answer.message.tool_calls)
                assert answer.finish_reason == "tool_calls"
                kinds["calls"] += 1
            else:
                Person.model_validate_json(answer.message.content)
                assert answer.finish_reason == "stop"
                kinds["answers"] += 1
    assert kinds["calls"]
    assert kinds["answers"]
    forced = chat(tools=[WEATHER], response_format=form, tool_choice="required", max_tokens=80).choices[0]
    assert all(is_weather(c) for c in forced.message.tool_calls)
    told = chat(tools=[WEATHER], response_format=form, tool_choice="none", max_tokens=80).choices[0]
    Person.model_validate_json(told.message.content)
    return f"free to choose, it wrote {kinds}"


# -- completions ---------------------------------------------------------------------------------------------------


def complete(**options: Any) -> Any:
    options = {"model": MODEL, "prompt": "The sky is", "max_tokens": 8, "temperature": 0, **options}
    return client.completions.create(**options)


@suite.check
def completions_continue_a_text() -> None:
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    ids = server.tokens("The sky is")
    assert answer.usage.prompt_tokens == len(ids)
    assert complete(prompt=ids).choices[0].text == answer.choices[0].text
    streamed = "".join(c.choices[0].text for c in complete(stream=True))
    assert streamed == answer.choices[0].text


@suite.check
def many_prompts_in_one_request() -> None:
    prompts = ["One, two,", "Red, green,"]
    alone = [complete(prompt=p).choices[0].text for p in prompts]
    together = complete(prompt=prompts)
    assert [c.text for c in together.choices] == alone
    assert [c.index for c in together.choices] == [0, 1]
    assert [c.text for c in complete(prompt=[server.tokens(p) for p in prompts]).choices] == alone
    twice = complete(prompt=prompts, n=2, temperature=1, seed=1)
    assert [c.index for c in twice.choices] == [0, 1, 2, 3]


@suite.check
def echo_with_logprobs() -> None:
    prompt = "The sky is blue and the sea"
    answer = complete(prompt=prompt, echo=True, logprobs=2, max_tokens=1)
    choice, rows = answer.choices[0], answer.choices[0].logprobs
    assert choice.text.startswith(prompt)
    count = len(server.tokens(prompt))
    assert len(rows.tokens) == len(rows.token_logprobs) == len(rows.top_logprobs) == len(rows.text_offset) == count + 1
    assert "".join(rows.tokens[:count]) == prompt
    assert rows.token_logprobs[0] is None
    assert all(value <= 0 for value in rows.token_logprobs[1:])
    assert rows.text_offset[0] == 0
    assert all(choice.text[o:].startswith(t) for o, t in zip(rows.text_offset, rows.tokens, strict=True))
    for value, top in zip(rows.token_logprobs[1:], rows.top_logprobs[1:], strict=True):
        assert len(top) >= 2
        assert max(top.values()) >= value
    only = complete(prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    assert only.choices[0].text == prompt
    assert only.choices[0].logprobs.token_logprobs[1:] == rows.token_logprobs[1:count]
    assert only.usage.completion_tokens == 0


# -- responses -----------------------------------------------------------------------------------------------------


@suite.check
def responses_answer() -> str:
    answer = client.responses.create(
        model=MODEL, instructions="You are brief.", input="Name a colour.", max_output_tokens=16, temperature=0
    )
    assert answer.object == "response"
    assert answer.id.startswith("resp_")
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    items = client.responses.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": "You are brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]},
        ],
        max_output_tokens=16,
        temperature=0,
    )
    assert items.output_text == answer.output_text
    return repr(answer.output_text)


@suite.check
def responses_stream() -> str:
    options: Any = {"model": MODEL, "instructions": "You are brief.", "input": "Name a colour.", "temperature": 0}
    short = list(client.responses.create(stream=True, max_output_tokens=2, **options))
    assert short[-1].type == "response.incomplete"
    assert short[-1].response.incomplete_details.reason == "max_output_tokens"
    options["max_output_tokens"] = 64  # more than it takes to come to its end
    whole = client.responses.create(**options)
    events = list(client.responses.create(stream=True, **options))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    for kind in (
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ):
        assert kinds.count(f"response.{kind}") == 1, kind
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(**options) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == whole.output_text
    return f"{len(events)} events"


@suite.check
def responses_parse_a_pydantic_value() -> str:
    answer = client.responses.parse(
        model=MODEL, input="Invent a person.", text_format=Person, max_output_tokens=60, temperature=0
    )
    assert isinstance(answer.output_parsed, Person)
    assert answer.status == "completed"
    with client.responses.stream(
        model=MODEL, input="Invent a person.", text_format=Person, max_output_tokens=60, temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == answer.output_parsed
    return repr(answer.output_parsed)


@suite.check
def a_tool_loop_by_responses() -> None:
    tool: Any = {"type": "function", **WEATHER["function"], "strict": True}
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    options: Any = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 64}
    first = client.responses.create(input=asked, tool_choice="required", **options)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    for call in calls:
        assert call.name == "get_weather"
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    events = list(client.responses.create(input=asked, tool_choice="required", stream=True, **options))
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert deltas == "".join(c.arguments for c in calls)
    asked += first.output
    asked += [{"type": "function_call_output", "call_id": c.call_id, "output": "Sunny."} for c in calls]
    second = client.responses.create(input=asked, tool_choice="none", **options)
    assert second.output_text


# -- refusals ------------------------------------------------------------------------------------------------------


@suite.check
def embeddings_are_refused_clearly() -> str:
    with Raised(openai.BadRequestError) as raised:
        client.embeddings.create(model=MODEL, input="some text")
    assert "embed" in str(raised.error).lower(), raised.error
    return str(raised.error.body["message"])


@suite.check
def bad_requests_name_the_field() -> None:
    for options, param in (
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 65}, "n"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 99, "logprobs": True}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ):
        with Raised(openai.BadRequestError) as raised:
            chat(**options)
        assert (raised.error.param or "").startswith(param), (options, raised.error.body)
        assert raised.error.type == "invalid_request_error", raised.error.body
        assert raised.error.body["message"]


@suite.check
def a_schema_that_cannot_be_enforced_is_refused() -> str:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "far", "strict": True, "schema": schema}}
    with Raised(openai.BadRequestError) as raised:
        chat(response_format=form)
    assert "$ref" in str(raised.error), raised.error
    return str(raised.error.body["message"])


@suite.check
def a_prompt_that_does_not_fit_is_refused() -> None:
    with Raised(openai.BadRequestError) as raised:
        chat(messages=[{"role": "user", "content": "word " * 20_000}])
    assert raised.error.code == "context_length_exceeded", raised.error.body
    assert "tokens" in str(raised.error), raised.error


@suite.check
def a_wrong_key_is_refused() -> str:
    if not server.key:
        return "not tried: the server has no keys"
    stranger: Any = OpenAI(base_url=server.v1, api_key="sk-not-a-key", max_retries=0)
    with Raised(openai.AuthenticationError) as raised:
        stranger.models.list()
    assert raised.error.status_code == 401
    assert server.key not in str(raised.error)
    return ""


# -- asynchronous --------------------------------------------------------------------------------------------------


@suite.check
async def many_at_once() -> None:
    expected = chat().choices[0].message.content
    async with AsyncOpenAI(base_url=server.v1, api_key=server.sent_key, max_retries=0) as many:
        answers = await asyncio.gather(
            *(many.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0) for _ in range(16))
        )
    assert {a.choices[0].message.content for a in answers} == {expected}


@suite.check
async def a_closed_stream_stops_its_work() -> None:
    async with AsyncOpenAI(base_url=server.v1, api_key=server.sent_key, max_retries=0) as one:
        stream = await one.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=1500, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        task = asyncio.create_task(
            one.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=1500, temperature=0, extra_body={"ignore_eos": True}
            )
        )
        await asyncio.sleep(0.5)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # Both would take far longer than this to come to their end.
    assert await asyncio.to_thread(server.is_idle, 5.0)


@suite.check
def raw_responses_carry_a_request_id() -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=2)
    assert raw.headers["x-request-id"] == raw.parse().id


suite.main()
