"""Constraints made to explode, and what each costs: `python -m benchmarks.fsm_bombs`.

Each runs in a fresh process on the embedded model's vocabulary: compilation, the first mask, and a random walk of 50
tokens with masks, under a budget of tokens too. Printed: whether it was served or which limit refused it, the seconds
in all, ms to the first mask, ms of the longest step, and MB by which the process's peak memory grew. The bar: 5 s,
300 ms a step, 300 MB.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.fsm_memory import peak, reset_peak
from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec

STEPS = 50
LONG = "the quick brown fox jumps over the lazy dog "


def nested_arrays(levels: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def optional_properties(count: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"property{i}": {"type": "integer"} for i in range(count)},
        "additionalProperties": False,
    }


def chained_all_of(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for i in range(levels):
        schema = {"allOf": [schema, {"maxLength": 1000 - i}]}
    return schema


def chained_references(count: int) -> Any:
    definitions: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    return {"$defs": {**definitions, f"d{count}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def doubling(levels: int) -> Any:
    """Each definition is two of the one before: 2 ** levels values."""

    def pair(i: int) -> Any:
        return {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i}"}] * 2, "minItems": 2, "items": False}

    pairs = {f"d{i}": pair(i + 1) for i in range(levels)}
    return {"$defs": {**pairs, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def same_keys(count: int) -> Any:
    def variant(i: int) -> Any:
        properties = {"kind": {"type": "integer"}, "value": {"type": "integer", "minimum": i}, "name": {"maxLength": i}}
        return {"type": "object", "properties": properties, "required": ["kind", "value", "name"]}

    return {"anyOf": [variant(i) for i in range(count)]}


SERVED: list[tuple[str, Spec]] = [
    ("(a|b)*a(a|b){20}", Regex("(a|b)*a(a|b){20}")),
    (".{0,5000}", Regex(".{0,5000}")),
    ("(.{0,100}){0,100}", Regex("(.{0,100}){0,100}")),
    ("((a*)*)*", Regex("((((((((((a*)*)*)*)*)*)*)*)*)*)*")),
    ("(a?){500}a{500}", Regex("(a?){500}a{500}")),
    ("(a?){5000}a{5000}", Regex("(a?){5000}a{5000}")),
    ("(a|aa)+(b|bb)+x", Regex("((a|aa)+(b|bb)+)*x")),
    ("[^x]{0,9999}x", Regex("[^x]{0,9999}x")),
    ("x*x*x*x*x*x*x*x*y", Regex("x*x*x*x*x*x*x*x*y")),
    ("(x+x+)+y", Regex("(x+x+)+y")),
    ("(.*,){11}P", Regex("^(.*?,){11}P")),
    ("\\p{L}{1,1000}", Regex(r"\p{L}{1,1000}")),
    ("(\\w{1,9}\\s?){1,900}", Regex(r"(\w{1,9}\s?){1,900}")),
    ("500 words, any order of letters", Regex("|".join(LONG[i % 40 :] + str(i) for i in range(500)))),
    ("3,000 optional properties", JsonSchema.of(optional_properties(3000))),
    ("3,000 required properties", JsonSchema.of(
        {**optional_properties(3000), "required": [f"property{i}" for i in range(3000)]})),
    ("100 optional, at least 50", JsonSchema.of({**optional_properties(100), "minProperties": 50})),
    ("enum of 10,000", JsonSchema.of({"enum": list(range(10_000))})),
    ("enum of 200 long strings", JsonSchema.of({"enum": [LONG * 25 + str(i) for i in range(200)]})),
    ("10,000 choices", Choices(tuple(f"choice {i * 7919}" for i in range(10_000)))),
    ("one choice of 200 KiB", Choices((LONG * 4500, "b"))),
    ("maxLength 1e6", JsonSchema.of({"type": "string", "maxLength": 1_000_000})),
    ("minLength 10,000", JsonSchema.of({"type": "string", "minLength": 10_000})),
    ("maxItems 1e6", JsonSchema.of({"type": "array", "items": {"type": "null"}, "maxItems": 1_000_000})),
    ("minItems 10,000 of objects", JsonSchema.of({"minItems": 10_000, "type": "array", "items": same_keys(1)})),
    ("60-deep arrays", JsonSchema.of(nested_arrays(60))),
    ("anyOf of 500 objects, same keys", JsonSchema.of(same_keys(500))),
    ("references that double 30 times", JsonSchema.of(doubling(30))),
    ("500 references in a row", JsonSchema.of(chained_references(500))),
    ("20 conditions", JsonSchema.of({"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(20)},
        "dependentRequired": {f"p{i}": [f"p{i + 1}"] for i in range(10)}})),
    ("multipleOf 0.01 with bounds", JsonSchema.of(
        {"type": "number", "multipleOf": 0.01, "minimum": -1e9, "maximum": 1e9})),
    ("nested brackets", Grammar('root ::= "[" root "]" | "(" root ")" | [a-z]*')),
    ("ambiguous grammar", Grammar('root ::= s\ns ::= "a" s s | "a" s | "a"')),
]  # fmt: skip
REFUSED: list[tuple[str, str, Spec]] = [
    ("((a{0,100}){0,100}){0,100}", "repeat_product", Regex("((a{0,100}){0,100}){0,100}")),
    ("3,000 nested groups", "regex_nesting", Regex("(" * 3000 + "a" + ")" * 3000)),
    ("3,000-deep arrays", "schema_depth", JsonSchema('{"items":' * 3000 + "true" + "}" * 3000)),
    ("100-deep arrays", "schema_depth", JsonSchema.of(nested_arrays(100))),
    ("chain of 200 allOf", "schema_depth", JsonSchema.of(chained_all_of(200))),
    ("enum of 20,000", "enum_values", JsonSchema.of({"enum": list(range(20_000))})),
    ("20,000 choices", "enum_values", Choices(tuple(map(str, range(20_000))))),
    ("6,000 properties", "properties", JsonSchema.of(optional_properties(6000))),
    ("200 patternProperties", "patternProperties", JsonSchema.of({"type": "object", "patternProperties": {
        f"x{i}": {"type": "integer"} for i in range(200)}})),
    ("minLength 1e6", "repeat", JsonSchema.of({"type": "string", "minLength": 1_000_000})),
    ('{"$ref": "#"}', "$ref", JsonSchema.of({"$ref": "#"})),
    ("a{1000000}", "repeat", Regex("a{1000000}")),
    ("300 KiB", "spec_bytes", Regex("a" * 300_000)),
    ("left recursion", "rule", Grammar('root ::= root "a" | "b"')),
    ("5,000 nested brackets", "regex_nesting", Grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000)),
]  # fmt: skip
# Either is right, as long as it stays within the bar.
OPEN: list[tuple[str, Spec]] = [
    ("(?!.*abc)(?!.*bcd).{0,2000}", Regex("(?!.*abc)(?!.*bcd)(?!.*cde).{0,2000}")),
    ("(?=.*a)(?=.*b).{8,300}", Regex("(?=.*a)(?=.*b)(?=.*c)(?=.*[0-9]).{8,300}")),
    (".*a.{20}", Regex(".*a.{20}")),
    ("minLength 10,000 and pattern", JsonSchema.of({"type": "string", "minLength": 10_000, "pattern": "^[a-z ]*$"})),
    ("four overlapping patternProperties", JsonSchema.of({"type": "object", "patternProperties": {
        f"{c}.*{d}": {"type": "integer"} for c, d in ("ab", "bc", "cd", "de")}})),
    ("oneOf of 100, overlapping", JsonSchema.of({"oneOf": [
        {"type": "object", "properties": {"a": {"minimum": i}, f"b{i}": {"type": "string"}}} for i in range(100)]})),
    ("oneOf of 100 numbers", JsonSchema.of({"oneOf": [
        {"type": "integer", "minimum": i, "maximum": i + 2} for i in range(100)]})),
    ("100 conditions", JsonSchema.of(
        {"type": "object", "dependentRequired": {f"p{i}": [f"q{i}"] for i in range(100)}})),
    ("60 nested allOf of anyOf", JsonSchema.of({"allOf": [
        {"anyOf": [{"minLength": i}, {"maxLength": 90 - i}, {"pattern": f"a{i}"}]} for i in range(60)]})),
    ("multipleOf 19,999 with bounds", JsonSchema.of(
        {"type": "integer", "multipleOf": 19_999, "minimum": -(10**12), "maximum": 10**12})),
    ("pattern and length", JsonSchema.of(
        {"type": "string", "pattern": "(a|b)*a(a|b){9}", "minLength": 100, "maxLength": 3000})),
    (".*a.{20}, not the other", JsonSchema.of(
        {"type": "string", "allOf": [{"pattern": "a.{12}b"}, {"not": {"pattern": "b.{13}a"}}]})),
]  # fmt: skip


def run(spec: Spec, vocabulary: Any) -> dict[str, Any]:
    """Compile and walk once; what it took."""
    rng = random.Random(1)
    before = reset_peak()
    start = time.perf_counter()
    steps: list[float] = []
    outcome = "served"
    compiled = 0.0
    try:
        constraint = compile(spec, vocabulary, clock=time.monotonic)
        matcher = constraint.matcher()
        out = np.zeros(vocabulary.mask_words, np.uint32)
        matcher.fill_mask(out)
        compiled = time.perf_counter() - start
        for i in range(STEPS):
            began = time.perf_counter()
            cost = matcher.cost_to_accept()
            matcher.fill_mask(out)
            if i % 2:
                matcher.fill_mask(out, budget=cost + i % 7)  # near its end: the dear case
            allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
            going_on = allowed[allowed != vocabulary.eos_ids[0]]
            if not len(going_on):
                break
            matcher.advance(int(rng.choice(going_on)))
            steps.append(time.perf_counter() - began)
    except UnsupportedConstraint as error:
        outcome = error.keyword
    return {
        "outcome": outcome,
        "seconds": time.perf_counter() - start,
        "ready_ms": compiled * 1e3,
        "step_ms": max(steps, default=0.0) * 1e3,
        "mb": (peak() - before) / 2**20,
    }


def main() -> None:
    specs = {**dict(SERVED), **{n: s for n, _, s in REFUSED}, **dict(OPEN)}
    if sys.argv[1:2] == ["--child"]:
        from benchmarks.fsm_vocab import smollm2_vocabulary

        vocabulary = smollm2_vocabulary()
        vocabulary.warm_up()
        print(json.dumps(run(specs[sys.argv[2]], vocabulary)))
        return
    print(f"{'constraint':<38}{'outcome':<20}{'s':>8}{'ready ms':>10}{'step ms':>10}{'MB':>8}")
    for name in specs:
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        command = [sys.executable, "-m", "benchmarks.fsm_bombs", "--child", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            print(f"{name:<38}{(done.stderr.strip().splitlines() or ['?'])[-1][:100]}")
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:<38}{r['outcome']:<20}{r['seconds']:>8.2f}{r['ready_ms']:>10.1f}{r['step_ms']:>10.1f}{r['mb']:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
