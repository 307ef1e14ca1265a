"""Compilation and mask times of constraints on the embedded model's vocabulary: `python -m benchmarks.fsm`.

Per constraint: compile + first mask, masks on the first visit of a state, and masks of states visited before, along
random walks under the mask. Times are of this machine at this moment; compare columns of one run only.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import numpy as np

from benchmarks.fsm_vocab import smollm2_vocabulary
from palmette.fsm.compile import compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec

WALKS, STEPS = 12, 60

SMALL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "maxLength": 80},
        "city": {"type": "string", "maxLength": 40},
        "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "country": {"enum": ["DE", "FR", "IT", "US", "UK"]},
    },
    "required": ["street", "city"],
    "additionalProperties": False,
}
MEDIUM = {
    "$defs": {"address": ADDRESS},
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "created": {"type": "string", "format": "date-time"},
        "email": {"type": "string", "format": "email"},
        "status": {"enum": ["open", "paid", "shipped", "cancelled"]},
        "total": {"type": "number", "minimum": 0},
        "quantity": {"type": "integer", "minimum": 1, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 10},
        "billing": {"$ref": "#/$defs/address"},
        "shipping": {"anyOf": [{"$ref": "#/$defs/address"}, {"type": "null"}]},
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                    "title": {"type": "string"},
                    "price": {"type": "number", "exclusiveMinimum": 0},
                    "discount": {"type": ["number", "null"]},
                },
                "required": ["sku", "price"],
                "additionalProperties": False,
            },
        },
        "notes": {"type": "string", "maxLength": 500},
    },
    "required": ["id", "created", "status", "items"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}
LARGE = {
    "$defs": {"address": ADDRESS},
    "type": "object",
    "properties": {f"section_{i}": {k: v for k, v in MEDIUM.items() if k != "$defs"} for i in range(20)},
}
CHARACTER = (
    r'\{\n    "name": "[\w\d\s]{1,16}",\n    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n    "occupation": "(student|teacher|auror|ministry '
    r'of magic|death eater|order of the phoenix)",\n    "wand": \{\n        "wood": "[\w\d\s]{1,16}",\n        "core": '
    r'"[\w\d\s]{1,16}",\n        "length": [0-9]{1,2}\.[0-9]{0,2}\n    \},\n    "alive": "(Alive|Deceased)",\n'
    r'    "patronus": "[\w\d\s]{1,16}",\n    "bogart": "[\w\d\s]{1,16}"\n\}'
)
CONSTRAINTS: list[tuple[str, Spec]] = [
    ("digits", Regex(r"\d+")),
    ("date", Regex(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")),
    ("e-mail", Regex(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}")),
    ("words", Regex(r"(\w+ )*\w+\.")),
    (".{0,500}", Regex(".{0,500}")),
    (".{0,50}", Regex(".{0,50}")),
    ("JSON string", Regex(r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"')),
    ("CJK", Regex("[一-龥ぁ-んァ-ヶ]{1,40}。")),
    ("character (paper)", Regex(CHARACTER)),
    ("200 choices", Choices(tuple(f"choice number {i * 7919} of many" for i in range(200)))),
    ("small schema", JsonSchema.of(SMALL)),
    ("medium schema", JsonSchema.of(MEDIUM)),
    ("recursive schema", JsonSchema.of(TREE)),
    ("large schema", JsonSchema.of(LARGE)),
    ("any JSON", JsonSchema.of(True)),
    ("arithmetic", Grammar('root ::= s\ns ::= p ([+-] p)*\np ::= a ("*" a)*\na ::= [0-9]+ | "(" s ")"')),
]


def measure(spec: Spec, vocabulary: Vocabulary) -> dict[str, Any]:
    rng = random.Random(1)
    out = np.zeros(vocabulary.mask_words, np.uint32)
    gc.collect()
    start = time.perf_counter()
    constraint = compile(spec, vocabulary)
    constraint.matcher().fill_mask(out)
    ready = time.perf_counter() - start
    cold: list[float] = []
    warm: list[float] = []
    seen = {constraint.automaton.start}
    for _ in range(WALKS):
        matcher = constraint.matcher()
        for _ in range(STEPS):
            state = matcher._state()
            times = cold if state not in seen else warm
            seen.add(state)
            start = time.perf_counter()
            matcher.fill_mask(out)
            times.append(time.perf_counter() - start)
            ids = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
            matcher.advance(int(rng.choice(ids.tolist())))
            if matcher.is_terminated:
                break
    automaton = constraint.automaton
    return {
        "ready_ms": ready * 1e3,
        "cold": np.array(cold or [0.0]) * 1e3,
        "warm": np.array(warm or [0.0]) * 1e6,
        "states": automaton.budget.states,
        "masks": automaton.masks.num_distinct,
        "mb": automaton.masks.nbytes / 2**20,
    }


def main() -> None:
    start = time.perf_counter()
    vocabulary = smollm2_vocabulary()
    _ = vocabulary.slices, vocabulary.children
    print(f"vocabulary: {len(vocabulary)} tokens, {time.perf_counter() - start:.2f} s with the file read\n")
    measure(Regex("[a-z]+x"), vocabulary)  # numpy's own first calls
    widths = {"ready ms": 9, "cold p50": 10, "p99 ms": 8, "warm p50": 10, "p99 us": 8, "states": 8, "masks": 7, "MB": 6}
    print(f"{'constraint':<20}" + "".join(f"{text:>{width}}" for text, width in widths.items()))
    for name, spec in CONSTRAINTS:
        m = measure(spec, vocabulary)
        c50, c99 = np.percentile(m["cold"], [50, 99])
        w50, w99 = np.percentile(m["warm"], [50, 99])
        print(
            f"{name:<20}{m['ready_ms']:>9.2f}{c50:>10.3f}{c99:>8.2f}{w50:>10.2f}{w99:>8.2f}"
            f"{m['states']:>8}{m['masks']:>7}{m['mb']:>6.1f}"
        )


if __name__ == "__main__":
    main()
