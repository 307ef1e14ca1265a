"""`Engine` with SGLang's arguments and results, on the tiny model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

import palmette as pm
from palmette.runtime.models.tiny import tiny_model

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[pm.Engine]:
    with pm.Engine(tiny_model(), kv_tokens=4096, is_embedding=True) as engine:
        yield engine


def test_one_prompt_gives_one_result_and_a_list_a_list(engine: pm.Engine) -> None:
    one = engine.generate("Hello", GREEDY)
    assert set(one) == {"text", "output_ids", "meta_info"}
    assert len(one["output_ids"]) == 6
    assert one["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
    assert one["meta_info"]["prompt_tokens"] == 5
    many = engine.generate(["Hello", "World"], [GREEDY, {**GREEDY, "max_new_tokens": 2}])
    assert many[0]["output_ids"] == one["output_ids"]
    assert len(many[1]["output_ids"]) == 2


def test_token_ids_may_stand_for_text(engine: pm.Engine) -> None:
    ids = list(b"Hello")
    expected = engine.generate("Hello", GREEDY)["output_ids"]
    assert engine.generate(input_ids=ids, sampling_params=GREEDY)["output_ids"] == expected
    assert [r["output_ids"] for r in engine.generate(input_ids=[ids, ids], sampling_params=GREEDY)] == [expected] * 2


def test_n_samples_come_as_a_list(engine: pm.Engine) -> None:
    results = engine.generate("Hello", {"n": 3, "temperature": 1.0, "max_new_tokens": 8, "seed": 1, "ignore_eos": True})
    assert len({tuple(r["output_ids"]) for r in results}) == 3


def test_logprobs_come_with_rows_for_prompt_and_output(engine: pm.Engine) -> None:
    info = engine.generate("Hello", GREEDY, return_logprob=True, logprob_start_len=0, top_logprobs_num=2)["meta_info"]
    assert [row[1] for row in info["input_token_logprobs"]] == list(b"Hello")
    assert info["input_token_logprobs"][0][0] is None
    assert all(row[0] is not None for row in info["input_token_logprobs"][1:])
    assert len(info["output_token_logprobs"]) == 6
    assert all(len(row) == 2 for row in info["output_top_logprobs"])
    best = [max(row, key=lambda r: r[0])[1] for row in info["output_top_logprobs"]]
    assert best == [row[1] for row in info["output_token_logprobs"]]


def test_streams_add_up_to_the_result(engine: pm.Engine) -> None:
    expected = engine.generate("Hello", GREEDY)
    chunks = list(engine.generate("Hello", GREEDY, stream=True))
    assert chunks[-1]["text"] == expected["text"]
    assert chunks[-1]["output_ids"] == expected["output_ids"]

    async def collect() -> list[Any]:
        return [chunk async for chunk in await engine.async_generate("Hello", GREEDY, stream=True)]

    assert asyncio.run(collect())[-1]["output_ids"] == expected["output_ids"]


def test_async_generate_gives_the_same(engine: pm.Engine) -> None:
    assert asyncio.run(engine.async_generate("Hello", GREEDY))["text"] == engine.generate("Hello", GREEDY)["text"]


@pytest.mark.parametrize(
    ("constraint", "check"),
    [
        ({"regex": "[ab]{3}c"}, lambda text: re.fullmatch("[ab]{3}c", text)),
        ({"json_schema": {"type": "array", "items": {"type": "integer"}}}, lambda text: json.loads(text) is not None),
        ({"json_schema": '{"enum": ["x", "y"]}'}, lambda text: json.loads(text) in ("x", "y")),
        ({"ebnf": 'root ::= "a" root "b" | "ab"'}, lambda text: re.fullmatch("a+b+", text)),
    ],
)
def test_constraints_of_the_sampling_parameters_hold(engine: pm.Engine, constraint: Any, check: Any) -> None:
    results = engine.generate(["Hello", "World"], {"max_new_tokens": 24, "temperature": 1.0, "seed": 3, **constraint})
    assert all(check(result["text"]) for result in results)


def test_embeddings_have_length_one_and_do_not_depend_on_their_batch(engine: pm.Engine) -> None:
    one, two = engine.encode(["Hello", "World, how are you?"])
    assert sum(x * x for x in one["embedding"]) == pytest.approx(1.0, abs=1e-5)
    assert engine.encode("Hello")["embedding"] == pytest.approx(one["embedding"], abs=1e-6)
    assert one["embedding"] != pytest.approx(two["embedding"], abs=1e-3)


def test_embeddings_need_the_callers_word() -> None:
    with pm.Engine(tiny_model(), kv_tokens=256) as engine, pytest.raises(pm.UnsupportedFeature, match="is_embedding"):
        engine.encode("Hello")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({}, pm.InvalidOption),
        ({"prompt": "a", "input_ids": [1]}, pm.InvalidOption),
        ({"prompt": "a", "sampling_params": {"regex": "(a"}}, pm.UnsupportedConstraint),
        ({"prompt": "a", "sampling_params": {"json_schema": "{"}}, pm.UnsupportedConstraint),
        ({"prompt": "a", "sampling_params": {"ebnf": "nonsense"}}, pm.UnsupportedConstraint),
        ({"prompt": "a", "sampling_params": {"structural_tag": "{}"}}, pm.InvalidOption),
        ({"prompt": "a", "sampling_params": {"thinking_budget": 3}}, pm.InvalidOption),
        ({"prompt": "a", "sampling_params": {"regex": "a", "json_schema": "{}"}}, pm.InvalidOption),
        ({"prompt": "a", "sampling_params": {"unknown": 1}}, pm.InvalidOption),
        ({"prompt": "a", "image_data": "x"}, pm.UnsupportedFeature),
        ({"prompt": "a", "lora_path": "x"}, pm.UnsupportedFeature),
        ({"prompt": ["a", "b"], "return_logprob": [True]}, pm.InvalidOption),
        ({"prompt": ["a", "b"], "stream": True}, pm.InvalidOption),
        ({"input_ids": [10**6]}, pm.PalmetteError),
    ],
)
def test_what_cannot_be_done_is_refused(engine: pm.Engine, call: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        list(engine.generate(**call))


def test_programs_run_on_an_engines_runtime(engine: pm.Engine) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "Hello" + pm.gen("x", max_tokens=6, ignore_eos=True)

    assert program.run(backend=engine.runtime, temperature=0)["x"] == engine.generate("Hello", GREEDY)["text"]


def test_a_flushed_cache_has_nothing_to_give(engine: pm.Engine) -> None:
    engine.generate("Hello again", GREEDY)
    assert engine.generate("Hello again", GREEDY)["meta_info"]["cached_tokens"] == len("Hello again") - 1
    engine.flush_cache()
    assert engine.generate("Hello again", GREEDY)["meta_info"]["cached_tokens"] == 0
    assert engine.get_server_info()["kv_total"] == 4096
