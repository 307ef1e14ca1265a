"""SGLang's native endpoints on a real server: the fields of /generate, streams, batches, aborts, what is refused."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from palmette.errors import EngineDied
from palmette.ir.spec_data import spec_data
from palmette.runtime.byte_tokenizer import CHATML, ByteTokenizer
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server import native_abort
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.server.local_link import LocalLink
from palmette.runtime.tokenizer_data import tokenizer_of_data
from palmette.specs import Choices, Concat, JsonSchema, Regex, Tag, Tagged
from palmette.types import GenerateRequest, Request
from tests.runtime.server.serving import Served, serving

GREEDY = {"max_new_tokens": 6, "temperature": 0}
ANN, BOB, ADMIN = "key-of-ann", "key-of-bob", "key-of-admin"


_clients: dict[str, httpx2.Client] = {}  # by URL: making one takes longer than most requests here
_making = threading.Lock()


@pytest.fixture(scope="module", autouse=True)
def closed_clients() -> Iterator[None]:
    yield
    while _clients:
        _clients.popitem()[1].close()


def client_of(served: Served) -> httpx2.Client:
    with _making:
        if served.url not in _clients:
            _clients[served.url] = served.client()
        return _clients[served.url]


def generate(served: Served, key: str = ANN, **body: Any) -> Any:
    """The answer, which must be one."""
    status, data = asked(served, key, **body)
    assert status == 200, data
    return data


def refused(served: Served, **body: Any) -> dict[str, Any]:
    """The error, which must be the client's."""
    status, data = asked(served, **body)
    assert status == 400, data
    error: dict[str, Any] = data["error"]
    return error


def asked(served: Served, key: str = ANN, path: str = "/generate", **body: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"}
    answer = client_of(served).post(path, content=json.dumps(body), headers=headers)  # lone surrogates, NaN and all
    return answer.status_code, answer.json()


def streamed(served: Served, key: str = ANN, **body: Any) -> tuple[list[dict[str, Any]], bool]:
    """(chunks, did the stream end with [DONE])"""
    headers = {"authorization": f"Bearer {key}"}
    with client_of(served).stream("POST", "/generate", json={"stream": True, **body}, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    is_done = lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[: len(lines) - is_done]], is_done


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# -- one prompt --------------------------------------------------------------------------------------------------------


def test_text_and_its_token_ids_give_the_same_answer_under_sglangs_names(served: Served) -> None:
    by_text = generate(served, text="Hello", sampling_params=GREEDY)
    by_ids = generate(served, input_ids=list(b"Hello"), sampling_params=GREEDY)
    assert (by_text["text"], by_text["output_ids"]) == (by_ids["text"], by_ids["output_ids"])
    info = by_text["meta_info"]
    assert info["finish_reason"] == {"type": "length", "length": 6}
    assert (info["prompt_tokens"], info["completion_tokens"]) == (5, 6)
    assert by_ids["meta_info"]["cached_tokens"] == 4, "all but the token whose logits are wanted"
    assert info["e2e_latency"] > 0
    assert isinstance(info["id"], str)
    assert "input_token_logprobs" not in info


def test_put_is_taken_as_well_as_post(served: Served) -> None:
    with served.client() as client:
        answer = client.put("/generate", json={"text": "Hello", "sampling_params": GREEDY})
        assert answer.json()["text"] == generate(served, text="Hello", sampling_params=GREEDY)["text"]


def test_the_defaults_are_sglangs(served: Served) -> None:
    answer = generate(served, text="Hello", sampling_params={"ignore_eos": True})
    assert answer["meta_info"]["completion_tokens"] == 128
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 128}
    assert len({generate(served, text="Hello")["text"] for _ in range(4)}) > 1, "temperature is 1.0, the seed is fresh"
    long = generate(served, input_ids=[65] * 2040, sampling_params={"max_new_tokens": None, "ignore_eos": True})
    assert long["meta_info"]["completion_tokens"] == 8, "null: as many as the context holds"


def test_a_seed_gives_the_same_tokens_and_both_names_are_the_same(served: Served) -> None:
    params = {"max_new_tokens": 12}
    first = generate(served, text="Hello", sampling_params=params | {"sampling_seed": 7})
    assert generate(served, text="Hello", sampling_params=params | {"seed": 7})["output_ids"] == first["output_ids"]
    other = generate(served, text="Hello", sampling_params=params | {"seed": (1 << 64) - 1})
    assert other["output_ids"] != first["output_ids"]
    same = generate(served, text="Hello", sampling_params=params | {"seed": -1})
    assert same["output_ids"] == other["output_ids"], "64 bits, however they are signed"
    assert refused(served, text="a", sampling_params={"seed": 1, "sampling_seed": 2})["param"] == "seed"


def test_the_first_sample_draws_with_the_given_seed_itself(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    submit = LocalLink.submit

    def noted(link: LocalLink, request: Request) -> None:
        assert isinstance(request, GenerateRequest)
        seeds.append(request.seed)
        submit(link, request)

    monkeypatch.setattr(LocalLink, "submit", noted)
    for params in ({"sampling_seed": (1 << 64) - 2}, {"seed": -2, "n": 3}):
        generate(served, text="Hello", sampling_params={"max_new_tokens": 1, **params})
    assert seeds[0] == seeds[1] == (1 << 64) - 2
    assert len(set(seeds)) == 3


def test_a_text_begins_as_the_model_wants_it_to_once() -> None:
    model = replace(tiny_model(), tokenizer=ByteTokenizer(adds_bos=True))
    asks: dict[str, Any] = {"sampling_params": {"max_new_tokens": 0}, "return_prompt_token_ids": True}
    with serving(model) as served:
        for text in ("hi", "<|bos|>hi"):
            assert generate(served, text=text, **asks)["prompt_token_ids"] == [256, *b"hi"]
        assert generate(served, input_ids=[*b"hi"], **asks)["prompt_token_ids"] == [*b"hi"], "ids are as they are"
        assert generate(served, text="", **asks)["prompt_token_ids"] == [256]


def test_sampling_parameters_reach_the_sampler(served: Served) -> None:
    def ids(**params: Any) -> list[int]:
        found: list[int] = generate(served, text="Hello", sampling_params=GREEDY | params)["output_ids"]
        return found

    plain = ids()
    assert ids(top_k=1, temperature=1.0) == plain
    assert ids(temperature=1e-7) == plain, "SGLang takes it for 0"
    assert ids(top_p=1e-6, temperature=1.0) == plain
    assert ids(min_p=1.0, temperature=1.0) == plain
    assert ids(logit_bias={"65": 1000}) == [65] * 6
    assert ids(logit_bias={"65": 1000}, max_new_tokens=2) == [65] * 2
    flat = {"logit_bias": {"65": 20, "66": 19}}
    assert set(ids(**flat)) == {65}
    assert 66 in ids(**flat, frequency_penalty=2.0)
    assert ids(presence_penalty=2.0, max_new_tokens=60) != ids(max_new_tokens=60)
    assert ids(repetition_penalty=1.9) != plain
    eos = {"logit_bias": {"257": 1000}}
    assert ids(**eos) == [257]
    assert ids(**eos, ignore_eos=True) == [257] * 6
    assert 257 not in ids(**eos, min_new_tokens=3)[:3]


def test_stops_of_every_kind_end_the_text_and_say_what_matched(served: Served) -> None:
    always_a = {"max_new_tokens": 6, "temperature": 0, "logit_bias": {"97": 500}}

    def answer(**params: Any) -> tuple[str, Any]:
        found = generate(served, text="x", sampling_params=always_a | params)
        return found["text"], found["meta_info"]["finish_reason"]

    assert answer(stop="aaa") == ("", {"type": "stop", "matched": "aaa"})
    assert answer(stop=["zz", "aa"]) == ("", {"type": "stop", "matched": "aa"})
    assert answer(stop=["aa"], min_new_tokens=3) == ("a", {"type": "stop", "matched": "aa"})
    assert answer(stop_regex="a{4}") == ("", {"type": "stop", "matched": "a{4}"})
    assert answer(stop_token_ids=[None, 97]) == ("", {"type": "stop", "matched": 97})
    assert answer(stop="aaa", no_stop_trim=True) == ("aaa", {"type": "stop", "matched": "aaa"})
    assert answer(stop_token_ids=[97], no_stop_trim=True) == ("a", {"type": "stop", "matched": 97})
    assert answer(stop=[], stop_regex=[], stop_token_ids=[])[1]["type"] == "length"
    flags = {"skip_special_tokens": True, "spaces_between_special_tokens": True, "n": 1, "min_new_tokens": 0}
    assert answer(**flags)[0] == "aaaaaa", "what SGLang's frontend always sends"


def test_special_tokens_in_a_text_are_read_and_can_be_left_text(served: Served) -> None:
    text = "<|im_start|>user\nhi<|im_end|>\n"
    answer = generate(served, text=text, sampling_params={"max_new_tokens": 0}, return_prompt_token_ids=True)
    assert answer["prompt_token_ids"] == [258, *b"user\nhi", 259, *b"\n"]
    plain = generate(served, text=text, sampling_params={"max_new_tokens": 0}, parse_special=False)
    assert plain["meta_info"]["prompt_tokens"] == len(text)


def test_nothing_to_generate_warms_the_cache(served: Served) -> None:
    prompt = "a prefix that nobody else here has used so far"
    warm = generate(served, text=prompt, sampling_params={"max_new_tokens": 0})
    assert (warm["text"], warm["output_ids"], warm["meta_info"]["completion_tokens"]) == ("", [], 0)
    later = generate(served, text=prompt + "!", sampling_params=GREEDY)
    assert later["meta_info"]["cached_tokens"] == len(prompt)
    apart = generate(served, text=prompt + "!", sampling_params=GREEDY, cache_salt="other")
    assert apart["meta_info"]["cached_tokens"] == 0
    assert apart["text"] == later["text"]
    assert generate(served, text=prompt, sampling_params=GREEDY, extra_key="k")["meta_info"]["cached_tokens"] == 0


# -- constraints -------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TAG = {"begin": "<f>", "content": {"type": "json_schema", "json_schema": {"type": "boolean"}}, "end": "</f>"}
STRUCTURES = {
    "type": "structural_tag",
    "format": {"type": "triggered_tags", "triggers": ["<f"], "tags": [TAG], "at_least_one": True,
               "stop_after_first": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("params", "fits"),
    [
        ({"regex": "[ab]{3}"}, lambda text: len(text) == 3 and set(text) <= {"a", "b"}),
        ({"json_schema": json.dumps(SCHEMA)}, lambda text: isinstance(json.loads(text)["a"], bool)),
        ({"json_schema": SCHEMA}, lambda text: isinstance(json.loads(text)["a"], bool)),
        ({"json_schema": "$$ANY$$"}, lambda text: json.loads(text) is not ...),
        ({"ebnf": 'root ::= "x" ("y" | "z")'}, lambda text: text in ("xy", "xz")),
        ({"structural_tag": STRUCTURES}, lambda text: text.endswith(("<f>true</f>", "<f>false</f>"))),
        ({"structural_tag": json.dumps(STRUCTURES)}, lambda text: text.endswith("</f>")),
        ({"regex": "", "json_schema": None, "ebnf": "yes"[:0]}, lambda text: len(text) > 0),
    ],
)
def test_a_constraint_holds(served: Served, params: dict[str, Any], fits: Callable[[str], bool]) -> None:
    for seed in range(3):
        answer = generate(served, text="Hello", sampling_params={"max_new_tokens": 40, "seed": seed, **params})
        assert fits(answer["text"]), answer["text"]


@pytest.mark.parametrize(
    "spec",
    [
        Choices(("yes", "yesterday")),
        Concat((Regex("[0-9]{2}"), "-", JsonSchema('{"enum": [1, null]}'))),
        Tagged((Tag("<t>", Regex("u+"), "</t>"),), stop_after_first=True, at_least_one=True),
    ],
)
def test_any_specification_crosses_as_data(served: Served, spec: Any) -> None:
    answer = generate(served, text="a", constraint=spec_data(spec), sampling_params={"max_new_tokens": 40, "seed": 3})
    kind = type(spec).__name__
    text = answer["text"]
    fits = {
        "Choices": text in ("yes", "yesterday"),
        "Concat": text[2:] in ("-1", "-null") and text[:2].isdigit(),
        "Tagged": text.endswith("</t>"),
    }
    assert fits[kind], text


# -- logprobs ----------------------------------------------------------------------------------------------------------


def test_logprobs_of_generated_tokens_are_those_of_the_same_tokens_as_a_prompt(served: Served) -> None:
    made = generate(served, text="Hello", sampling_params=GREEDY, return_logprob=True, top_logprobs_num=2)
    info = made["meta_info"]
    assert info["input_token_logprobs"] == []
    assert [row[1] for row in info["output_token_logprobs"]] == made["output_ids"]
    assert all(row[2] is None for row in info["output_token_logprobs"])
    assert [top[0] for top in info["output_top_logprobs"]] == info["output_token_logprobs"], "greedy: the best one"
    prompt = [*b"Hello", *made["output_ids"]]
    scored = generate(
        served, input_ids=prompt, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=5
    )
    rows = scored["meta_info"]["input_token_logprobs"]
    assert [row[1] for row in rows] == made["output_ids"]
    assert [row[0] for row in rows] == pytest.approx([row[0] for row in info["output_token_logprobs"]], abs=1e-4)
    assert scored["meta_info"]["output_token_logprobs"] == []


def test_a_row_is_null_only_for_the_very_first_prompt_token(served: Served) -> None:
    def rows(**fields: Any) -> Any:
        made = generate(served, text="Hello", return_logprob=True, return_text_in_logprobs=True, **fields)
        return made["meta_info"]

    nothing = {"max_new_tokens": 0}
    every = rows(sampling_params=nothing, top_logprobs_num=1)
    assert [(row[1], row[2]) for row in every["input_token_logprobs"]] == [(b, chr(b)) for b in b"Hello"]
    assert [row[0] is None for row in every["input_token_logprobs"]] == [True] + [False] * 4
    assert [top is None for top in every["input_top_logprobs"]] == [True] + [False] * 4
    assert rows(sampling_params=nothing, logprob_start_len=-1)["input_token_logprobs"] == every["input_token_logprobs"]
    assert rows(sampling_params=nothing, logprob_start_len=0)["input_token_logprobs"] == every["input_token_logprobs"]
    later = rows(sampling_params=GREEDY, logprob_start_len=3)["input_token_logprobs"]
    assert [row[1:] for row in later] == [row[1:] for row in every["input_token_logprobs"][3:]]
    assert [row[0] for row in later] == pytest.approx([row[0] for row in every["input_token_logprobs"][3:]], abs=1e-4)
    assert rows(sampling_params=GREEDY, logprob_start_len=5)["input_token_logprobs"] == []
    assert rows(sampling_params=GREEDY, logprob_start_len=-1)["input_token_logprobs"] == []
    status, data = asked(served, text="Hello", return_logprob=True, logprob_start_len=6, sampling_params=nothing)
    assert (status, data["error"]["param"]) == (400, "logprob_start_len")


def test_in_a_stream_each_chunk_has_exactly_its_own_rows(served: Served) -> None:
    asks: dict[str, Any] = {
        "text": "Hello", "sampling_params": GREEDY, "return_logprob": True, "logprob_start_len": 0,
        "top_logprobs_num": 2, "return_text_in_logprobs": True,
    }  # fmt: skip
    whole = generate(served, **asks)["meta_info"]
    chunks, is_done = streamed(served, **asks)
    assert is_done
    assert len(chunks) > 2
    seen = 0
    for chunk in chunks:
        info, new = chunk["meta_info"], len(chunk["output_ids"]) - seen
        assert [row[1] for row in info["output_token_logprobs"]] == chunk["output_ids"][seen:]
        assert len(info["output_top_logprobs"]) == new
        seen += new
    for name in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs"):
        rows = [row for chunk in chunks for row in chunk["meta_info"][name]]
        assert flat(rows) == pytest.approx(flat(whole[name]), abs=1e-4)
        assert len(rows) == len(whole[name])
    assert [chunk["meta_info"]["input_token_logprobs"] != [] for chunk in chunks[:-1]] == [False] * (len(chunks) - 1)


def flat(rows: Any) -> list[float]:
    """The numbers of rows of any depth."""
    if isinstance(rows, list):
        return [number for row in rows for number in flat(row)]
    return [rows] if isinstance(rows, float | int) else []


def test_sglangs_way_to_select_finds_what_the_scores_of_a_trie_say(served: Served) -> None:
    """Its frontend warms the prefix, then scores it with each choice behind it, from two tokens before its end."""
    prefix, choices = "The answer is", [" yes", " no", " maybe"]
    warm = generate(served, text=prefix, sampling_params={"max_new_tokens": 0})
    start = warm["meta_info"]["prompt_tokens"] - 2
    rows = generate(
        served, text=[prefix + c for c in choices], sampling_params={"max_new_tokens": 0, "temperature": 0},
        return_logprob=True, return_text_in_logprobs=True, logprob_start_len=start,
    )  # fmt: skip
    token_ids = [token for choice in choices for token in choice.encode()]
    firsts = [sum(map(len, choices[:i])) for i in range(3)]
    parents = [-1 if i in firsts else i - 1 for i in range(len(token_ids))]
    scored = asked(
        served,
        path="/palmette/score",
        input_ids=list(prefix.encode()),
        trie={"token_ids": token_ids, "parents": parents},
    )[1]["logprobs"]
    for choice, first, answer in zip(choices, firsts, rows, strict=True):
        found = answer["meta_info"]["input_token_logprobs"]
        assert all(row[0] is not None for row in found)
        assert "".join(row[2] for row in found) == prefix[-2:] + choice
        assert [row[0] for row in found[2:]] == pytest.approx(scored[first : first + len(choice)], abs=1e-4)
    unconditional = generate(
        served, input_ids=[list(c.encode()) for c in choices], sampling_params={"max_new_tokens": 0},
        return_logprob=True,
    )  # fmt: skip
    assert [[row[0] is None for row in each["meta_info"]["input_token_logprobs"]] for each in unconditional] == [
        [True, *([False] * (len(choice) - 1))] for choice in choices
    ]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_in_order_each_prompt_with_its_own_fields(served: Served) -> None:
    prompts = ["Hello", "World, it is", "x"]
    params = [{"max_new_tokens": n, "temperature": 0} for n in (2, 0, 4)]
    batch = generate(
        served, text=prompts, sampling_params=params, rid=["r0", "r1", "r2"], return_logprob=[True, True, False],
        logprob_start_len=[-1, 3, 0], top_logprobs_num=[0, 1, 2],
    )  # fmt: skip
    assert [answer["meta_info"]["id"] for answer in batch] == ["r0", "r1", "r2"]
    for prompt, own, answer in zip(prompts, params, batch, strict=True):
        assert answer["text"] == generate(served, text=prompt, sampling_params=own)["text"]
    rows = [{k: len(v) for k, v in answer["meta_info"].items() if k.endswith("_logprobs")} for answer in batch]
    assert rows == [
        {"input_token_logprobs": 0, "output_token_logprobs": 2},
        {
            "input_token_logprobs": 9, "output_token_logprobs": 0, "input_top_logprobs": 9, "output_top_logprobs": 0
        },
        {},
    ]  # fmt: skip
    by_ids = generate(served, input_ids=[list(p.encode()) for p in prompts], sampling_params=GREEDY)
    assert [a["text"] for a in by_ids] == [generate(served, text=p, sampling_params=GREEDY)["text"] for p in prompts]
    assert isinstance(generate(served, text=["x"], sampling_params=GREEDY), list), "a list of one is a list"


def test_samples_are_entries_prompt_by_prompt_and_the_first_one_is_that_of_n_1(served: Served) -> None:
    params = {"max_new_tokens": 8, "seed": 5}
    single = {p: generate(served, text=p, sampling_params=params) for p in ("Hello", "World")}
    three = generate(served, text=["Hello", "World"], sampling_params=params | {"n": 3}, rid="mine")
    assert [a["meta_info"]["id"] for a in three] == [f"mine_{i}_{k}" for i in range(2) for k in range(3)]
    assert [three[0]["text"], three[3]["text"]] == [single["Hello"]["text"], single["World"]["text"]]
    assert len({tuple(a["output_ids"]) for a in three[:3]}) == 3
    of_one = generate(served, text="Hello", sampling_params=params | {"n": 2})
    assert [a["output_ids"] for a in of_one] == [a["output_ids"] for a in three[:2]], "the same whatever n is"


def test_a_batch_larger_than_the_engine_takes_at_once_is_answered_whole(served: Served) -> None:
    prompts = [f"{i}" for i in range(300)]
    answers = generate(served, text=prompts, sampling_params={"max_new_tokens": 1, "temperature": 0})
    assert len(answers) == 300
    assert answers[299]["text"] == generate(
        served, text="299", sampling_params={"max_new_tokens": 1, "temperature": 0}
    )["text"]  # fmt: skip


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_has_the_text_so_far_and_ends_as_the_whole_answer(served: Served) -> None:
    whole = generate(served, text="Hello", sampling_params=GREEDY)
    chunks, is_done = streamed(served, text="Hello", sampling_params=GREEDY, rid="mine")
    assert is_done
    assert len(chunks) > 2
    for before, after in pairwise(chunks):
        assert after["text"].startswith(before["text"])
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        assert before["meta_info"]["finish_reason"] is None
        assert before["meta_info"]["completion_tokens"] == len(before["output_ids"])
    last = chunks[-1]
    assert (last["text"], last["output_ids"]) == (whole["text"], whole["output_ids"])
    assert last["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]
    assert last["meta_info"].keys() == whole["meta_info"].keys()
    assert {chunk["meta_info"]["id"] for chunk in chunks} == {"mine"}
    assert all("index" not in chunk for chunk in chunks)


def test_a_stream_of_a_batch_says_whose_each_chunk_is(served: Served) -> None:
    params = {"max_new_tokens": 5, "seed": 1, "n": 2}
    whole = generate(served, text=["Hello", "World"], sampling_params=params)
    chunks, is_done = streamed(served, text=["Hello", "World"], sampling_params=params)
    assert is_done
    last = {chunk["index"]: chunk for chunk in chunks}
    assert [last[i]["text"] for i in range(4)] == [answer["text"] for answer in whole]
    assert [last[i]["meta_info"]["finish_reason"] for i in range(4)] == [
        answer["meta_info"]["finish_reason"] for answer in whole
    ]
    assert sum(chunk["meta_info"]["finish_reason"] is not None for chunk in chunks) == 4


def test_no_stop_trim_keeps_the_stop_string_in_a_stream_too(served: Served) -> None:
    params = {"max_new_tokens": 6, "temperature": 0, "logit_bias": {"97": 500}, "stop": "aaa", "no_stop_trim": True}
    chunks, _ = streamed(served, text="x", sampling_params=params)
    assert chunks[-1]["text"] == "aaa"


def test_what_is_refused_is_refused_before_a_stream_begins(served: Served) -> None:
    error = refused(served, text="a", stream=True, sampling_params={"regex": "("})
    assert error["code"] == "unsupported_constraint"
    assert refused(served, input_ids=[1] * 2048, stream=True)["code"] == "context_length_exceeded"


def test_a_request_whose_time_runs_out_fails_and_its_stream_is_not_done(served: Served) -> None:
    long = {"max_new_tokens": 2000, "ignore_eos": True}
    status, data = asked(served, text="Hello", sampling_params=long, timeout=0.05)
    assert (status, data["error"]["code"]) == (504, "timeout")
    chunks, is_done = streamed(served, text="Hello", sampling_params=long, timeout=0.2)
    assert not is_done
    assert chunks[-1]["error"]["code"] == "timeout"
    assert all(chunk["meta_info"]["finish_reason"] is None for chunk in chunks[:-1])


# -- for RuntimeEndpoint -----------------------------------------------------------------------------------------------


def test_palmettes_chunks_are_pieces_that_add_up_and_end_with_the_finish(served: Served) -> None:
    params = {"max_new_tokens": 6, "temperature": 0, "logit_bias": {"97": 500}, "stop": "aaa", "min_new_tokens": 4}
    whole = generate(served, text="x", sampling_params=params)
    chunks, is_done = streamed(served, text="x", sampling_params=params, palmette=True, return_logprob=True)
    assert is_done
    assert all("text" not in chunk for chunk in chunks), "texts so far would cost the square of a stream"
    pieces = [chunk["meta_info"]["palmette"] for chunk in chunks]
    assert "".join(piece["text"] for piece in pieces) == whole["text"] == "a"
    assert [token for piece in pieces for token in piece["token_ids"]] == whole["output_ids"] == [97] * 4
    rows = [row for chunk in chunks for row in chunk["meta_info"]["output_token_logprobs"]]
    assert [row[1] for row in rows] == whole["output_ids"]
    last = pieces[-1]
    assert (last["kept"], last["tail"], last["reason"], last["matched"]) == ([97], "", "stop", "aaa")
    assert (last["error"], last["steered"], last["unenforced"]) == (None, False, [])
    usage = last["usage"]
    assert (usage["prompt_tokens"], usage["sampled_tokens"], usage["wasted_tokens"]) == (1, 4, 3)
    assert not any("kept" in piece for piece in pieces[:-1])


def test_palmettes_last_chunk_tells_of_a_failure_once_and_the_stream_is_not_done(served: Served) -> None:
    long = {"max_new_tokens": 2000, "ignore_eos": True}
    chunks, is_done = streamed(served, text="Hello", sampling_params=long, timeout=0.2, palmette=True)
    assert not is_done
    last = chunks[-1]["meta_info"]["palmette"]
    assert last["reason"] == "cancelled"
    assert last["error"]["kind"] == "HoleTimeout"
    assert last["usage"]["prompt_tokens"] == 5
    assert [token for chunk in chunks for token in chunk["meta_info"]["palmette"]["token_ids"]][: len(last["kept"])]
    assert not any("error" in chunk for chunk in chunks)


def test_a_request_that_fails_before_its_first_chunk_is_answered_with_a_status() -> None:
    with serving(tiny_model()) as served, ThreadPoolExecutor(2) as pool:
        service = served.service
        served.loop.call_soon_threadsafe(service.detach, "the engine died")
        running = [pool.submit(asked, served, text="a", stream=True, palmette=flag) for flag in (True, False)]
        until(lambda: len(service.flights) == 2)
        served.loop.call_soon_threadsafe(service.flights.fail_all, EngineDied("no engine came"))
        for each in running:
            status, data = each.result(20)
            assert (status, data["error"]["code"]) == (503, "engine_unavailable")


def test_model_info_names_the_model_and_what_palmette_adds(served: Served) -> None:
    with served.client() as client:
        info = client.get("/get_model_info").json()
        assert info == client.get("/model_info").json()
        assert (info["model_path"], info["is_generation"]) == ("tiny-llama-0", True)
        ours = info["palmette"]
        assert (ours["version"], ours["context_len"], ours["vocab_size"]) == (1, 2048, 260)
        assert set(ours["features"]) == {"program", "ends", "constraint", "score", "tokenizer"}
        assert ours["digest"] == served.service.model.digest
        state = client.get("/server_info").json()
        assert state == client.get("/get_server_info").json()
        assert state["max_total_num_tokens"] == state["internal_states"][0]["kv_total"]


def test_the_tokenizer_is_sent_packed_and_only_to_who_does_not_have_it(served: Served) -> None:
    with served.client() as client:
        answer = client.get("/palmette/tokenizer")
        assert answer.headers["content-encoding"] == "gzip"
        made = tokenizer_of_data(answer.json())
        tag = answer.headers["etag"]
        assert tag == f'"{served.service.model.digest}"'
        again = client.get("/palmette/tokenizer", headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get("/palmette/tokenizer", headers={"if-none-match": '"x"'}).status_code == 200
        plain = client.get("/palmette/tokenizer", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json() == answer.json()
    theirs = served.service.tokenizer
    text = "<|im_start|>a"
    assert made.encode(text) == theirs.encode(text)
    assert made.chat_template.source == theirs.chat_template.source == CHATML


def test_another_chat_template_than_the_models_is_sent_under_another_tag() -> None:
    with serving(tiny_model()) as served, served.client() as client:
        service = served.service
        assert client.get("/palmette/tokenizer").json()["chat_template"] == CHATML
        service.template = type(service.template)("{{ messages }}", bos_token="<b>")
        answer = client.get("/palmette/tokenizer")
        assert answer.json()["chat_template"] == "{{ messages }}"
        assert answer.headers["etag"] != f'"{service.model.digest}"'


def test_scores_are_those_of_the_model_and_the_empty_prompt_counts_nothing(served: Served) -> None:
    trie = {"token_ids": [104, 105, 111], "parents": [-1, 0, -1]}
    status, scores = asked(served, path="/palmette/score", input_ids=list(b"Hell"), trie=trie, unconditional=True)
    assert status == 200
    assert scores["unconditional"][0] == scores["unconditional"][2] == 0.0
    assert scores["unconditional"][1] < 0
    assert scores["usage"]["prompt_tokens"] == 4
    row = generate(
        served, text="Hellhi", sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=4
    )["meta_info"]["input_token_logprobs"]
    assert scores["logprobs"][:2] == pytest.approx([each[0] for each in row], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input_ids": [], "trie": {"token_ids": [1], "parents": [-1]}}, "input_ids"),
        ({"input_ids": [1], "trie": {"token_ids": [260], "parents": [-1]}}, "trie.token_ids"),
        ({"input_ids": [1], "trie": {"token_ids": [1, 2], "parents": [-1]}}, "trie"),
        ({"input_ids": [1], "trie": {"token_ids": [1, 2], "parents": [1, -1]}}, "trie"),
        ({"input_ids": [1], "trie": {"token_ids": [1]}}, "trie.parents"),
        ({"input_ids": [1]}, "trie"),
    ],
)
def test_a_trie_that_is_none_is_refused(served: Served, body: dict[str, Any], param: str) -> None:
    status, data = asked(served, path="/palmette/score", **body)
    assert (status, data["error"]["param"]) == (400, param)


# -- what is refused ---------------------------------------------------------------------------------------------------

DEEP: dict[str, Any] = {"spec": "Regex", "pattern": "a"}
for _ in range(70):
    DEEP = {"spec": "Concat", "parts": [DEEP]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a", ""]}, "text"),
        ({"text": 3}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[1], []]}, "input_ids"),
        ({"input_ids": [260]}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids[0]"),
        ({"input_ids": [[1], [True]]}, "input_ids[1][0]"),
        ({"input_ids": [1 << 40]}, "input_ids[0]"),
        ({"input_ids": ["a"]}, "input_ids[0]"),
        ({"text": ["a"] * 1025}, "text"),
        ({"text": ["a"] * 65, "sampling_params": {"n": 64}}, "n"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]}, "n"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": ["a", "b"], "return_logprob": [True]}, "return_logprob"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"temperature": "1"}}, "sampling_params.temperature"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"top_p": 0}]}, "sampling_params[1].top_p"),
        ({"text": "a", "sampling_params": {"top_k": 0}}, "top_k"),
        ({"text": "a", "sampling_params": {"n": 65}}, "sampling_params.n"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 200}}, "min_new_tokens"),
        ({"text": "a", "sampling_params": {"stop": [""]}}, "sampling_params.stop[0]"),
        ({"text": "a", "sampling_params": {"stop": ["x"] * 65}}, "sampling_params.stop"),
        ({"text": "a", "sampling_params": {"stop_token_ids": [260]}}, "stop_token_ids"),
        ({"text": "a", "sampling_params": {"logit_bias": {"260": 1}}}, "logit_bias"),
        ({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}}, "logit_bias"),
        ({"text": "a", "sampling_params": {"logit_bias": {"1": 1e9}}}, "sampling_params.logit_bias"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"text": "a", "timeout": 0}, "timeout"),
        ({"text": "a", "priority": 10**9}, "priority"),
        ({"text": "a", "cache_salt": 3}, "cache_salt"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": 'root ::= "a"'}}, "ebnf"),
        ({"text": "a", "sampling_params": {"regex": "a"}, "constraint": DEEP["parts"][0]}, None),
        ({"text": "a", "constraint": {"spec": "Regex"}}, "constraint"),
        ({"text": "a", "constraint": {"spec": "Nothing"}}, "constraint"),
        ({"text": "a", "constraint": {"spec": "Tag", "begin": "a", "content": None}}, "constraint"),
        ({"text": "a", "constraint": {"spec": "Regex", "pattern": "a", "more": 1}}, "constraint"),
        ({"text": "a", "constraint": DEEP}, None),
        ({"text": "a", "sampling_params": {"json_schema": {"a": "\ud800"}}}, "json_schema"),
        ({"text": "a", "constraint": {"spec": "Regex", "pattern": "\ud800"}}, "constraint"),
        ({"text": "\ud800"}, "text"),
        ({"text": "a", "sampling_params": {"min_p": float("nan")}}, "sampling_params.min_p"),
        ({"text": "a", "timeout": float("inf")}, "timeout"),
        ({"text": "a", "constraint": {"spec": "Choices", "texts": ["x" * (1 << 20), "y"]}}, None),
        ({"text": "a", "constraint": {"spec": "Concat", "parts": [{"spec": "Regex", "pattern": "a"}] * 5000}}, None),
        ({"text": "a", "regex": "a"}, "regex"),
        ({"text": "a", "guided_json": {}}, "guided_json"),
        ({"text": "a", "sampling_params": {"guided_regex": "a"}}, "guided_regex"),
        ({"text": "a", "sampling_params": {"choices": ["a"]}}, "choices"),
        ({"text": "a", "sampling_params": {"structural_thing": 1}}, "structural_thing"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_the_name_of_its_field(
    served: Served, body: dict[str, Any], param: str | None
) -> None:
    error = refused(served, **body)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "field",
    [
        {"image_data": "http://x/y.png"}, {"audio_data": ["x"]}, {"video_data": "x"}, {"input_embeds": [[0.1]]},
        {"lora_path": "x"}, {"session_params": {"id": "s"}}, {"custom_logit_processor": "x"},
        {"token_ids_logprob": [1]}, {"return_hidden_states": True}, {"max_thinking_tokens": 5},
        {"sampling_params": {"custom_params": {"a": 1}}}, {"sampling_params": {"beam_width": 4}},
        {"sampling_params": {"skip_special_tokens": False}},
        {"sampling_params": {"no_stop_trim": True, "stop_regex": "a"}},
    ],
)  # fmt: skip
def test_what_this_server_cannot_do_is_refused_and_not_ignored(served: Served, field: dict[str, Any]) -> None:
    name = next(iter(field.get("sampling_params", field)))
    error = refused(served, text="a", **field)
    assert "is not supported" in error["message"]
    assert name in error["message"]


def test_fields_that_ask_for_nothing_and_unknown_ones_are_ignored(served: Served) -> None:
    plain = generate(served, text="Hello", sampling_params=GREEDY)["text"]
    body: dict[str, Any] = {
        "image_data": None, "lora_path": [None], "session_params": {}, "return_hidden_states": False, "stream": False,
        "token_ids_logprob": [], "custom_logit_processor": None, "bootstrap_host": "x", "log_metrics": True,
        "modalities": [], "whatever": {"a": [1]}, "rid": None, "logprob_start_len": None, "top_logprobs_num": None,
        "return_logprob": None, "priority": None, "program": None,
    }  # fmt: skip
    params = GREEDY | {"custom_params": None, "beam_width": 1, "stream_interval": 3, "stop": None, "n": None}
    assert generate(served, text="Hello", sampling_params=params, **body)["text"] == plain


def test_a_prompt_longer_than_the_context_is_refused_and_one_as_long_can_be_cached(served: Served) -> None:
    assert refused(served, input_ids=[1] * 2048)["code"] == "context_length_exceeded"
    assert refused(served, input_ids=[1] * 2049, sampling_params={"max_new_tokens": 0})["code"] is not None
    full = generate(served, input_ids=[1] * 2048, sampling_params={"max_new_tokens": 0})
    assert full["meta_info"]["prompt_tokens"] == 2048


# -- aborts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """A server of two clients whose engine takes one request at a time."""
    config = ServerConfig(
        api_keys=(ANN, BOB), admin_key=ADMIN, limits=ServerLimits(max_in_engine=1, queue_timeout=60.0)
    )
    with serving(tiny_model(), config) as running:
        yield running


LONG = {"max_new_tokens": 2000, "ignore_eos": True}


def abort(served: Served, key: str, **body: Any) -> tuple[int, Any]:
    return asked(served, key, "/abort_request", **body)


def test_an_abort_ends_what_runs_with_what_it_has_and_nobody_aborts_anothers(narrow: Served) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(generate, narrow, ANN, text="Hello", sampling_params=LONG, rid="mine")
        until(lambda: (stats := narrow.service.stats()) is not None and stats.running == 1 and stats.sampled_tokens > 3)
        assert abort(narrow, BOB, rid="mine") == (200, {"aborted": 0})
        assert abort(narrow, ANN, rid="min") == (200, {"aborted": 0})
        assert abort(narrow, ANN, rid="mine") == (200, {"aborted": 1})
        answer = running.result(20)
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < answer["meta_info"]["completion_tokens"] < 2000
    assert answer["output_ids"]
    assert answer["meta_info"]["id"] == "mine"
    until(lambda: narrow.service.gate.num_inside == 0)
    assert abort(narrow, ANN, rid="mine") == (200, {"aborted": 0})


def test_an_abort_ends_what_waits_for_its_turn(narrow: Served) -> None:
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(generate, narrow, ANN, text="Hello", sampling_params=LONG, rid="first")
        until(lambda: narrow.service.gate.num_inside == 1)
        waiting = pool.submit(generate, narrow, ANN, text="Hello", sampling_params=LONG, rid="second")
        in_stream = pool.submit(streamed, narrow, BOB, text="Hello", sampling_params=LONG, rid="second")
        until(lambda: narrow.service.gate.num_waiting == 2)
        assert abort(narrow, ANN, rid="second") == (200, {"aborted": 1})
        answer = waiting.result(20)
        assert (answer["text"], answer["meta_info"]["finish_reason"]["type"]) == ("", "abort")
        assert not running.done()
        assert abort(narrow, BOB, rid="second") == (200, {"aborted": 1})
        chunks, is_done = in_stream.result(20)
        assert is_done
        assert chunks[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert abort(narrow, ANN, rid="first") == (200, {"aborted": 1})
        assert running.result(20)["meta_info"]["finish_reason"]["type"] == "abort"
    until(lambda: narrow.service.gate.num_inside == narrow.service.gate.num_waiting == 0)


def test_a_batch_ends_by_its_one_id_and_by_those_of_its_entries(narrow: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, narrow, ANN, text=["a", "b", "c"], sampling_params=LONG, rid="all")
        until(lambda: narrow.service.gate.num_waiting == 2)
        assert abort(narrow, ANN, rid="all_1") == (200, {"aborted": 1})
        until(lambda: narrow.service.gate.num_waiting == 1)
        assert abort(narrow, ANN, rid="all")[1]["aborted"] in (2, 3)
        answers = running.result(20)
    assert [a["meta_info"]["finish_reason"]["type"] for a in answers] == ["abort"] * 3
    assert [a["meta_info"]["id"] for a in answers] == ["all_0", "all_1", "all_2"]


def test_only_an_admin_aborts_everything_and_flushes(narrow: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, narrow, ANN, text="Hello", sampling_params=LONG)
        until(lambda: narrow.service.gate.num_inside == 1)
        assert abort(narrow, BOB, abort_all=True)[0] == 403
        assert abort(narrow, ADMIN, abort_all=True) == (200, {"aborted": 1})
        assert running.result(20)["meta_info"]["finish_reason"]["type"] == "abort"
    assert abort(narrow, ANN)[0] == 400
    for key, status in ((ANN, 403), (ADMIN, 200)):
        with narrow.client(headers={"authorization": f"Bearer {key}"}) as client:
            assert client.post("/flush_cache").status_code == client.get("/flush_cache").status_code == status


def test_an_abort_ends_what_waits_for_an_engine() -> None:
    with serving(tiny_model()) as served, ThreadPoolExecutor(1) as pool:
        card, loop, service = served.service.model, served.loop, served.service
        loop.call_soon_threadsafe(service.detach, "the engine died")
        running = pool.submit(generate, served, text="Hello", sampling_params=GREEDY, rid="mine")
        until(lambda: len(service.flights) == 1)
        assert abort(served, ANN, rid="mine") == (200, {"aborted": 1})
        assert running.result(20)["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(service.flights) == service.gate.num_inside == 0
        loop.call_soon_threadsafe(service.attach, served.link, card)
        assert generate(served, text="Hello", sampling_params=GREEDY)["text"]


def test_an_abort_that_the_engine_does_not_answer_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_abort, "_PATIENCE", 0.05)
    monkeypatch.setattr(LocalLink, "cancel", lambda link, request_id: None)
    with serving(tiny_model()) as served, ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, served, text="Hello", sampling_params=LONG, rid="mine")
        until(lambda: (stats := served.service.stats()) is not None and stats.running == 1)
        assert abort(served, ANN, rid="mine") == (200, {"aborted": 1})
        assert running.result(20)["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_client_that_leaves_stops_its_work(narrow: Served) -> None:
    with narrow.client(headers={"authorization": f"Bearer {ANN}"}) as client:
        body = {"text": ["a", "b"], "sampling_params": LONG, "stream": True}
        with client.stream("POST", "/generate", json=body) as answer:
            lines = answer.iter_lines()  # held: to drop it is to hang up
            next(lines)
            assert narrow.service.gate.num_inside == 1
    until(lambda: narrow.service.gate.num_inside == narrow.service.gate.num_waiting == 0)
    until(lambda: (stats := narrow.service.stats()) is not None and stats.running == stats.waiting == 0)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_flush_forgets_what_was_cached(served: Served) -> None:
    prompt = "something to be forgotten"
    for cached in (0, len(prompt) - 1):
        warm = generate(served, text=prompt, sampling_params={"max_new_tokens": 1})
        assert warm["meta_info"]["cached_tokens"] == cached
    with served.client() as client:
        assert client.post("/flush_cache").status_code == 200
    assert generate(served, text=prompt, sampling_params={"max_new_tokens": 1})["meta_info"]["cached_tokens"] == 0


def test_concate_and_append_is_taken_and_does_nothing(served: Served) -> None:
    assert asked(served, path="/concate_and_append_request", src_rids=["a"], dst_rid="b")[0] == 200


@pytest.mark.model
def test_a_conversation_as_sglangs_frontend_writes_it_is_tokens_of_the_models_own_template() -> None:
    from palmette.runtime.models.load import load_model
    from palmette.types import Message

    with serving(load_model("smollm2", dtype="auto", cpu_kernels="auto")) as served:
        messages = [Message("user", "What is the capital of France?")]
        text = served.service.template.render(messages, add_generation_prompt=True)
        params = {"max_new_tokens": 12, "temperature": 0}
        answer = generate(served, text=text, sampling_params=params, return_prompt_token_ids=True)
        assert "Paris" in answer["text"]
        special = set(served.service.tokenizer.special_tokens.values())
        assert special & set(answer["prompt_token_ids"])
        with served.client() as client:
            packed = client.get("/palmette/tokenizer", headers={"accept-encoding": "gzip"})
            made = tokenizer_of_data(packed.json())
            with client.stream("GET", "/palmette/tokenizer") as raw:
                size = len(b"".join(raw.iter_raw()))
        assert size < len(gzip.compress(packed.content, 1)) < len(packed.content)
        assert made.encode(text) == served.service.tokenizer.encode(text)


def test_a_salt_and_an_extra_key_are_not_taken_for_another_salt(served: Served) -> None:
    body = {"text": "a prompt that only this test sends, long enough", "sampling_params": {"max_new_tokens": 1}}

    def cached(client: httpx2.Client, **salts: str) -> int:
        answer = client.post("/generate", json={**body, **salts})
        assert answer.status_code == 200, answer.text
        found: int = answer.json()["meta_info"]["cached_tokens"]
        return found

    with served.client() as client:
        assert cached(client, cache_salt="a", extra_key="b") == 0
        assert cached(client, cache_salt="a/b") == 0
        assert cached(client, cache_salt="a", extra_key="b") > 0
