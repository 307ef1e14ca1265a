"""From samples to the table: medians, ratios, and how far greedy outputs agree.

Pure functions on {engine: {row: [samples]}}, a sample being what protocol.py answers. Knows no process and no clock.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.engines import ENGINES, Engine
from benchmarks.peers.work import AnyRow, Extraction, Row

Samples = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]

# What ours must reach: times the best peer; for loading, seconds.
GOALS = {
    "decode_1_64": 1.25,
    "decode_1_1024": 1.5,
    "decode_4_64": 1.5,
    "decode_16_64": 2.0,
    "decode_64_64": 1.5,
    "prefill_1024": 1.5,
    "shared_32": 2.0,
    "extraction": 2.0,
    "load": 2.0,
}
_RATIOS = ("ours/best", "goal", "q/Q4_1", "q/Q4_0", "32/fp32", "srv/sgl")


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell."""

    median: float
    spread: float  # (largest - smallest) / 2 / median
    count: int


def figure(samples: Iterable[Mapping[str, Any]]) -> Figure | None:
    """None where no sample has a value."""
    values = [float(sample["value"]) for sample in samples if "value" in sample]
    if not values:
        return None
    median = statistics.median(values)
    return Figure(median, (max(values) - min(values)) / 2 / median, len(values))


def best_only(rows: Sequence[AnyRow], samples: Samples) -> Samples:
    """Every engine's best sample of each row: what is left of a comparison where others disturbed some rounds."""
    kept: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for engine, found in samples.items():
        kept[engine] = {}
        for row in rows:
            valued = [sample for sample in found.get(row.name, ()) if "value" in sample]
            if valued:
                kept[engine][row.name] = [(max if is_rate(row) else min)(valued, key=lambda sample: sample["value"])]
    return kept


def is_rate(row: AnyRow) -> bool:
    """Is more better?"""
    return isinstance(row, Row) and row.measure != "seconds"


def times(row: AnyRow, ours: Figure | None, theirs: Figure | None) -> float | None:
    """How many times as fast ours is."""
    if ours is None or theirs is None:
        return None
    return ours.median / theirs.median if is_rate(row) else theirs.median / ours.median


def ratios(row: AnyRow, figures: Mapping[str, Figure | None]) -> dict[str, float | None]:
    """Times as fast: our best against the best peer, and like for like.

    q/Q4_1, q/Q4_0: our quantised path against llama.cpp's. 32/fp32: our fp32 path against the best fp32 peer.
    srv/sgl: our programs on our server against SGLang's on the same; as a peer that one counts nowhere else.
    """

    def best(engines: Iterable[Engine]) -> Figure | None:
        found = [f for engine in engines if (f := figures.get(engine.name)) is not None]
        return None if not found else (max if is_rate(row) else min)(found, key=lambda f: f.median)

    ours = best(e for e in ENGINES if e.is_ours)
    peers = [e for e in ENGINES if not e.is_ours and not e.is_client]
    quantised, plain = figures.get("palmette"), figures.get("palmette_fp32")
    return {
        "ours/best": times(row, ours, best(peers)),
        "goal": GOALS.get(row.name),
        "q/Q4_1": times(row, quantised, figures.get("llama_q4_1")),
        "q/Q4_0": times(row, quantised, figures.get("llama_q4_0")),
        "32/fp32": times(row, plain, best(e for e in peers if e.kind == "fp32")),
        "srv/sgl": times(row, figures.get("palmette_served"), figures.get("sglang")),
    }


def agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """The share of tokens before the first difference, over all requests."""
    equal = total = 0
    for a, b in zip(ours, theirs, strict=True):
        equal += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        total += max(len(a), len(b))
    return equal / total if total else 1.0


def fields(row: Extraction, texts: Sequence[str]) -> list[Any]:
    """Every expected field's value as it was extracted, None where there is none."""
    found: list[Any] = []
    for text, expected in zip(texts, row.expected, strict=True):
        try:
            record = json.loads(text)
        except ValueError:
            record = {}
        found += [record.get(name) if isinstance(record, dict) else None for name in expected]
    return found


def table(rows: Sequence[AnyRow], samples: Samples) -> str:
    """Rows by engines: median and spread, then the ratios."""
    present = [engine for engine in ENGINES if engine.name in samples]
    heads = [engine.title for engine in present]
    lines = [["", *heads, *_RATIOS]]
    for row in rows:
        figures = {engine.name: figure(samples[engine.name].get(row.name, ())) for engine in present}
        cells = [_cell(figures[engine.name]) for engine in present]
        found = ratios(row, figures)
        if row.name == "load":  # its goal is a time, not a ratio
            found["goal"] = None
        lines.append([row.title, *cells, *("-" if found[name] is None else f"{found[name]:.2f}" for name in _RATIOS)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def outputs_table(rows: Sequence[AnyRow], samples: Samples) -> str:
    """How far every engine wrote the same tokens as ours, and the fields it extracted."""
    lines = []
    for engine in ENGINES:
        if engine.name not in samples:
            continue
        words = []
        for ours in ("palmette", "palmette_fp32"):
            pair = [
                (_last(samples, ours, row.name, "outputs"), _last(samples, engine.name, row.name, "outputs"))
                for row in rows
                if isinstance(row, Row) and row.num_new > 1
            ]
            both = [(a, b) for a, b in pair if a and b]
            if both and ours != engine.name:
                share = agreement([x for a, _ in both for x in a], [x for _, b in both for x in b])
                words.append(f"{share:.1%} of tokens as {ours}")
        for row in rows:
            texts = _last(samples, engine.name, row.name, "texts")
            if isinstance(row, Extraction) and texts:
                found = fields(row, texts)
                right = sum(a == b for a, b in zip(found, _expected(row), strict=True))
                words.append(f"{right} of {len(found)} fields right")
                for ours in ("palmette", "palmette_fp32"):
                    reference = _last(samples, ours, row.name, "texts")
                    if reference and ours != engine.name:
                        same = sum(a == b for a, b in zip(found, fields(row, reference), strict=True))
                        words.append(f"{same} as {ours}")
        lines.append(f"{engine.title:<14} {', '.join(words) or '-'}")
    return "\n".join(lines)


def _expected(row: Extraction) -> list[Any]:
    return [value for record in row.expected for value in record.values()]


def _last(samples: Samples, engine: str, row: str, key: str) -> Any:
    """What the last round wrote; None = nothing."""
    found = [sample[key] for sample in samples.get(engine, {}).get(row, ()) if key in sample]
    return found[-1] if found else None


def _cell(found: Figure | None) -> str:
    if found is None:
        return "-"
    number = f"{found.median:.0f}" if found.median >= 100 else f"{found.median:.3g}"
    return f"{number} ±{found.spread:.0%}" if found.count > 1 else number
