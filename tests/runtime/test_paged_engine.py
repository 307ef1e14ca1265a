"""The engine on the paged runner, overlapped and with steps in buckets: the tokens of the plain engine on torch."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from numpy.testing import assert_allclose

import tests.kernels.gpu.interpreter  # noqa: F401 # makes it faster
from palmette.kernels.gpu.step_kernels import TritonKernels
from palmette.kernels.step_kernels import StepKernels, TorchKernels
from palmette.runtime.admission import Limits
from palmette.runtime.device_ops import DeviceOps
from palmette.runtime.engine import EngineCore
from palmette.runtime.memory import KVMemory
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.paged_plan import PagedLimits
from palmette.runtime.paged_runner import PagedRunner
from palmette.runtime.runners import settle
from palmette.runtime.scheduler import Scheduler
from palmette.specs import Regex
from palmette.types import ChoiceTrie, LogprobParams, Request, ScoreEvent, ScoreRequest
from tests.runtime.driving import Run, drive, engine, flat_config, generate, text_ids

SMALL = PagedLimits(cut=64, short=4, wide=32, widest=64, extend=32, key_tile=64, gather_from=24)


def paged_engine(kernels: StepKernels, family: str = "llama", **options: Any) -> EngineCore:
    """An engine whose decoder asks `kernels`; sampling is the device's."""
    loaded = tiny_model(3, family)
    config = settle(flat_config(**options), loaded)
    assert config.cache.kv_tokens is not None, "settled"
    assert config.model.context_len is not None, "settled"
    decoder = Decoder(loaded.config, loaded.decoder.weights, kernels)
    runner = PagedRunner(
        decoder,
        num_slots=config.cache.kv_tokens,
        max_running_rows=Scheduler.num_rows(config.scheduler),
        context_len=config.model.context_len,
        graphs=True,
        limits=SMALL,
    )
    runner.ops = DeviceOps(decoder.device)
    return EngineCore(
        runner,
        Scheduler(KVMemory(config.cache.kv_tokens, 1, shares=True, listens=True), config.scheduler),
        Limits(loaded.config.vocab_size, config.model.context_len, config.cache.kv_tokens, 1),
        config=config,
        tokenizer=loaded.tokenizer,
    )


def work(seed: int, num: int) -> list[Request]:
    """Siblings behind one prompt and strangers; greedy and drawn, with penalties, logprobs, constraints, choices."""
    rng = random.Random(seed)
    header = "".join(rng.choice("abcdef ") for _ in range(rng.choice([10, 70])))
    found: list[Request] = []
    for i in range(num):
        prompt = (header if rng.random() < 0.6 else "") + "".join(
            rng.choice("uvwxyz") for _ in range(rng.randint(1, 9))
        )
        options: dict[str, Any] = {"temperature": rng.choice([0.0, 1.0]), "seed": i}
        options |= rng.choice([{}, {"top_k": 5}, {"top_p": 0.8}, {"presence_penalty": 1.0, "repetition_penalty": 1.2}])
        if rng.random() < 0.3:
            options["logprobs"] = LogprobParams(top=2)
        if rng.random() < 0.4:
            options |= {"constraint": Regex(r"(yes|no), [0-9]{2}"), "max_new_tokens": 12}
        found.append(generate(str(i), prompt, rng.randint(1, 7), **options))
    found.append(ScoreRequest("score", text_ids(header + "?"), ChoiceTrie((97, 98, 99, 100), (-1, 0, 0, -1))))
    return found


def assert_same(got: Run, wanted: Run, requests: Iterable[Request]) -> None:
    for request in requests:
        name = request.request_id
        if isinstance(request, ScoreRequest):
            mine, other = got.last(name), wanted.last(name)
            assert isinstance(mine, ScoreEvent)
            assert isinstance(other, ScoreEvent)
            assert_allclose(mine.logprobs, other.logprobs, atol=1e-4)
            continue
        assert got.sampled(name) == wanted.sampled(name)
        assert got.text(name) == wanted.text(name)
        assert got.finish(name).reason == wanted.finish(name).reason
        assert_allclose(values(got, name), values(wanted, name), atol=1e-4)


def values(run: Run, name: str) -> list[float]:
    return [row.logprob for row in run.logprobs(name) if row.logprob is not None]


@pytest.mark.parametrize("overlap", ["on", "off"])
@pytest.mark.parametrize("seed", range(6))
def test_it_gives_the_plain_engines_tokens_by_definition(seed: int, overlap: str) -> None:
    requests = work(seed, 7)
    options: dict[str, Any] = {
        "kv_tokens": 300 if seed % 2 else 1000,
        "context_len": 128,
        "chunk_size": 64,
        "max_running": 8,
    }
    wanted = drive(engine(**options), requests)
    got = drive(paged_engine(TorchKernels(), overlap=overlap, **options), requests)
    assert_same(got, wanted, requests)


def test_a_long_prompt_brings_more_table_entries_than_places_were_made_for() -> None:
    request = generate("long", "ab" * 900, 3)
    options: dict[str, Any] = {"kv_tokens": 2000, "context_len": 1900, "chunk_size": 1801}
    wanted = drive(engine(**options), [request])
    assert_same(drive(paged_engine(TorchKernels(), **options), [request]), wanted, [request])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_so_does_triton(family: str) -> None:
    requests = work(2, 3)
    options: dict[str, Any] = {"kv_tokens": 300, "context_len": 128, "chunk_size": 64, "max_running": 4}
    wanted = drive(engine(tiny_model(3, family), **options), requests)
    assert_same(drive(paged_engine(TritonKernels(), family, **options), requests), wanted, requests)
