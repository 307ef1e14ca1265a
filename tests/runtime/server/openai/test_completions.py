"""/v1/completions on the tiny model, where a token is a byte."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.server.openai.asking import ask, chunks, connected, refused
from tests.runtime.server.serving import Served

PATH = "/v1/completions"


def test_an_answer_has_openais_form(served: Served) -> None:
    with connected(served) as client:
        response = client.post(PATH, json={"prompt": "hi", "max_tokens": 4, "temperature": 0})
    answer = response.json()
    assert answer["id"].startswith("cmpl-")
    assert response.headers["x-request-id"] == answer["id"]
    assert answer["object"] == "text_completion"
    assert answer["model"] == served.service.model.name
    assert answer["system_fingerprint"] == served.service.model.digest[:16]
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["total_tokens"] == 6
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None


def test_max_tokens_is_16_unless_it_is_given(served: Served) -> None:
    answer = ask(served, PATH, prompt="hi", temperature=0, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16


def test_a_prompt_is_a_text_or_its_tokens(served: Served) -> None:
    as_text = ask(served, PATH, prompt="hi", temperature=0)
    as_tokens = ask(served, PATH, prompt=[104, 105], temperature=0)
    assert as_text["choices"] == as_tokens["choices"]


@pytest.mark.parametrize("prompts", [["hi", "ho"], [[104, 105], [104, 111]]])
def test_a_list_of_prompts_gives_a_choice_each_as_if_alone(served: Served, prompts: list[Any]) -> None:
    together = ask(served, PATH, prompt=prompts, seed=7, max_tokens=6)["choices"]
    alone = [ask(served, PATH, prompt=prompt, seed=7, max_tokens=6)["choices"][0]["text"] for prompt in prompts]
    assert [choice["text"] for choice in together] == alone
    assert [choice["index"] for choice in together] == [0, 1]


def test_n_gives_samples_prompt_major_and_the_first_is_that_of_n_1(served: Served) -> None:
    answer = ask(served, PATH, prompt=["hi", "ho"], n=3, seed=5, max_tokens=8)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts[:3])) == 3
    assert texts[0] == ask(served, PATH, prompt="hi", seed=5, max_tokens=8)["choices"][0]["text"]
    assert texts[3:] == [c["text"] for c in ask(served, PATH, prompt="ho", n=3, seed=5, max_tokens=8)["choices"]]
    assert answer["usage"]["prompt_tokens"] == 4  # each prompt once
    assert answer["usage"]["completion_tokens"] == 6 * 8


def test_without_a_seed_two_answers_differ(served: Served) -> None:
    texts = {ask(served, PATH, prompt="hi", max_tokens=12)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) > 1


def test_echo_puts_the_prompt_before_the_text(served: Served) -> None:
    plain = ask(served, PATH, prompt="hi", temperature=0)["choices"][0]["text"]
    assert ask(served, PATH, prompt="hi", temperature=0, echo=True)["choices"][0]["text"] == "hi" + plain
    assert ask(served, PATH, prompt=[104, 105], temperature=0, echo=True)["choices"][0]["text"] == "hi" + plain


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_has_a_row_for_every_token(served: Served, max_tokens: int) -> None:
    """What evaluation harnesses send to score a text."""
    answer = ask(served, PATH, prompt=[[104, 105, 33], [260 - 2, 65]], echo=True, logprobs=1, max_tokens=max_tokens,
                 temperature=0, seed=1234)  # fmt: skip
    for choice, length in zip(answer["choices"], (3, 2), strict=True):
        rows = choice["logprobs"]
        assert {len(rows[key]) for key in rows} == {length + max_tokens}
        assert rows["token_logprobs"][0] is None
        assert rows["top_logprobs"][0] is None
        for token, logprob, top in list(zip(*(rows[k] for k in list(rows)[:3]), strict=True))[1:]:
            assert logprob <= 0
            assert top[token] == logprob
            assert 1 <= len(top) <= 2  # the best one, and the token itself
    assert answer["choices"][0]["logprobs"]["tokens"][:3] == ["h", "i", "!"]
    assert answer["choices"][1]["logprobs"]["tokens"][:2] == ["<|im_start|>", "A"]


def test_the_rows_of_a_prompt_are_those_of_generating_it(served: Served) -> None:
    made = ask(served, PATH, prompt=[104, 105], max_tokens=5, logprobs=3, temperature=0, ignore_eos=True,
               regex="[a-z]{5}")["choices"][0]  # fmt: skip
    again = ask(served, PATH, prompt="hi" + made["text"], max_tokens=0, logprobs=3, echo=True)["choices"][0]["logprobs"]
    assert again["tokens"][2:] == made["logprobs"]["tokens"]
    assert again["token_logprobs"][2:] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-4)


def test_offsets_count_the_characters_before_a_token(served: Served) -> None:
    rows = ask(served, PATH, prompt="aé!b", max_tokens=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert rows["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!", "b"]
    assert rows["text_offset"] == [0, 1, 1, 2, 3]


def test_every_sample_echoes_its_prompts_rows(served: Served) -> None:
    choices = ask(served, PATH, prompt="hi", n=2, max_tokens=2, logprobs=0, echo=True, seed=1)["choices"]
    first, second = (choice["logprobs"] for choice in choices)
    assert first["tokens"][:2] == second["tokens"][:2] == ["h", "i"]
    assert first["token_logprobs"][:2] == second["token_logprobs"][:2]
    assert first["tokens"][2:] != second["tokens"][2:]


def test_max_tokens_0_computes_the_prompt_and_says_length(served: Served) -> None:
    choice = ask(served, PATH, prompt="hello", max_tokens=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 2}, {"n": 3}])
def test_chunks_add_up_to_the_whole_answer(served: Served, extra: dict[str, Any]) -> None:
    body = {"prompt": ["hi", "abc"], "max_tokens": 9, "seed": 11, "temperature": 1.0, **extra}
    whole = ask(served, PATH, **body)["choices"]
    parts = chunks(served, PATH, **body)
    assert all(part["object"] == "text_completion" and "usage" not in part for part in parts)
    for choice in whole:
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if "logprobs" not in extra:
            continue
        for key, values in choice["logprobs"].items():
            told = [v for part in mine if part["logprobs"] for v in part["logprobs"][key]]
            assert len(told) == len(values)
            if key != "top_logprobs":
                assert all(a == b or a == pytest.approx(b, abs=1e-4) for a, b in zip(told, values, strict=True))


def test_usage_comes_in_a_chunk_of_its_own(served: Served) -> None:
    body = {"prompt": ["hi", "abc"], "max_tokens": 5, "seed": 3, "n": 2, "ignore_eos": True}
    parts = chunks(served, PATH, **body, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in parts[:-1])
    assert parts[-1]["choices"] == []
    usage = parts[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 20, 25)


def test_continuous_usage_grows_to_the_last(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = chunks(served, PATH, prompt="hi", max_tokens=6, ignore_eos=True, seed=1, stream_options=options)
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert {part["usage"]["prompt_tokens"] for part in parts} == {2}


def test_a_second_prompt_reads_the_cache(served: Served) -> None:
    prompt = "an unmistakable beginning of a prompt"
    ask(served, PATH, prompt=prompt, max_tokens=1)
    again = ask(served, PATH, prompt=prompt + " and more", max_tokens=1)["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= len(prompt)
    salted = ask(served, PATH, prompt=prompt + " and more", max_tokens=1, cache_salt="mine")["usage"]
    assert salted["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        (5, "prompt"),
        (["a", 3], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([1, -4], "prompt[1]"),
        ([5000], "prompt"),
        ([[5], [5000]], "prompt[1]"),
        (["a"] * 1025, "prompt"),
        ({"text": "a"}, "prompt"),
    ],
)
def test_a_prompt_that_is_none_is_named(served: Served, prompt: Any, param: str) -> None:
    assert refused(served, PATH, prompt=prompt)["param"] == param


def test_too_many_choices_are_refused(served: Served) -> None:
    assert refused(served, PATH, prompt=["a"] * 200, n=10)["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_refused(served: Served, stream: bool) -> None:
    error = refused(served, PATH, prompt="a" * 3000, stream=stream)
    assert error["code"] == "context_length_exceeded"
    assert "3000" in error["message"]


def test_more_tokens_than_fit_are_cut_to_what_fits(served: Served) -> None:
    room = 3
    prompt = "a" * (served.service.model.context_len - room)
    answer = ask(served, PATH, prompt=prompt, max_tokens=1 << 20, ignore_eos=True, temperature=0)
    assert answer["usage"]["completion_tokens"] == room
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_lone_surrogate_is_refused(served: Served) -> None:
    with connected(served) as client:
        answer = client.post(PATH, content=b'{"prompt": "a\\ud800"}', headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]
