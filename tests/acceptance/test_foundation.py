"""The acceptance lines of the foundation, small; `make acceptance` runs them at full size (`--full`)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import palmette as pm
from benchmarks import programs as programs_benchmark
from benchmarks import radix as radix_benchmark
from examples import chat, classify, few_shot_qa, hello, judge, skeleton_of_thought
from palmette.interpreter.backends.local import Runtime, runtime_config
from palmette.lang.engine import Engine
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.request import Status
from palmette.runtime.sampler import Draw, draw_margin
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import GenerateRequest, SamplingParams, TokenEvent
from tests.acceptance.prompts import PROMPTS
from tests.acceptance.ties import Comparison
from tests.conftest import Figures

EXAMPLES = [hello, few_shot_qa, chat, skeleton_of_thought, judge, classify]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model("smollm2")


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def subject(full: bool, request: pytest.FixtureRequest) -> LoadedModel:
    """The embedded model at full size, the tiny one otherwise."""
    model: LoadedModel = request.getfixturevalue("embedded" if full else "tiny")
    return model


@pytest.fixture
def default_backend(subject: LoadedModel) -> Iterator[Runtime]:
    with Runtime(subject, measure_optimum=True) as runtime:
        pm.set_default_backend(runtime)
        yield runtime
        pm.set_default_backend(None)


# -- 2: the same tokens ------------------------------------------------------------------------------------------------


def greedy(engine: Engine, ids: Sequence[Sequence[int]], tokens: int, **params: Any) -> list[list[int]]:
    """Greedy continuations of a batch that is submitted at once."""
    settings = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **params}
    results = engine.generate(input_ids=[list(i) for i in ids], sampling_params=settings)
    return [r["output_ids"] for r in results]


def margin(model: LoadedModel, request: GenerateRequest, output: Sequence[int], index: int) -> float:
    """How near token `index` of an output was to being another: by logits if greedy, else by the draw."""
    ids = (*request.token_ids, *output[:index])
    runner = ModelRunner(model.decoder, num_slots=len(ids), max_running_rows=1, context_len=len(ids))
    row = ScheduledRow(row=0, token_ids=ids, start=0, slots=tuple(range(len(ids))), logits_from=len(ids) - 1)
    logits = runner.forward(ScheduledBatch((row,)))[0]
    return draw_margin(logits, Draw(request.params, seed=request.seed, index=index))


@pytest.mark.model
def test_line_2_greedy_tokens_and_logprobs_equal_transformers(
    embedded: LoadedModel, hf_embedded: Any, full: bool, figures: Figures
) -> None:
    prompts, tokens = (PROMPTS, 64) if full else (PROMPTS[:5], 12)
    comparison, worst = Comparison(), 0.0
    with Engine(embedded) as engine:
        ids = [embedded.tokenizer.encode(prompt) for prompt in prompts]
        # min_new_tokens bans the end of sequence, here as there
        settings = {"temperature": 0, "max_new_tokens": tokens, "min_new_tokens": tokens}
        results = engine.generate(input_ids=ids, sampling_params=settings, return_logprob=True)
        for prompt, result in zip(ids, results, strict=True):
            with torch.inference_mode():
                out = hf_embedded.generate(
                    torch.tensor([prompt]),
                    attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
                    do_sample=False,
                    min_new_tokens=tokens,
                    max_new_tokens=tokens,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            expected = out.sequences[0, len(prompt) :].tolist()
            ours = result["output_ids"]
            probe = GenerateRequest("probe", tuple(prompt), SamplingParams(temperature=0))
            comparison.add(expected, ours, partial(margin, embedded, probe, expected))
            rows = result["meta_info"]["output_token_logprobs"]
            for index, (logits, (logprob, token, _)) in enumerate(zip(out.logits, rows, strict=True)):
                if expected[: index + 1] != ours[: index + 1]:
                    break
                theirs = torch.log_softmax(logits[0], dim=-1)[token].item()
                worst = max(worst, abs(theirs - logprob))
    figures(prompts=len(prompts), tokens=comparison.tokens, ties=comparison.ties, worst_logprob_difference=worst)
    comparison.check()
    assert worst < 1e-3


def complete(core: EngineCore, requests: Sequence[GenerateRequest], retract_every: int = 0) -> list[list[int]]:
    """Step an engine until every request ended; retracts the youngest running one every k-th step."""
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request, now=0.0)
    for step in itertools.count(1):
        if not core.has_work:
            break
        for event in core.step(now=float(step)):
            assert isinstance(event, TokenEvent)
            outputs[event.request_id].extend(event.token_ids)
            assert event.finish is None or event.finish.error is None
        core.check_integrity()
        running = [job.request_id for job in core.scheduler.jobs() if job.status is Status.RUNNING]
        if retract_every and step % retract_every == 0 and running:
            core.scheduler.retract(running[-1])
    stats = core.stats()
    assert stats.kv_free + stats.kv_evictable == stats.kv_total
    return list(outputs.values())


def test_line_2_same_tokens_cached_batched_chunked_and_retracted(
    subject: LoadedModel, full: bool, figures: Figures
) -> None:
    prompts, tokens = (PROMPTS, 64) if full else (PROMPTS[:4], 16)
    encode = subject.tokenizer.encode
    header = encode("A list of sentences, each of which goes on in its own way.\n")
    ids = [tuple(header + encode(prompt)) for prompt in prompts]
    kinds = {"greedy": SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)}
    kinds["drawn"] = SamplingParams(max_new_tokens=tokens, temperature=0.8, ignore_eos=True)

    def requests(kind: str) -> list[GenerateRequest]:
        return [GenerateRequest(f"{kind}-{i}", row, kinds[kind], seed=i) for i, row in enumerate(ids)]

    def build(**options: Any) -> EngineCore:
        kv_tokens = 16_384 if full else 1_024
        return build_engine(subject, runtime_config(subject.name, {"kv_tokens": kv_tokens, **options}))

    variants: dict[str, tuple[dict[str, Any], int]] = {
        "cached": ({}, 0),
        "not cached": ({"enabled": False}, 0),
        "one at a time": ({"max_running": 1}, 0),
        **{f"chunks of {c}": ({"chunk_size": c}, 0) for c in (16, 64, 512)},
        **{f"retracted every {k}": ({}, k) for k in (1, 2, 3, 7)},
    }
    total = Comparison()
    for kind in kinds:
        plain = [complete(build(enabled=False), [request])[0] for request in requests(kind)]
        for name, (options, retract_every) in variants.items():
            core = build(**options)
            answers = complete(core, requests(kind), retract_every)
            ties = total.ties
            for request, want, got in zip(requests(kind), plain, answers, strict=True):
                total.add(want, got, partial(margin, subject, request, want))
            assert bool(core.stats().retractions) == bool(retract_every)
            if total.ties > ties:
                figures(**{f"ties {kind}, {name}": total.ties - ties})
    figures(prompts=len(ids), variants=len(variants) * len(kinds), tokens=total.tokens, ties=total.ties)
    total.check()


# -- 3: nothing is computed twice --------------------------------------------------------------------------------------


def test_line_3_a_fork_computes_its_prefix_once(subject: LoadedModel, full: bool, figures: Figures) -> None:
    branches = 64
    prefix = ("water " * 1000)[: None if full else 1000]  # 1,000 tokens of either model
    encode = subject.tokenizer.encode
    suffixes = [f" Branch {i} begins:" for i in range(branches)]

    @pm.function
    def wide(s: pm.State) -> None:
        s += prefix
        group = s.fork(branches)
        for state, suffix in zip(group, suffixes, strict=True):
            state += suffix + pm.gen("x", max_tokens=2, ignore_eos=True)
        group.join()

    with Runtime(subject, context_len=2048) as runtime:
        wide.run(backend=runtime, temperature=0)
        computed = runtime.stats().computed_prompt_tokens
    expected = _distinct([encode(prefix) + encode(s) for s in suffixes])
    figures(prefix=len(encode(prefix)), branches=branches, computed=computed, expected=expected)
    assert computed == expected


def test_line_3_unrelated_requests_with_one_new_prefix_compute_it_once(
    subject: LoadedModel, full: bool, figures: Figures
) -> None:
    encode = subject.tokenizer.encode
    prefix = encode(("stone " * 1000)[: None if full else 1000])
    ids = [prefix + encode(f" Request {i}:") for i in range(64)]
    with Engine(subject, context_len=2048) as engine:
        greedy(engine, ids, 2)
        computed = engine.get_server_info()["computed_prompt_tokens"]
    figures(prefix=len(prefix), requests=len(ids), computed=computed, expected=_distinct(ids))
    assert computed == _distinct(ids)


def _distinct(prompts: Sequence[Sequence[int]]) -> int:
    """Each distinct token path once, and one token more for a prompt that is a prefix of another."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for prompt in prompts:
        new = 0
        for end in range(len(prompt), 0, -1):
            path = tuple(prompt[:end])
            if path in seen:
                break
            seen.add(path)
            new += 1
        total += max(new, 1)
    return total


def test_line_3_examples_reach_the_optimum(default_backend: Runtime, figures: Figures) -> None:
    for example in EXAMPLES:
        before = default_backend.stats()
        example.main()
        after = default_backend.stats()
        prompt = after.prompt_tokens - before.prompt_tokens
        computed = after.computed_prompt_tokens - before.computed_prompt_tokens
        best = (after.optimum_computed_tokens or 0) - (before.optimum_computed_tokens or 0)
        share = 1.0 if prompt == best else (prompt - computed) / (prompt - best)
        figures(**{example.__name__.split(".")[-1]: f"{share:.1%} of optimum, {prompt - computed} of {prompt} cached"})
        assert share >= 0.96


# -- 5: many programs ----------------------------------------------------------------------------------------------


def test_line_5_many_programs_in_flight(full: bool, figures: Figures) -> None:
    code = f"""
        import json, pathlib, re, threading
        import palmette as pm
        from palmette.testing import tiny_runtime

        most = 0

        @pm.function
        async def two(s, i):
            global most
            s += f"{{i}}:" + pm.gen("a", max_tokens=4)
            first = await s.get("a")
            s += ";" + pm.gen("b", max_tokens=4)
            most = max(most, threading.active_count())
            if i == 17:
                raise ValueError("seventeen")
            return i, first, await s.get("b")

        @pm.function
        def plain(s, i):
            s += f"{{i}}:" + pm.gen("a", max_tokens=4)
            first = s["a"]
            s += ";" + pm.gen("b", max_tokens=4)
            return i, first, s["b"]

        @pm.function
        def wide(s):
            s += "wide:"
            group = s.fork(1000)
            group += pm.gen("x", max_tokens=1)
            before = threading.active_count()
            group.join()
            s["x"]
            return threading.active_count() - before

        if __name__ == "__main__":
            with tiny_runtime() as runtime:
                pm.set_default_backend(runtime)
                values = two.map(range({10_000 if full else 1_000}), on_error="return", seed=1)
                status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's too
                threads, memory = most, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024
                wrong = [i for i, v in enumerate(values) if i != 17 and v[0] != i]
                added = wide.run(temperature=0).ret_value
                bodies = plain.map(range({1_000 if full else 100}), num_threads=256, seed=1)
                stats = runtime.stats()
                print(json.dumps(dict(
                    wrong=wrong, failed=repr(values[17]), threads=threads, memory_mb=round(memory),
                    plain_in_order=[v[0] for v in bodies] == list(range(len(bodies))), fork_added_threads=added,
                    leaked=stats.kv_total - stats.kv_free - stats.kv_evictable,
                )))
    """
    start = time.perf_counter()
    found = _python(textwrap.dedent(code))
    figures(**found, process_seconds=round(time.perf_counter() - start, 1))
    assert found["wrong"] == []
    assert "seventeen" in found["failed"]
    assert found["threads"] < 20
    assert found["memory_mb"] < 1000
    assert found["plain_in_order"]
    assert found["fork_added_threads"] == 0
    assert found["leaked"] == 0


def _python(code: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- 6: figures ----------------------------------------------------------------------------------------------------


def test_line_6_programs_benchmark(subject: LoadedModel, full: bool, figures: Figures) -> None:
    from benchmarks.peer import TransformersPeer

    peer = TransformersPeer(subject) if full else None
    rows = programs_benchmark.measure(subject, scale=8 if full else 1, rounds=3 if full else 1, peer=peer)
    systems = {row.system for row in rows}
    assert set(programs_benchmark.SYSTEMS) <= systems
    for row in rows:
        if row.system == "full":
            assert row.share_of_optimum is None or row.share_of_optimum >= 0.96
        if row.system == "no cache":
            assert row.hit_rate == 0.0
    ratios = programs_benchmark.summary(rows)
    figures(**{f"seconds of {name} over full": round(ratio, 2) for name, ratio in ratios.items()})
    if full:
        assert ratios["transformers"] >= 3.0


def test_line_6_radix_benchmark(full: bool, figures: Figures) -> None:
    for size in (10**2, 10**3, 10**4, 10**5, 10**6) if full else (10**2, 10**3):
        costs = radix_benchmark.costs(size)
        figures(**{f"us at {size} cached tokens": asdict(costs)})
    share = radix_benchmark.share("smollm2" if full else "tiny", requests=16 if full else 4, prompt_len=128, max_new=16)
    figures(tree_share_without_reuse={**asdict(share), "percent": share.percent})
    if full:
        assert share.percent < 1.0


# -- 1: a new user's machine -------------------------------------------------------------------------------------------


def test_line_1_fresh_clone(full: bool, figures: Figures, tmp_path: Path) -> None:
    if not full:
        makefile = (ROOT / "Makefile").read_text()
        assert "make test" in (ROOT / ".ci" / "run").read_text()
        assert "\ndemo:" in makefile
        assert "\ntest:" in makefile
        return
    clone = tmp_path / "palmette"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for command in ("demo", "test"):
        start = time.perf_counter()
        subprocess.run(["make", command], cwd=clone, check=True, capture_output=True, timeout=1800)
        figures(**{f"make {command} seconds": round(time.perf_counter() - start)})
