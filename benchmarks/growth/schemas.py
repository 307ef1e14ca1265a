"""Schema size: compiling is near-linear, and masks do not know how far a counted repeat may go.

Automata fill themselves as they are walked, so compiling is timed with the first mask, and a walk is timed apart: with
states that nobody visited, and again on the states it made. The vocabulary is a made-up one of bytes and short pieces.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import cpu_micros, lines, no_collector, sized
from palmette.fsm.compile import Constraint, compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, JsonSchema, Regex, Spec

LAW = "schema size"
EXACT = (
    "fsm/costs.py, _run: the fewest tokens of a repeat of exactly n are found one length after the other, once a "
    "constraint"
)
WALK = 64  # bytes read under a counted bound, all of them far from the bound
BUDGET = 1 << 20  # tokens: the runtime always has a budget; this one is never near its end
ROUNDS = 3


def rows(*, quick: bool = False) -> list[Row]:
    return [*sizes(quick=quick), *bounds(geometric(100, 800 if quick else 6_400))]


def sizes(*, quick: bool = False) -> list[Row]:
    """Compiling what has many parts."""
    last = 64 if quick else 2048
    return [
        *_compiling("compiling, all properties required", "properties", partial(_object, required=True), last),
        *_compiling("compiling, properties optional", "properties", partial(_object, required=False), last),
        *_compiling("compiling nested objects", "objects", _nested, min(last, 512)),
        *_compiling("compiling an enum", "values", _enum, last),
        *_compiling("compiling choices", "choices", _choices, last),
        *_walking(geometric(8, 32 if quick else 256)),
    ]


def bounds(sizes: Sequence[int]) -> list[Row]:
    """Masks under counted bounds, and what compiling them costs."""
    letters = "".join(chr(ord("a") + i % 26) for i in range(WALK)).encode()
    items = json.dumps([1] * (WALK // 3)).encode()[:WALK]
    cases: list[tuple[str, Callable[[int], Spec], bytes]] = [
        ("[a-z]{0,n}", lambda n: Regex(f"[a-z]{{0,{n}}}"), letters),
        ("[a-z]{n}", lambda n: Regex(f"[a-z]{{{n}}}"), letters),
        ("maxLength", lambda n: JsonSchema.of({"type": "string", "maxLength": n}), b'"' + letters),
        ("maxItems", lambda n: JsonSchema.of({"type": "array", "items": {"type": "integer"}, "maxItems": n}), items),
    ]
    found: list[Row] = []
    row = partial(Row, LAW, claimed=0.0, sizes=tuple(sizes), why=EXACT)
    for name, spec, text in cases:
        first = sized(sizes, lambda n, s=spec, t=text: _walk_micros(_compiled(s(n)), t), ROUNDS)  # type: ignore[misc]
        counted = tuple(float(walk_lines(_compiled(spec(n)), text)) for n in sizes)
        warm = sized(sizes, lambda n, s=spec, t=text: _warm_micros(s(n), t), ROUNDS)  # type: ignore[misc]
        whole = sized(sizes, lambda n, s=spec: cpu_micros(lambda: _first_mask(s(n))), ROUNDS)  # type: ignore[misc]
        found += [
            row(what="masks, first visits", over=f"n of {name}", unit="lines", costs=counted),
            row(what="masks, first visits", over=f"n of {name}", unit="CPU us", costs=first),
            row(what="masks, warm", over=f"n of {name}", unit="CPU us", costs=warm),
            row(what="compiling and the first mask", over=f"n of {name}", unit="CPU us", costs=whole),
        ]
    return found


def _compiling(what: str, over: str, spec: Callable[[int], Spec], last: int) -> list[Row]:
    sizes = geometric(last // 32, last)
    counted = tuple(float(lines(lambda n=n: _first_mask(spec(n)))) for n in sizes)  # type: ignore[misc]
    micros = sized(sizes, lambda n: cpu_micros(lambda: _first_mask(spec(n))), ROUNDS)
    return [
        Row(LAW, what, over, "lines", 1.0, sizes, counted),
        Row(LAW, what, over, "CPU us", 1.0, sizes, micros),
    ]


def _walking(sizes: Sequence[int]) -> list[Row]:
    """All masks of a text that uses every property."""

    def text(size: int) -> bytes:
        return json.dumps({_name(i): 1 for i in range(size)}).encode()

    found: list[Row] = []
    for required in (True, False):
        made = [_compiled(_object(size, required=required)) for size in sizes]
        counted = tuple(float(walk_lines(one, text(size))) for one, size in zip(made, sizes, strict=True))
        kind = "required" if required else "optional"
        found.append(Row(LAW, f"masks of a text with all, {kind}", "properties", "lines", 1.0, tuple(sizes), counted))
    return found


def _object(size: int, *, required: bool) -> Spec:
    names = [_name(i) for i in range(size)]
    return JsonSchema.of(
        {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in names},
            "required": names if required else [],
            "additionalProperties": False,
        }
    )


def _nested(size: int) -> Spec:
    """Objects beside each other, each of five properties of all kinds."""
    one = {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "title": {"type": "string", "maxLength": 40},
            "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 4},
            "price": {"type": "number"},
            "paid": {"type": "boolean"},
        },
        "required": ["id", "title"],
        "additionalProperties": False,
    }
    return JsonSchema.of(
        {"type": "object", "properties": {_name(i): one for i in range(size)}, "additionalProperties": False}
    )


def _enum(size: int) -> Spec:
    return JsonSchema.of({"enum": [_value(i) for i in range(size)]})


def _choices(size: int) -> Spec:
    return Choices(tuple(_value(i) for i in range(size)))


def _name(i: int) -> str:
    return f"property{i:05d}"


def _value(i: int) -> str:
    return f"{('amber', 'basalt', 'cedar', 'dune', 'ember')[i % 5]}-{i * 7919 % 100_003:06d}"


def _compiled(spec: Spec) -> Constraint:
    return compile(spec, VOCABULARY)


def _first_mask(spec: Spec) -> Constraint:
    constraint = _compiled(spec)
    constraint.matcher().fill_mask(np.zeros(VOCABULARY.mask_words, np.uint32), budget=BUDGET)
    return constraint


def _walk(constraint: Constraint, text: bytes) -> None:
    """A mask before every byte of the text."""
    matcher = constraint.matcher()
    out = np.zeros(VOCABULARY.mask_words, np.uint32)
    for byte in text:
        matcher.fill_mask(out, budget=BUDGET)
        if not matcher.try_advance(byte):
            raise AssertionError(f"{bytes([byte])!r} of {text!r} is not allowed")


def _walk_micros(constraint: Constraint, text: bytes) -> float:
    with no_collector():
        start = time.process_time()
        _walk(constraint, text)
        return (time.process_time() - start) * 1e6


def walk_lines(constraint: Constraint, text: bytes) -> int:
    return lines(lambda: _walk(constraint, text))


def _warm_micros(spec: Spec, text: bytes) -> float:
    constraint = _compiled(spec)
    _walk(constraint, text)
    return _walk_micros(constraint, text)


def _vocabulary() -> Vocabulary:
    """Token i < 256 is the byte i; then letters and digits by two and three, and pieces of JSON."""
    letters, digits = "etaoinsrhld", "0123456789"
    pieces = [a + b for a in letters for b in letters] + [a + b + c for a in letters for b in letters for c in letters]
    pieces += [a + b for a in digits for b in digits] + ['{"', '":', '": ', '", "', '"}', ', "', "property", "true"]
    tokens = [*(bytes([i]) for i in range(256)), *(p.encode() for p in pieces), b""]
    made = Vocabulary(tokens, eos_ids=[len(tokens) - 1])
    made.warm_up()
    return made


VOCABULARY = _vocabulary()
