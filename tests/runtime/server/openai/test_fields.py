"""The fields that all generating endpoints share: each does something, and each has bounds that name it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from palmette.runtime.server.openai.responses_schema import ResponsesBody
from palmette.runtime.server.openai.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from tests.runtime.server.openai.asking import ask, connected, refused, streamed
from tests.runtime.server.serving import Served

PATH = "/v1/completions"


def _text(served: Served, **body: Any) -> str:
    text: str = ask(served, PATH, prompt="hi", **{"max_tokens": 12, "seed": 1, **body})["choices"][0]["text"]
    return text


# -- what they do ----------------------------------------------------------------------------------------------------


def test_temperature_0_and_top_k_1_are_greedy(served: Served) -> None:
    greedy = _text(served, temperature=0)
    assert _text(served, temperature=0, seed=99) == greedy
    assert _text(served, top_k=1, seed=99) == greedy
    assert _text(served, seed=99) != greedy


def test_top_p_and_min_p_leave_the_best_alone(served: Served) -> None:
    greedy = _text(served, temperature=0)
    assert _text(served, top_p=1e-6, seed=5) == greedy
    assert _text(served, min_p=1.0, seed=5) == greedy


def test_top_k_0_is_off(served: Served) -> None:
    assert _text(served, top_k=0) == _text(served, top_k=-1) == _text(served)


def test_logit_bias_bans_and_forces(served: Served) -> None:
    assert _text(served, logit_bias={"65": 100}, max_tokens=4, temperature=0) == "AAAA"
    greedy = ask(served, PATH, prompt="hi", temperature=0, max_tokens=1, logprobs=0)
    token = greedy["choices"][0]["logprobs"]["tokens"][0]
    byte = int(token[-2:], 16) if token.startswith("bytes:") else ord(token)
    other = ask(served, PATH, prompt="hi", temperature=0, max_tokens=1, logprobs=0, logit_bias={str(byte): -100})
    assert other["choices"][0]["logprobs"]["tokens"][0] != token


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 10.0}]
)
def test_penalties_change_what_repeats(served: Served, penalty: dict[str, float]) -> None:
    bias = {"logit_bias": {"65": 3.5, "66": 3.5, "67": 3.5}}
    plain = _text(served, temperature=0, max_tokens=24, **bias)
    assert _text(served, temperature=0, max_tokens=24, **bias, **penalty) != plain


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(served: Served) -> None:
    body = {"logit_bias": {"65": 100}, "max_tokens": 8, "temperature": 0}
    choice = ask(served, PATH, prompt="hi", stop="AA", **body)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", "AA")
    choice = ask(served, PATH, prompt="hi", stop=["Z", "A"], min_tokens=3, **body)["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("AA", "A")


def test_more_stops_than_openais_four_are_taken(served: Served) -> None:
    assert _text(served, logit_bias={"65": 100}, stop=[*"bcdefgh", "AAA"]) == ""


def test_a_stop_pattern_ends_the_text(served: Served) -> None:
    assert _text(served, regex="[ab]{4}[0-9]+", stop_regex="[0-9]{2}")[:4].strip("ab") == ""
    assert len(_text(served, regex="[ab]{4}[0-9]+", stop_regex=["[0-9]{2}"])) == 4


def test_a_stop_token_ends_the_text(served: Served) -> None:
    body = {"logit_bias": {"65": 100}, "temperature": 0, "max_tokens": 8}
    choice = ask(served, PATH, prompt="hi", stop_token_ids=[65], min_tokens=0, **body)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", 65)


def test_ignore_eos_and_min_tokens_go_on(served: Served) -> None:
    eos = {"logit_bias": {"257": 100}, "temperature": 0, "max_tokens": 8}
    ended = ask(served, PATH, prompt="hi", **eos)
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert ended["choices"][0]["stop_reason"] is None
    assert ended["usage"]["completion_tokens"] == 1
    assert ask(served, PATH, prompt="hi", ignore_eos=True, **eos)["usage"]["completion_tokens"] == 8
    assert ask(served, PATH, prompt="hi", min_tokens=5, **eos)["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("constraint", "texts"),
    [
        ({"regex": "x{3}[yz]"}, {"xxxy", "xxxz"}),
        ({"guided_regex": "x{3}[yz]"}, {"xxxy", "xxxz"}),
        ({"choices": ["left", "right"]}, {"left", "right"}),
        ({"guided_choice": ["left", "right"]}, {"left", "right"}),
        ({"ebnf": 'root ::= "a" | "b"'}, {"a", "b"}),
        ({"guided_grammar": 'root ::= "a" | "b"'}, {"a", "b"}),
        ({"structured_outputs": {"choice": ["left", "right"]}}, {"left", "right"}),
        ({"structured_outputs": {"regex": "x{3}[yz]"}}, {"xxxy", "xxxz"}),
        ({"guided_json": {"enum": ["e", "f"]}}, {'"e"', '"f"'}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}},
         {"1", "2"}),
    ],
)  # fmt: skip
def test_a_constraint_is_kept(served: Served, constraint: dict[str, Any], texts: set[str]) -> None:
    for seed in range(3):
        assert _text(served, seed=seed, **constraint) in texts


def test_what_a_lenient_schema_leaves_out_is_told(served: Served) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2, "uniqueItems": True}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body: dict[str, Any] = {"prompt": "hi", "max_tokens": 40, "seed": 0, "response_format": response_format}
    choice = ask(served, PATH, **body)["choices"][0]
    assert any("uniqueItems" in note for note in choice["unenforced"])
    strict = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert refused(served, PATH, **{**body, "response_format": strict})["code"] == "unsupported_constraint"


def test_the_same_seed_gives_the_same_text(served: Served) -> None:
    for seed in (0, -1, (1 << 64) - 1):
        assert _text(served, seed=seed) == _text(served, seed=seed)
    assert _text(served, seed=1) != _text(served, seed=2)


def test_unknown_fields_and_nulls_are_ignored(served: Served) -> None:
    plain = _text(served)
    names = ["n", "best_of", "stream", "stop", "logit_bias", "temperature", "top_p", "top_k", "min_p", "priority"]
    names += ["timeout", "cache_salt", "echo", "logprobs", "suffix", "response_format", "regex", "stream_options"]
    nulls = dict.fromkeys(names)
    assert _text(served, **nulls) == plain
    ignored = {"user": "me", "metadata": {"a": 1}, "store": True, "service_tier": "auto", "x_made_up": [1]}
    assert _text(served, **ignored, priority=5, timeout=50.0) == plain


# -- what they refuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", (0, 65, 1.5, "2", True)),
        ("best_of", (2, 0, 65)),
        ("seed", (1 << 64, -(1 << 63) - 1, 0.5, "1")),
        ("temperature", (-0.1, 101, "1", float("nan"), float("inf"))),
        ("top_p", (0, 1.1, -1, float("nan"))),
        ("top_k", (-2, 1.5, 1 << 40)),
        ("min_p", (-0.1, 1.1)),
        ("frequency_penalty", (-2.1, 2.1)),
        ("presence_penalty", (-2.1, 2.1, float("nan"))),
        ("repetition_penalty", (0, 10.1)),
        ("max_tokens", (-1, 1 << 25, 1.0, "5")),
        ("min_tokens", (-1, 17, 1 << 25)),
        ("stop", ("", ["a", ""], ["a"] * 65, 5, [5], "a" * 1025)),
        ("stop_regex", ("", ["a"] * 65, 5)),
        ("stop_token_ids", ([-1], [5000], [1.5], 5, [1] * 1025)),
        ("logit_bias", ({"a": 1}, {"-1": 1}, {"5000": 1}, {"5": 101}, {"5": "1"}, {"5": float("nan")}, [5])),
        ("stream", ("yes", 1)),
        ("stream_options", ({"include_usage": True}, 5)),
        ("ignore_eos", ("no", 0)),
        ("cache_salt", (5, "a" * 257)),
        ("priority", (1001, -1001, 0.5)),
        ("timeout", (0, -1, 1e7, float("nan"))),
        ("echo", ("yes",)),
        ("logprobs", (21, -1, True)),
        ("model", (5,)),
    ],
)
def test_a_field_out_of_bounds_is_named(served: Served, field: str, values: tuple[Any, ...]) -> None:
    with connected(served) as client:
        for value in values:
            body = {"prompt": "hi", field: value}
            answer = client.post(PATH, content=_json(body), headers={"content-type": "application/json"})
            assert answer.status_code == 400, (value, answer.text)
            param = answer.json()["error"]["param"]
            assert param.startswith(field), (value, param)


def test_a_long_logit_bias_is_refused(served: Served) -> None:
    assert refused(served, PATH, prompt="hi", logit_bias={str(i): 0 for i in range(1025)})["param"] == "logit_bias"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"),
        ("grammar", "root ::= a"),
        ("structural_tag", {"a": 1}),
        ("guided_whitespace_pattern", " "),
        ("guided_made_up", "x"),
        ("bad_words", ["x"]),
        ("allowed_token_ids", [1]),
        ("logits_processors", ["x"]),
        ("functions", [{"name": "f"}]),
        ("use_beam_search", True),
        ("chat_template", "{{ messages }}"),
        ("documents", [{"text": "x"}]),
        ("truncate_prompt_tokens", 5),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("prompt_logprobs", 1),
        ("modalities", ["audio"]),
        ("audio", {"voice": "x"}),
        ("web_search_options", {"a": 1}),
    ],
)
def test_a_field_that_would_have_to_act_is_refused(served: Served, field: str, value: Any) -> None:
    assert refused(served, PATH, prompt="hi", **{field: value})["param"] == field


def test_two_constraints_are_refused(served: Served) -> None:
    error = refused(served, PATH, prompt="hi", regex="a", choices=["a"])
    assert "regex" in error["message"]
    assert "choices" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "constraint", [{"regex": "("}, {"regex": "a(?=b)"}, {"ebnf": "root ::= ("}, {"stop_regex": "("}]
)
def test_a_constraint_that_cannot_be_is_refused_with_400(served: Served, stream: bool, constraint: Any) -> None:
    assert refused(served, PATH, prompt="hi", stream=stream, **constraint)["code"] == "unsupported_constraint"


@pytest.mark.parametrize("field", ["regex", "ebnf", "choices", "json_schema", "structured_outputs", "response_format"])
@pytest.mark.parametrize("value", [5, [5], {"\ud800": 1}, "\ud800", {"type": "?"}, {"type": []}, True])
def test_odd_constraints_are_400_never_500(served: Served, field: str, value: Any) -> None:
    body = _json({"prompt": "hi", "max_tokens": 30, field: value})
    with connected(served) as client:
        answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (
        (200, 400) if field == "json_schema" and value in ({"type": "?"}, True) else (400,)
    ), answer.text


def test_another_model_is_not_found(served: Served) -> None:
    error = refused(served, PATH, status=404, prompt="hi", model="gpt-4")
    assert error["code"] == "model_not_found"
    assert served.service.model.name in error["message"]
    ask(served, PATH, prompt="hi", model=served.service.model.name, max_tokens=1)


def test_a_body_that_is_no_object_is_refused(served: Served) -> None:
    with connected(served) as client:
        for content in (b"", b"[]", b"5", b"{", b"[" * 100_000, b'{"prompt": NaN}'):
            assert client.post(PATH, content=content).status_code == 400


def test_a_time_that_is_over_is_504(served: Served) -> None:
    body = {"prompt": "hi", "timeout": 1e-6, "max_tokens": 500, "ignore_eos": True}
    assert refused(served, PATH, status=504, **body)["code"] == "timeout"


def test_a_stream_that_fails_has_an_error_last_and_no_done(served: Served) -> None:
    body = {"prompt": "hi", "timeout": 0.25, "max_tokens": 2000, "ignore_eos": True, "seed": 1, "n": 32}
    told = streamed(served, PATH, **body)
    assert told[-1].data["error"]["code"] == "timeout"
    reasons = [c["finish_reason"] for each in told[:-1] for c in each.data["choices"]]
    assert not any(reasons)


@pytest.mark.parametrize("n", [1, 4])
def test_a_reader_that_leaves_ends_what_it_asked_for(served: Served, n: int) -> None:
    body = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True, "n": n, "stream": True}
    with connected(served) as client, client.stream("POST", PATH, json=body) as answer:
        lines = answer.iter_lines()  # kept: without it the connection is closed
        next(lines)
        assert len(served.service.flights) == n
    until = time.monotonic() + 20
    while len(served.service.flights) and time.monotonic() < until:
        time.sleep(0.01)
    assert not len(served.service.flights)
    assert served.service.gate.num_inside == 0


ODD: tuple[Any, ...] = (
    True, 0, -1, 1.5, "", "x", [], {}, [[]], [None], [1], {"a": None}, {"type": None}, {"type": "function"}, 10**30,
    "\ud800", float("nan"), [{"role": "assistant"}], [{"type": "function", "function": {"name": "f"}}], {"\u0661": 1},
    {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}, json.loads("[" * 400 + "]" * 400),
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        (PATH, CompletionBody, {"prompt": "x", "max_tokens": 0}),
        ("/v1/chat/completions", ChatBody, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}),
        ("/v1/responses", ResponsesBody, {"input": "x", "max_output_tokens": 0}),
        ("/tokenize", TokenizeBody, {}),
        ("/detokenize", DetokenizeBody, {}),
    ],
)
def test_no_odd_value_of_a_field_is_an_error_of_ours(served: Served, path: str, kind: Any, body: Any) -> None:
    with connected(served) as client:
        for field in kind.model_fields:
            for value in ODD:
                client.headers["connection"] = "close"  # a connection that is kept waits for acknowledgements
                answer = client.post(path, content=_json({**body, field: value}))
                assert answer.status_code in (200, 400, 404, 422), (field, value, answer.text)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
