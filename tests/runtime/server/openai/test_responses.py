"""/v1/responses: items in, items out, and events that add up to them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from palmette.runtime.conversation import ToolRequest, Turn
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.openai.responses import turns_of_items
from palmette.runtime.server.openai.responses_schema import ResponsesBody
from tests.runtime.server.openai.asking import Told, ask, refused, streamed
from tests.runtime.server.serving import Served, serving

PATH = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "d",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
FORM = {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["left", "right"]}}}


def _ask(served: Served, **body: Any) -> Any:
    return ask(served, PATH, **{"input": "hi", "max_output_tokens": 100, "seed": 1, **body})


def _turns(given: Any, instructions: str | None = None) -> list[Turn]:
    body = ResponsesBody.model_validate({"input": given, "instructions": instructions})
    return turns_of_items(body.instructions, body.input)


# -- in ----------------------------------------------------------------------------------------------------------------


def test_a_text_is_the_users_message() -> None:
    assert _turns("hi", "Be brief.") == [Turn("system", "Be brief."), Turn("user", "hi")]


def test_items_are_turns_and_neighbouring_calls_are_one() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "why"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {**call, "call_id": "1", "id": "fc_1"},
        {**call, "call_id": "2"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {**call, "call_id": "3"},
    ]  # fmt: skip
    assert _turns(items) == [
        Turn("developer", "d"),
        Turn("user", "a"),
        Turn("assistant", "b", tool_calls=(ToolRequest("1", "f", "{}"), ToolRequest("2", "f", "{}")), reasoning="why"),
        Turn("tool", "one", tool_call_id="1"),
        Turn("tool", "two", tool_call_id="2"),
        Turn("assistant", None, tool_calls=(ToolRequest("3", "f", "{}"),)),
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].call_id"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "text": FORM, "regex": "a"}, "text.format"),
        ({"input": "x", "max_output_tokens": -1}, "max_output_tokens"),
        ({"input": "x", "temperature": -1}, "temperature"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_is_named(served: Served, body: dict[str, Any], param: str) -> None:
    assert refused(served, PATH, **body)["param"] == param


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_before_anything_is_sent(served: Served, stream: bool) -> None:
    assert refused(served, PATH, input="a" * 3000, stream=stream)["code"] == "context_length_exceeded"


# -- out ---------------------------------------------------------------------------------------------------------------


def test_a_response_has_openais_form(served: Served) -> None:
    answer = _ask(served, text=FORM, metadata={"a": "b"}, store=True, reasoning={"effort": "low"}, user="u")
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"][0]["type"] == "output_text"
    assert json.loads(item["content"][0]["text"]) in ("left", "right")
    assert answer["metadata"] == {"a": "b"}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert set(usage["input_tokens_details"]) == {"cached_tokens"}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_a_response_that_ran_out_of_tokens_is_incomplete(served: Served) -> None:
    answer = _ask(served, max_output_tokens=3, ignore_eos=True)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["usage"]["output_tokens"] == 3


def test_an_empty_answer_is_still_a_message(served: Served) -> None:
    answer = _ask(served, logit_bias={"257": 100}, temperature=0)
    assert [item["content"][0]["text"] for item in answer["output"]] == [""]


def test_a_call_is_an_item_of_its_own(served: Served) -> None:
    answer = _ask(served, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    (item,) = answer["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weather", "completed")
    assert json.loads(item["arguments"])["city"] in ("Rome", "Oslo")
    turns = [{"role": "user", "content": "hi"}, item,
             {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}]  # fmt: skip
    assert _ask(served, input=turns, tools=[WEATHER], tool_choice="none", max_output_tokens=3)["output"]


def test_logprobs_come_where_they_are_asked_for(served: Served) -> None:
    body = {"regex": "[a-z]{5}", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (item,) = _ask(served, **body)["output"]
    rows = item["content"][0]["logprobs"]
    assert "".join(row["token"] for row in rows) == item["content"][0]["text"]
    assert all(len(row["top_logprobs"]) == 2 for row in rows)
    told = streamed(served, PATH, input="hi", max_output_tokens=100, seed=1, **body)
    deltas = [t.data for t in told if t.event == "response.output_text.delta"]
    assert [row["token"] for d in deltas for row in d["logprobs"]] == [row["token"] for row in rows]
    assert _ask(served, regex="[a-z]{5}")["output"][0]["content"][0]["logprobs"] == []


def _checked(told: list[Told]) -> list[Any]:
    """The events' data: numbered, and named as they are typed."""
    assert [each.data["sequence_number"] for each in told] == list(range(len(told)))
    assert all(each.event == each.data["type"] for each in told)
    return [each.data for each in told]


def test_the_events_of_a_message(served: Served) -> None:
    told = _checked(streamed(served, PATH, input="hi", text=FORM, seed=1, max_output_tokens=50))
    kinds = [event["type"].removeprefix("response.") for event in told]
    deltas = kinds.count("output_text.delta")
    assert deltas >= 1
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert told[0]["response"]["status"] == told[1]["response"]["status"] == "in_progress"
    assert told[0]["response"]["output"] == []
    assert told[2]["item"]["content"] == []
    assert told[3]["part"]["text"] == ""
    text = "".join(event["delta"] for event in told if "delta" in event)
    final = told[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == text == told[-4]["text"]
    assert told[-2]["item"] == final["output"][0]
    assert {e["item_id"] for e in told if "item_id" in e} == {final["output"][0]["id"]}
    whole = _ask(served, text=FORM, max_output_tokens=50)
    assert whole["output"][0]["content"][0]["text"] == text


def test_the_events_of_a_call(served: Served) -> None:
    body = {"input": "hi", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "seed": 1}
    told = _checked(streamed(served, PATH, **body))
    kinds = [event["type"].removeprefix("response.") for event in told]
    deltas = kinds.count("function_call_arguments.delta")
    assert deltas >= 1
    assert kinds == [
        "created", "in_progress", "output_item.added", *["function_call_arguments.delta"] * deltas,
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert told[2]["item"]["arguments"] == ""
    arguments = "".join(event["delta"] for event in told if "delta" in event)
    item = told[-1]["response"]["output"][0]
    assert item["arguments"] == arguments == told[-3]["arguments"]
    assert item["call_id"] == told[2]["item"]["call_id"]


def test_a_stream_that_ran_out_of_tokens_ends_incomplete(served: Served) -> None:
    told = _checked(streamed(served, PATH, input="hi", max_output_tokens=3, ignore_eos=True, seed=1))
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told[-2]["item"]["status"] == "incomplete"


def test_reasoning_is_an_item_before_the_message() -> None:
    body = {"choices": ["yes", "no"], "max_output_tokens": 60, "seed": 4}
    with serving(tiny_model(), ServerConfig(reasoning_format="qwen3")) as thinker:
        answer = _ask(thinker, **body)
        told = _checked(streamed(thinker, PATH, input="hi", **body))
    reasoning, message = answer["output"]
    assert (reasoning["type"], message["type"]) == ("reasoning", "message")
    assert message["content"][0]["text"] in ("yes", "no")
    thoughts = "".join(e["delta"] for e in told if e["type"] == "response.reasoning_text.delta")
    assert thoughts == reasoning["content"][0]["text"]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > len(thoughts)  # characters, and the marks
    assert [e["output_index"] for e in told if e["type"] == "response.output_item.done"] == [0, 1]
