"""/v1/chat/completions on the tiny model: it means nothing, but constraints make it call tools and write JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.config import ServerConfig
from tests.runtime.server.openai.asking import ask, chunks, connected, refused
from tests.runtime.server.serving import Served, serving

PATH = "/v1/chat/completions"
USER: dict[str, Any] = {"role": "user", "content": "hi"}


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties),
                  "additionalProperties": False}  # fmt: skip
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


WEATHER = _tool("weather", city={"enum": ["Rome", "Oslo"]})
CLOCK = _tool("clock", utc={"type": "boolean"})
ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                   "additionalProperties": False},
    },
}  # fmt: skip


def _ask(served: Served, **body: Any) -> Any:
    return ask(served, PATH, **{"messages": [USER], "max_tokens": 120, "seed": 1, **body})


def _message(served: Served, **body: Any) -> Any:
    return _ask(served, **body)["choices"][0]["message"]


def _put_together(parts: list[Any], index: int = 0) -> dict[str, Any]:
    """A choice, as a client adds its deltas up."""
    mine = [c for part in parts for c in part["choices"] if c["index"] == index]
    assert mine[0]["delta"]["role"] == "assistant"
    assert all("role" not in c["delta"] for c in mine[1:])
    assert all(c["finish_reason"] is None for c in mine[:-1])
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    rows = []
    for choice in mine:
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                assert call["type"] == "function"
                message["tool_calls"].append(call["function"])
            else:
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        rows += (choice["logprobs"] or {"content": []})["content"]
    return {**message, "rows": rows, "finish_reason": mine[-1]["finish_reason"]}


# -- the form ----------------------------------------------------------------------------------------------------------


def test_an_answer_has_openais_form(served: Served) -> None:
    with connected(served) as client:
        response = client.post(PATH, json={"messages": [USER], "max_tokens": 3, "temperature": 0})
    answer = response.json()
    assert answer["id"].startswith("chatcmpl-")
    assert response.headers["x-request-id"] == answer["id"]
    assert (answer["object"], answer["model"]) == ("chat.completion", served.service.model.name)
    assert answer["system_fingerprint"] == served.service.model.digest[:16]
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert "tool_calls" not in choice["message"]
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert answer["usage"]["completion_tokens"] == 3
    assert "completion_tokens_details" not in answer["usage"]


def test_the_default_budget_is_what_the_context_holds(served: Served) -> None:
    filler = "a" * (served.service.model.context_len - 60)
    answer = ask(served, PATH, messages=[{"role": "user", "content": filler}], ignore_eos=True, temperature=0)
    usage = answer["usage"]
    assert usage["total_tokens"] == served.service.model.context_len
    assert answer["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens_wins(served: Served) -> None:
    answer = _ask(served, max_tokens=9, max_completion_tokens=4, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 4


def test_n_samples_share_the_prompt(served: Served) -> None:
    answer = _ask(served, n=3, max_tokens=8)
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert len(set(texts)) == 3
    assert texts[0] == _message(served, max_tokens=8)["content"]
    assert answer["usage"]["prompt_tokens"] == _ask(served, max_tokens=1)["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"stop": ["a", "e"]},
        {"response_format": ANSWER},
        {"tools": [WEATHER, CLOCK], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "logprobs": True},
        {"tools": [WEATHER, CLOCK], "response_format": ANSWER, "n": 4},
        {"tools": [WEATHER], "max_tokens": 40},
    ],
)
def test_deltas_add_up_to_the_whole_message(served: Served, extra: dict[str, Any]) -> None:
    body = {"messages": [USER], "max_tokens": 120, "seed": 17, **extra}
    whole = ask(served, PATH, **body)
    parts = chunks(served, PATH, **body)
    assert all(part["object"] == "chat.completion.chunk" for part in parts)
    assert len({(part["id"], part["created"]) for part in parts}) == 1
    for choice in whole["choices"]:
        made = _put_together(parts, choice["index"])
        message = choice["message"]
        assert made["content"] == (message["content"] or "")
        assert made["tool_calls"] == [call["function"] for call in message.get("tool_calls", ())]
        assert made["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            assert [row["token"] for row in made["rows"]] == [row["token"] for row in choice["logprobs"]["content"]]


def test_usage_comes_in_a_chunk_of_its_own(served: Served) -> None:
    body = {"messages": [USER], "max_tokens": 6, "seed": 1, "ignore_eos": True, "n": 2}
    whole = ask(served, PATH, **body)["usage"]
    parts = chunks(served, PATH, **body, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in parts[:-1])
    assert parts[-1]["choices"] == []
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert parts[-1]["usage"][key] == whole[key]
    running = {"include_usage": True, "continuous_usage_stats": True}
    counts = [part["usage"]["completion_tokens"] for part in chunks(served, PATH, **body, stream_options=running)]
    assert counts == sorted(counts)
    assert counts[-1] == 12
    assert "usage" not in chunks(served, PATH, **body)[-1]


def test_logprobs_are_rows_of_the_content(served: Served) -> None:
    choice = _ask(served, logprobs=True, top_logprobs=3, max_tokens=6, regex="[a-z]{6}")["choices"][0]
    rows = choice["logprobs"]["content"]
    assert "".join(row["token"] for row in rows) == choice["message"]["content"]
    for row in rows:
        assert bytes(row["bytes"]).decode() == row["token"]
        assert row["logprob"] <= 0
        assert len(row["top_logprobs"]) == 3
        best = [top["logprob"] for top in row["top_logprobs"]]
        assert best == sorted(best, reverse=True)


def test_the_token_that_ends_the_message_has_no_row(served: Served) -> None:
    choice = _ask(served, logprobs=True, choices=["abc"])["choices"][0]
    assert [row["token"] for row in choice["logprobs"]["content"]] == ["a", "b", "c"]
    assert choice["finish_reason"] == "stop"


def test_a_last_message_is_continued(served: Served) -> None:
    messages = [USER, {"role": "assistant", "content": "I say"}]
    anew = _ask(served, messages=messages)["usage"]["prompt_tokens"]
    answer = _ask(served, messages=messages, continue_final_message=True, add_generation_prompt=False)
    closing = len("<|im_end|>\n<|im_start|>assistant\n") - len("<|im_end|>") - len("<|im_start|>") + 2
    assert answer["usage"]["prompt_tokens"] == anew - closing


# -- messages ----------------------------------------------------------------------------------------------------------


def _prompt(served: Served, messages: list[Any], **more: Any) -> str:
    tokens = ask(served, "/tokenize", messages=messages, **more)["tokens"]
    text: str = ask(served, "/detokenize", tokens=tokens)["prompt"]
    return text


def test_every_role_and_form_of_content_is_read(served: Served) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "name": "Ann"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "call_1", "type": "function",
                         "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "reasoning_content": "hm"},
        {"role": "user", "content": "so?"},
    ]  # fmt: skip
    text = _prompt(served, messages)
    for part in ("Be brief.", "one two", "weather", "Rome", "sunny", "so?"):
        assert part in text
    assert text.endswith("<|im_start|>assistant\n")
    assert ask(served, PATH, messages=messages, max_tokens=1)["choices"]


def test_tools_are_told_of_in_the_prompt(served: Served) -> None:
    text = _prompt(served, [USER], tools=[WEATHER, CLOCK])
    assert "weather" in text
    assert "clock" in text
    assert "weather" not in _prompt(served, [USER])


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([{"content": "hi"}], "messages[0].role"),
        ([USER, {"role": "narrator", "content": "x"}], "messages[1].role"),
        ([USER, {"role": "function", "name": "f", "content": "x"}], "messages[1].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([USER, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
         "messages[1].content[1]"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type"),
        ([USER, {"role": "tool", "tool_call_id": "x"}], "messages[1].content"),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "x", "type": "function"}]}],
         "messages[1].tool_calls[0].function"),
        ([USER, {"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}],
         "messages[1].tool_calls[0].type"),
        ([USER, {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
         "messages[1].tool_calls"),
        ([USER] * 4097, "messages"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_is_named(served: Served, messages: Any, param: str) -> None:
    assert refused(served, PATH, messages=messages)["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"n": 65}, "n"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "clock"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_a_field_that_cannot_be_is_named(served: Served, body: dict[str, Any], param: str) -> None:
    assert refused(served, PATH, messages=[USER], **body)["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused(served: Served, stream: bool) -> None:
    error = refused(served, PATH, messages=[{"role": "user", "content": "a" * 3000}], stream=stream)
    assert error["code"] == "context_length_exceeded"


def test_a_lone_surrogate_is_refused_wherever_it_stands(served: Served) -> None:
    bodies = [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [USER], "stop": "\ud800"},
        {"messages": [USER], "cache_salt": "\ud800"},
        {"messages": [USER], "regex": "\ud800"},
        {"messages": [USER], "json_schema": '{"const": "\\ud800"}'},
        {"messages": [USER], "tools": [_tool("f", a={"const": "\ud800"})]},
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "description": "\ud800"}}]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [
            {"id": "\ud800", "function": {"name": "f", "arguments": "{}"}}]}]},
        {"messages": [USER], "chat_template_kwargs": {"a": "\ud800"}},
        {"messages": [USER], "model": "\ud800"},
    ]  # fmt: skip
    with connected(served) as client:
        for body in bodies:
            answer = client.post(PATH, content=json.dumps(body), headers={"content-type": "application/json"})
            assert answer.status_code == 400, (body, answer.text)


# -- tools and forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_one_of_the_tools(served: Served, seed: int) -> None:
    choice = _ask(served, tools=[WEATHER, CLOCK], tool_choice="required", seed=seed)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Rome", "Oslo")
    else:
        assert isinstance(arguments["utc"], bool)


@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "clock"}}, {"type": "function", "name": "clock"}]
)
def test_a_named_call_is_that_tools(served: Served, choice: Any) -> None:
    message = _message(served, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["clock"]


def test_without_a_choice_of_tools_none_is_called(served: Served) -> None:
    message = _message(served, tools=[WEATHER], tool_choice="none", regex=r'\{"name": "weather".{5}')
    assert "tool_calls" not in message
    assert message["content"].startswith('{"name": "weather"')


def test_tools_and_a_form_are_one_union(served: Served) -> None:
    """Whatever is drawn: a call of a tool, or an answer of the form."""
    answer = _ask(served, tools=[WEATHER], response_format=ANSWER, n=24, logit_bias={str(ord('"')): 3})
    kinds = set()
    for choice in answer["choices"]:
        message = choice["message"]
        if calls := message.get("tool_calls"):
            kinds.add("call")
            assert message["content"] is None
            assert choice["finish_reason"] == "tool_calls"
            assert json.loads(calls[0]["function"]["arguments"])["city"] in ("Rome", "Oslo")
        else:
            kinds.add("answer")
            assert choice["finish_reason"] == "stop"
            assert isinstance(json.loads(message["content"])["ok"], bool)
    assert kinds == {"call", "answer"}


def test_a_tool_without_parameters_takes_an_empty_object(served: Served) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {},
            "additionalProperties": False}}}  # fmt: skip
    (call,) = _message(served, tools=[tool], tool_choice="required")["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


@pytest.mark.parametrize("strict", [None, False, True])
def test_a_schema_is_kept_whether_strict_or_not(served: Served, strict: bool | None) -> None:
    form = {"type": "json_schema", "json_schema": {**ANSWER["json_schema"], "strict": strict}}  # type: ignore[dict-item]
    for seed in range(3):
        assert set(json.loads(_message(served, response_format=form, seed=seed)["content"])) == {"ok"}


def test_a_json_object_is_one(served: Served) -> None:
    text = _message(served, response_format={"type": "json_object"}, max_tokens=40)["content"]
    assert isinstance(json.loads(text), dict)


def test_calls_and_their_results_go_into_the_next_prompt(served: Served) -> None:
    message = _message(served, tools=[WEATHER], tool_choice="required")
    messages = [USER, message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "RESULT"}]
    assert "RESULT" in _prompt(served, messages, tools=[WEATHER])
    assert _ask(served, messages=messages, tools=[WEATHER], max_tokens=2)["choices"]


# -- reasoning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker() -> Iterator[Served]:
    with serving(tiny_model(), ServerConfig(reasoning_format="qwen3")) as running:
        yield running


def test_reasoning_is_split_off_and_counted(thinker: Served) -> None:
    body = {"messages": [USER], "max_tokens": 60, "seed": 4, "choices": ["yes", "no"], "logprobs": True}
    whole = ask(thinker, PATH, **body)
    message = whole["choices"][0]["message"]
    assert message["content"] in ("yes", "no")
    assert "</think>" not in message["reasoning_content"]
    counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    rows = whole["choices"][0]["logprobs"]["content"]
    assert counted == len(rows) - len("\n\n" + message["content"])  # the marks are part of it
    parts = chunks(thinker, PATH, **body, stream_options={"include_usage": True})
    made = _put_together(parts)
    assert made["reasoning_content"] == message["reasoning_content"]
    assert made["content"] == message["content"]
    assert parts[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": counted}


def test_what_could_not_fit_is_refused_before_a_template_reads_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object, **__: object) -> None:
        raise AssertionError("the template was asked")

    monkeypatch.setattr("palmette.runtime.server.openai.messages.conversation_pieces", unread)
    error = refused(served, PATH, messages=[{"role": "user", "content": "!" * 1_000_000}])
    assert error["code"] == "context_length_exceeded"
