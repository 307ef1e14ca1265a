"""The compiled CPU core through the whole engine: an answer never depends on company, cuts, cache or retraction.

Here there are no ties to count, as ties.py does for torch: tokens are equal because the bits are. And quantised weights
cost at most one percent of perplexity on a fixed text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from palmette.interpreter.backends.local import runtime_config
from palmette.kernels.cpu.library import choose_instruction_set, library
from palmette.native import NotBuilt
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.compiled_runner import CompiledRunner
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.compiled import CompiledDecoder, compile_weights
from palmette.runtime.models.config import FAMILIES
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_model import GGUFSource, gguf_config
from palmette.runtime.models.load import find_model, load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.weights import WeightSource
from palmette.runtime.runner import Runner
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import GenerateRequest, SamplingParams
from tests.acceptance.prompts import PROMPTS
from tests.acceptance.test_foundation import complete
from tests.conftest import Figures
from tests.kernels.cpu.models import FORMATS, core, decoder

core()
TEXT = Path(__file__).resolve().parents[1] / "data" / "perplexity.txt"
Kinds = Mapping[str, SamplingParams]


def instruction_set() -> str:
    try:
        return choose_instruction_set("auto")
    except NotBuilt as error:
        pytest.skip(str(error))


@dataclass(slots=True)
class Tally:
    """Answers compared with the one of the request alone."""

    variants: int = 0
    tokens: int = 0
    retractions: int = 0
    different: list[str] = field(default_factory=list)

    def add(self, name: str, expected: Sequence[Sequence[int]], got: Sequence[Sequence[int]]) -> None:
        for i, (want, have) in enumerate(zip(expected, got, strict=True)):
            self.variants += 1
            self.tokens += len(want)
            if want != have:
                self.different.append(f"{name}, prompt {i}: {have}, alone {want}")


# variant -> options of the runtime, retract the youngest every n-th step
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "batched": ({"enabled": False}, 0),
    "cached": ({}, 0),
    "three at a time": ({"max_running": 3}, 0),
    "in random order": ({"policy": "random", "max_running": 5}, 0),
    "chunks of 7": ({"chunk_size": 7}, 0),
    "chunks of 65": ({"chunk_size": 65}, 0),
    "chunks of 600": ({"chunk_size": 600}, 0),
    "pages of 16": ({"page_size": 16}, 0),
    "retracted": ({}, 2),
}


def compare(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], kinds: Kinds, *, kv_tokens: int, tally: Tally
) -> None:
    """Every prompt of every kind in every variant against the same request alone in an engine without a cache."""
    longest = max(len(p) for p in prompts) + max(p.max_new_tokens or 0 for p in kinds.values())

    def build(**options: Any) -> EngineCore:
        return build_engine(loaded, runtime_config(loaded.name, {"kv_tokens": kv_tokens, **options}))

    for kind, params in kinds.items():
        requests = [GenerateRequest(f"{i}", tuple(row), params, seed=i) for i, row in enumerate(prompts)]
        single = build(enabled=False)
        alone = [complete(single, [request])[0] for request in requests]
        for name, (options, retract_every) in VARIANTS.items():
            engine = build(**options)
            tally.add(f"{loaded.name}, {kind}, {name}", alone, complete(engine, requests, retract_every))
            tally.retractions += engine.stats().retractions
            if name == "cached":  # and once more, when the tree holds every prompt
                tally.add(f"{loaded.name}, {kind}, again", alone, complete(engine, requests))
        # A pool that holds little more than one request, and believes that requests hardly grow.
        engine = build(kv_tokens=longest + 64, decode_reserve=0)
        tally.add(f"{loaded.name}, {kind}, scarce memory", alone, complete(engine, requests))
        tally.retractions += engine.stats().retractions


def check(tally: Tally, figures: Figures) -> None:
    figures(variants=tally.variants, tokens=tally.tokens, retractions=tally.retractions, different=len(tally.different))
    assert tally.different == [], tally.different[:3]
    assert tally.retractions > 0


def kinds(tokens: int) -> Kinds:
    return {
        "greedy": SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True),
        "drawn": SamplingParams(max_new_tokens=tokens, temperature=0.9, top_p=0.95, ignore_eos=True),
    }


def random_prompts(count: int, seed: int) -> list[tuple[int, ...]]:
    """Bytes, of 1 to 500 tokens; many begin like another one."""
    rng = random.Random(seed)
    prompts: list[tuple[int, ...]] = []
    for _ in range(count):
        begin = rng.choice(prompts)[: rng.choice([64, 100, 256, 500])] if prompts and rng.random() < 0.6 else ()
        own = tuple(rng.randrange(256) for _ in range(rng.choice([1, 2, 9, 60, 200])))
        prompts.append((begin + own)[:500])
    return prompts


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Faster than two that wait for each other: for tiny models always, for torch on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_ten_thousand_variants_of_random_prompts(full: bool, figures: Figures) -> None:
    """Every family and format on the tiny models: alone is the same as in any company."""
    tally, best = Tally(), instruction_set()
    subjects = [(family, form) for family in FAMILIES for form in FORMATS]
    for i, (family, form) in enumerate(subjects if full else [("llama", "U4"), ("gemma2", "U8")]):
        model = decoder(family, form, best)
        loaded = LoadedModel(model.config, model, ByteTokenizer(), model.digest, f"{family} {form}")
        prompts = random_prompts(26 if full else 6, seed=i)
        compare(loaded, prompts, kinds(8 if full else 4), kv_tokens=3000, tally=tally)
    check(tally, figures)
    assert tally.variants >= (10_000 if full else 200)


@pytest.mark.model
def test_variants_of_real_prompts_on_the_embedded_model(full: bool, figures: Figures) -> None:
    """As a user runs it: dtype="auto", the file's own blocks."""
    if not full:
        pytest.skip("with --full only")
    loaded = load_model("smollm2", dtype="auto", cpu_kernels="auto")
    assert isinstance(loaded.model, CompiledDecoder)
    encode = loaded.tokenizer.encode
    header = encode(TEXT.read_text(encoding="utf-8")[:700] + "\n\n")
    prompts = [header + encode(prompt) if i % 2 else encode(prompt) for i, prompt in enumerate(PROMPTS[:10])]
    tally = Tally()
    compare(loaded, prompts, kinds(16), kv_tokens=2048, tally=tally)
    check(tally, figures)


# -- perplexity --------------------------------------------------------------------------------------------------------


class Dequantized(GGUFSource):
    """The file's tensors as floats, so that dtype="int8" quantises all of them."""

    def blocks(self, name: str) -> None:
        return None


def runners(full: bool) -> dict[str, Runner]:
    """Torch in float32 first, then the core on the file's blocks, on 8-bit blocks, and on floats."""
    path, _ = find_model("smollm2")
    file = GGUFFile(path)
    config, best = gguf_config(file), instruction_set()
    sizes = {"num_slots": 1024, "max_running_rows": 1, "context_len": 1024}

    def core_on(source: WeightSource, precision: Any) -> CompiledRunner:
        model = compile_weights(config, source, library=library(), instruction_set=best, precision=precision)
        return CompiledRunner(model, **sizes)

    reference = load_model("smollm2").model
    assert isinstance(reference, Decoder)
    made: dict[str, Runner] = {"torch float32": ModelRunner(reference, **sizes)}
    made["auto"] = core_on(GGUFSource(file, config), "auto")
    if full:
        made["int8"] = core_on(Dequantized(file, config), "int8")
        made["float32"] = core_on(GGUFSource(file, config), "float32")
    return made


def negative_log_likelihood(runner: Runner, ids: Sequence[int], window: int) -> NDArray[np.float64]:
    """Of every token but the first of each window; computed in chunks, as the engine would."""
    found = []
    for begin in range(0, len(ids) - 1, window):
        part, at = tuple(ids[begin : begin + window]), 0
        while at < len(part):
            piece = part[at : at + 128]
            slots = tuple(range(at, at + len(piece)))
            step = ScheduledBatch((ScheduledRow(0, piece, at, slots, logits_from=0),))
            targets = np.array(part[at + 1 : at + 129], np.int64)
            logits = runner.forward(step).numpy()[: len(targets)]
            most = logits.max(-1, keepdims=True)
            norms = np.log(np.exp(logits - most).sum(-1, dtype=np.float64)) + most[:, 0]
            found.append(norms - logits[np.arange(len(targets)), targets])
            at += len(piece)
    return np.concatenate(found)


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_quantised_perplexity_is_within_a_percent(full: bool, figures: Figures) -> None:
    tokenizer = load_model("smollm2", dtype="auto", cpu_kernels="auto").tokenizer
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"))[: None if full else 257]
    wanted = None
    for name, runner in runners(full).items():
        losses = negative_log_likelihood(runner, ids, 1024 if full else 256)
        perplexity = float(np.exp(losses.mean()))
        if wanted is None:
            wanted, exact = perplexity, losses
            figures(tokens=len(losses), **{name: round(perplexity, 4)})
            assert 2 < perplexity < 60, "this is no English, or no model of it"
            continue
        ratio = perplexity / wanted
        worst = float(np.abs(losses - exact).max())
        figures(**{name: f"{perplexity:.4f}, ratio {ratio:.5f}, furthest token {worst:.2f} nats"})
        print(f"{name}: perplexity {perplexity:.4f}, {ratio:.5f} of float32's")  # noqa: T201
        # A percent is promised for the whole text; a short piece says little.
        assert abs(ratio - 1) < (0.01 if full else 0.05), name
        if name == "float32":
            assert worst < 1e-3
