"""The acceptance lines of constrained decoding, small; `make acceptance` runs them at full size (`--full`)."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest

from palmette.errors import RequestError, UnsupportedConstraint
from palmette.interpreter.backends.local import Runtime, runtime_config
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.sampler import Draw, draw_margin
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.specs import JsonSchema, Regex, Spec
from palmette.types import Finish, FinishReason, GenerateRequest, SamplingParams, TokenEvent
from tests.acceptance.schemas import schemas
from tests.acceptance.ties import Comparison
from tests.conftest import Figures

PROMPT = "Fill in the record for the town of Greifswald as JSON:\n"


@pytest.fixture(scope="module")
def subject(full: bool) -> LoadedModel:
    """The embedded model at full size, the tiny one otherwise."""
    return load_model("smollm2") if full else tiny_model()


def build(model: LoadedModel, **options: Any) -> EngineCore:
    return build_engine(model, runtime_config(model.name, {"kv_tokens": 32_768, "context_len": 2048, **options}))


def complete(core: EngineCore, requests: list[GenerateRequest]) -> dict[str, tuple[str, tuple[int, ...], Finish]]:
    """(text, tokens, finish) by request id."""
    texts: Counter[str] = Counter()
    out: dict[str, tuple[str, tuple[int, ...], Finish]] = {}
    said: dict[str, str] = {r.request_id: "" for r in requests}
    tokens: dict[str, list[int]] = {r.request_id: [] for r in requests}
    for request in requests:
        core.add(request, now=0.0)
    while core.has_work:
        for event in core.step(now=0.0):
            assert isinstance(event, TokenEvent)
            said[event.request_id] += event.text
            tokens[event.request_id] += event.token_ids
            if event.finish is not None:
                texts[event.request_id] += 1
                out[event.request_id] = said[event.request_id], tuple(tokens[event.request_id]), event.finish
    assert set(texts.values()) <= {1}
    return out


def under(
    model: LoadedModel, found: list[dict[str, Any]], budgets: list[int], *, greedy: bool
) -> list[GenerateRequest]:
    prompt = tuple(model.tokenizer.encode(PROMPT))
    return [
        GenerateRequest(
            str(i),
            prompt,
            SamplingParams(max_new_tokens=budget, temperature=0.0 if greedy else 1.0),
            seed=i,
            constraint=JsonSchema.of(schema),
        )
        for i, (schema, budget) in enumerate(zip(found, budgets, strict=True))
    ]


# -- 3: jumps change nothing, and the distribution is the one that is documented ---------------------------------------


def clearness(
    core: EngineCore, model: LoadedModel, request: GenerateRequest, output: tuple[int, ...], at: int
) -> float:
    """How far token `at` of a constrained output was from another one."""
    spec = request.constraint
    assert spec is not None
    guide = core._guide(request, core.compiler.compile(spec))
    assert guide is not None
    for token in output[:at]:
        guide.advance(token)
    mask = guide.mask(request.params.max_new_tokens - at).words
    ids = (*request.token_ids, *output[:at])
    runner = ModelRunner(model.decoder, num_slots=len(ids), max_running_rows=1, context_len=len(ids))
    row = ScheduledRow(row=0, token_ids=ids, start=0, slots=tuple(range(len(ids))), logits_from=len(ids) - 1)
    logits = runner.forward(ScheduledBatch((row,)))[0]
    return draw_margin(logits, Draw(request.params, seed=request.seed, index=at, mask=mask))


def is_served(core: EngineCore, request: GenerateRequest) -> bool:
    """Can its constraint be enforced, and does a text fit?"""
    try:
        core._guide(request, None)
    except (UnsupportedConstraint, RequestError):
        return False
    return True


@pytest.mark.parametrize("greedy", [True, False])
def test_line_3_jumps_change_no_text(subject: LoadedModel, full: bool, figures: Figures, greedy: bool) -> None:
    count, budget = (200, 120) if full else (6, 60)
    candidates = schemas(count * 3, real=full)
    comparison, differs, served, skipped, tokens = Comparison(), 0, 0, 0, 0
    on, off, plain = build(subject), build(subject, jump_forward=False), build(subject, retokenize="off")
    requests = under(subject, candidates, [budget] * len(candidates), greedy=greedy)
    kept = list(itertools.islice((r for r in requests if is_served(on, r)), count))
    a, b, c = complete(on, kept), complete(off, kept), complete(plain, kept)
    for request in kept:
        text, ids, finish = a[request.request_id]
        other_text, other_ids, _ = b[request.request_id]
        before = comparison.ties
        comparison.add(
            other_ids,
            ids,
            lambda at, r=request, o=other_ids: clearness(off, subject, r, o, at),  # type: ignore[misc]
        )
        assert text == other_text or comparison.ties > before
        differs += c[request.request_id][0] != text
        served += 1
        skipped += finish.usage.forced_tokens
        tokens += finish.usage.completion_tokens
    assert served == count or not full
    figures(
        schemas=served,
        tokens=comparison.tokens,
        ties=comparison.ties,
        skipped=round(skipped / max(1, tokens), 3),
        plain_masks_differ=round(differs / max(1, served), 3),
    )
    comparison.check()


def test_line_3_draws_follow_the_documented_distribution(full: bool, figures: Figures) -> None:
    """The model under the masks, renormalised token by token: chi-square of whole texts against exact probabilities."""
    model = tiny_model(seed=3)
    spec = Regex("([ab]|xyz)(mn|op){1,2}[0-3]?")
    draws = 20_000 if full else 1_500
    prompt = tuple(b"The distribution of texts: ")
    params = SamplingParams(max_new_tokens=12, temperature=2.0)
    core = build(model)
    runner = ModelRunner(model.decoder, num_slots=64, max_running_rows=1, context_len=64)

    @cache
    def logits(tokens: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
        ids = prompt + tokens
        row = ScheduledRow(row=0, token_ids=ids, start=0, slots=tuple(range(len(ids))), logits_from=len(ids) - 1)
        out: np.ndarray[Any, np.dtype[np.float64]] = runner.forward(ScheduledBatch((row,)))[0].double().numpy()
        return out

    exact: dict[tuple[int, ...], float] = {}
    request = GenerateRequest("r", prompt, params, constraint=spec)

    def walk(tokens: tuple[int, ...], probability: float) -> None:
        guide = core._guide(request, core.compiler.compile(spec))
        assert guide is not None
        for token in tokens:
            guide.advance(token)
        if guide.is_complete:
            exact[tokens] = exact.get(tokens, 0.0) + probability
            return
        words = guide.mask(params.max_new_tokens - len(tokens)).words
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        scaled = logits(tokens)[allowed] / params.temperature
        weights = np.exp(scaled - scaled.max())
        ends = model.tokenizer.eos_ids
        for token, weight in zip(allowed.tolist(), (weights / weights.sum()).tolist(), strict=True):
            if token in ends:
                exact[tokens] = exact.get(tokens, 0.0) + probability * weight
            else:
                walk((*tokens, token), probability * weight)

    walk((), 1.0)
    assert sum(exact.values()) == pytest.approx(1.0)
    requests = [GenerateRequest(str(i), prompt, params, seed=i * 7919, constraint=spec) for i in range(draws)]
    counts = Counter(finish.token_ids for _, _, finish in complete(core, requests).values())
    assert set(counts) <= set(exact)
    # Rare texts are counted together, so that every cell expects at least five.
    common = [t for t, p in exact.items() if p * draws >= 5]
    cells = [(counts[t], exact[t] * draws) for t in common]
    rest = 1.0 - sum(exact[t] for t in common)
    if rest * draws >= 5:
        cells.append((draws - sum(counts[t] for t in common), rest * draws))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty (1931): the cube root of chi-square over its freedom is nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    figures(draws=draws, texts=len(exact), cells=len(cells), chi_square=round(statistic, 1), z=round(z, 2))
    assert freedom >= 8
    assert abs(z) < 4


# -- 4: every output under max_tokens parses ---------------------------------------------------------------------------


def test_line_4_every_text_under_a_budget_parses_or_was_refused(
    subject: LoadedModel, full: bool, figures: Figures
) -> None:
    count = 500 if full else 12
    rng = random.Random(1)
    found = schemas(count, real=full)
    requests = under(subject, found, [rng.randint(16, 256 if full else 64) for _ in found], greedy=False)
    outcome: Counter[str] = Counter()
    ended = complete(build(subject), requests)
    for schema, request in zip(found, requests, strict=True):
        text, tokens, finish = ended[request.request_id]
        if finish.error is not None:
            assert finish.reason is FinishReason.FAILED
            assert isinstance(finish.error, UnsupportedConstraint | RequestError)
            assert not tokens, "refused after a token was paid for"
            outcome["not enforced" if isinstance(finish.error, UnsupportedConstraint) else "does not fit"] += 1
            continue
        assert len(tokens) <= request.params.max_new_tokens + 1  # the end of sequence takes no place
        jsonschema.validators.validator_for(schema)(schema).validate(json.loads(text))
        outcome["steered" if finish.steered else finish.reason.value] += 1
    figures(schemas=count, **outcome)
    assert sum(outcome.values()) == count


# -- 7: bombs ----------------------------------------------------------------------------------------------------------

BOMBS: dict[str, Spec] = {
    "subset explosion": Regex("(a|b)*a(a|b){20}"),
    "long": Regex(".{0,5000}"),
    "nested": Regex("(.{0,100}){0,100}"),
    "nested thrice": Regex("((a{0,100}){0,100}){0,100}"),
    "3,000 groups": Regex("(" * 3000 + "a" + ")" * 3000),
    "3,000 arrays": JsonSchema('{"items":' * 3000 + "true" + "}" * 3000),
    "3,000 properties": JsonSchema.of({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}),
    "enum of 20,000": JsonSchema.of({"enum": [f"value {i}" for i in range(20_000)]}),
    "maxLength 1e6": JsonSchema.of({"type": "string", "maxLength": 10**6}),
    "itself": JsonSchema('{"$ref": "#"}'),
}


def test_line_7_bombs_hurt_nobody_else(subject: LoadedModel, full: bool, figures: Figures) -> None:
    """Each is refused or served while another request keeps decoding."""
    with Runtime(subject, kv_tokens=8192, context_len=2048) as runtime:
        prompt = tuple(subject.tokenizer.encode(PROMPT))
        arrivals: list[float] = []
        ended: dict[str, tuple[float, Finish]] = {}
        done = threading.Event()

        def deliver(events: Any) -> None:
            for event in events:
                if event.request_id == "other":
                    arrivals.append(time.monotonic())
                elif event.finish is not None:
                    ended[event.request_id] = time.monotonic(), event.finish
                    if len(ended) == len(BOMBS):
                        done.set()

        runtime.submit(GenerateRequest("other", prompt, SamplingParams(max_new_tokens=1900, ignore_eos=True)), deliver)
        worst = 0.0
        for name, spec in BOMBS.items():
            began = time.monotonic()
            runtime.submit(GenerateRequest(name, prompt, SamplingParams(max_new_tokens=24), constraint=spec), deliver)
            while name not in ended and time.monotonic() - began < 60:
                time.sleep(0.005)
            assert name in ended, f"{name} did not end within a minute"
            worst = max(worst, ended[name][0] - began)
            figures(**{name: f"{ended[name][0] - began:.2f} s, {ended[name][1].error or ended[name][1].reason}"[:90]})
        assert done.wait(60)
        runtime.cancel("other")
        gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    figures(slowest_seconds=round(worst, 2), longest_gap_of_the_other=round(max(gaps), 2), others_tokens=len(arrivals))
    assert len(arrivals) > len(BOMBS)
