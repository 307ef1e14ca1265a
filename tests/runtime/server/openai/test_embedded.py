"""The OpenAI endpoints on the embedded model, with its own chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from palmette.runtime.models.load import load_model
from tests.runtime.server.openai.asking import ask, chunks
from tests.runtime.server.serving import Served, serving

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def embedded() -> Iterator[Served]:
    with serving(load_model("smollm2", dtype="auto", cpu_kernels="auto")) as running:
        yield running


def test_a_question_is_answered(embedded: Served) -> None:
    answer = ask(embedded, CHAT, messages=ASKED, temperature=0, max_tokens=12)
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_deltas_add_up(embedded: Served) -> None:
    body = {"messages": ASKED, "temperature": 0.8, "seed": 3, "max_tokens": 12, "n": 2}
    whole = ask(embedded, CHAT, **body)
    parts = chunks(embedded, CHAT, **body)
    for choice in whole["choices"]:
        deltas = [p["choices"][0] for p in parts if p["choices"][0]["index"] == choice["index"]]
        assert "".join(d["delta"].get("content") or "" for d in deltas) == choice["message"]["content"]
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]


def test_a_tool_is_called_and_its_result_is_read(embedded: Served) -> None:
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = ask(embedded, CHAT, messages=asked, tools=[WEATHER], tool_choice="required", temperature=0)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny, 21 degrees"}
    messages = [*asked, choice["message"], result]
    again = ask(embedded, CHAT, messages=messages, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=8)
    assert again["choices"][0]["message"]["content"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 50  # the conversation so far


def test_an_answer_has_the_form_of_its_schema(embedded: Served) -> None:
    schema = {"type": "object", "properties": {"capital": {"type": "string", "maxLength": 20},
              "inhabitants": {"type": "integer", "minimum": 0, "maximum": 10**8}},
              "required": ["capital", "inhabitants"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer = ask(embedded, CHAT, messages=ASKED, response_format=form, temperature=0)
    data = json.loads(answer["choices"][0]["message"]["content"])
    assert data["capital"] == "Paris"
    assert isinstance(data["inhabitants"], int)


def test_the_likelihood_of_a_text_is_told(embedded: Served) -> None:
    body: dict[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    prompts = ["The capital of France is Paris", "The capital of France is Oslo"]
    tokens = [ask(embedded, "/tokenize", prompt=prompt)["tokens"] for prompt in prompts]
    likely, unlikely = ask(embedded, "/v1/completions", prompt=tokens, **body)["choices"]
    assert len(likely["logprobs"]["tokens"]) == len(tokens[0]) + 1
    assert sum(likely["logprobs"]["token_logprobs"][1:-1]) > sum(unlikely["logprobs"]["token_logprobs"][1:-1])
