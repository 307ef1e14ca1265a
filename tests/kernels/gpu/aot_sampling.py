"""Compilations of sampling.py, its parts, and logprobs.py for a vocabulary of 128256; run by tests.kernels.gpu.aot."""

from __future__ import annotations

from typing import Any

from palmette.kernels.gpu import adjust_rows, logprobs, sampling, sampling_threshold
from tests.kernels.gpu.aot import AotCase

_CHUNK = 2048
_SIZES = {"CHUNK": _CHUNK, "CHUNKS": 64, "LIST": 8192, "LEVELS": 3}
_BOTH = {"HAS_COPIES": True, "HAS_MASKS": True}
_INTEGERS = {"vocab": "i32", "num_chunks": "i32", "words": "i32"}
_POINTERS = {
    "stride": "i64",
    "copies": "*fp32",
    "copy_of": "*i32",
    "masks": "*i32",
    "mask_row": "*i32",
    "found": "*fp32",
    "found_ids": "*i32",
    "temperature": "*fp32",
    "top_k": "*i32",
    "top_p": "*fp64",
    "min_p": "*fp32",
    "at": "*fp64",
    "edges": "*fp32",
    "facts": "*i64",
    "sums": "*i64",
    "lists": "*fp32",
    "fill": "*i32",
    "cut": "*fp32",
    "weights": "*i64",
    "tokens": "*i32",
    "logprobs": "*fp32",
    "finite": "*i32",
    **_INTEGERS,
}


def _case(name: str, kernel: Any, logits: str, *, num_warps: int = 4, **constants: Any) -> AotCase:
    fixed = {k: v for k, v in {**_SIZES, **_BOTH, **constants}.items() if k in kernel.arg_names}
    types = {k: v for k, v in {**_POINTERS, "logits": f"*{logits}"}.items() if k in kernel.arg_names and k not in fixed}
    divisible = tuple(k for k in ("stride", "vocab") if k in types)
    return AotCase(f"{name} {logits}", kernel, types, fixed, num_warps=num_warps, divisible=divisible)


def _sampling(logits: str) -> list[AotCase]:
    filtered: dict[str, Any] = {"HAS_FILTERS": True}
    free: dict[str, Any] = {"HAS_FILTERS": False, "cut": None}
    plain: dict[str, Any] = {
        "HAS_COPIES": False,
        "HAS_MASKS": False,
        "copies": None,
        "copy_of": None,
        "masks": None,
        "mask_row": None,
    }
    greedy: dict[str, Any] = {**free, "weights": None, "ANY_DRAWN": False}
    return [
        _case("survey", sampling.survey_kernel, logits, **filtered),
        _case("survey greedy, plain", sampling.survey_kernel, logits, HAS_FILTERS=False, sums=None, fill=None, **plain),
        _case("narrow first", sampling_threshold.narrow_kernel, logits, LEVEL=0),
        _case("narrow next", sampling_threshold.narrow_kernel, logits, LEVEL=1),
        _case("gather", sampling_threshold.gather_kernel, logits),
        _case("settle", sampling_threshold.settle_kernel, logits, num_warps=16),
        _case("weigh", sampling.weigh_kernel, logits, **filtered),
        _case("weigh unfiltered", sampling.weigh_kernel, logits, **free),
        _case("draw", sampling.draw_kernel, logits, ANY_DRAWN=True, **filtered),
        _case("draw greedy", sampling.draw_kernel, logits, **greedy),
    ]


def _rest(logits: str) -> list[AotCase]:
    base = {"logits": f"*{logits}", "stride": "i64"}
    entries = {
        "sources": "*i32",
        "copy_of_entry": "*i32",
        "ids": "*i32",
        "repetition": "*fp32",
        "subtract": "*fp32",
        "add": "*fp32",
        "copies": "*fp32",
        "vocab": "i32",
        "num_entries": "i32",
    }
    wide = ("stride", "vocab")
    chunks = {"vocab": "i32", "num_chunks": "i32"}
    return [
        AotCase(
            f"copy {logits}",
            adjust_rows.copy_kernel,
            {**base, "sources": "*i32", "copies": "*fp32", "vocab": "i32"},
            {"CHUNK": _CHUNK},
            divisible=wide,
        ),
        AotCase(f"adjust {logits}", adjust_rows.adjust_kernel, {**base, **entries}, {"ENTRIES": 256}, divisible=wide),
        AotCase(
            f"chunk_norms {logits}",
            logprobs.chunk_norms_kernel,
            {**base, "partial": "*fp32", "bad": "*i32", **chunks},
            {"CHUNK": _CHUNK},
            divisible=wide,
        ),
        AotCase(
            f"chunk_top {logits}",
            logprobs.chunk_top_kernel,
            {**base, "keys": "*i64", **chunks, "n": "i32"},
            {"CHUNK": _CHUNK},
            divisible=wide,
        ),
        AotCase(
            f"pick {logits}",
            logprobs.pick_kernel,
            {**base, "norms": "*fp32", "rows": "*i32", "ids": "*i32", "out": "*fp32", "num_pairs": "i32"},
            {"HAS_ROWS": True, "PAIRS": 128},
        ),
    ]


CASES = [
    *_sampling("fp32"),
    *_sampling("bf16"),
    *_rest("fp32"),
    *_rest("bf16"),
    AotCase(
        "row_norms",
        logprobs.row_norms_kernel,
        {"partial": "*fp32", "bad": "*i32", "norms": "*fp32", "finite": "*i32", "num_chunks": "i32"},
        {"CHUNKS": 64},
        num_warps=1,
    ),
    AotCase(
        "row_top of 20",
        logprobs.row_top_kernel,
        {"keys": "*i64", "norms": "*fp32", "values": "*fp32", "ids": "*i32", "num_keys": "i32", "n": "i32"},
        {"KEYS": 2048},
    ),
]
