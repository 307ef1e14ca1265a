"""Labelled instances of real schemas: no invalid one accepted, no valid one rejected among the schemas not refused."""

from __future__ import annotations

import collections
import json
import os
import random
import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import Constraint, compile
from palmette.fsm.dfa import matches
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import JsonSchema, SchemaOptions
from tests.fsm.conftest import read_jsonl
from tests.fsm.instances import texts
from tests.fsm.languages import automaton

# Valid instances that this package narrows away on purpose (docs/json-schema.md): labels of other alphabets,
# and a date-time without the offset that RFC 3339 asks for.
NARROWED = ("A-label (punycode)", "webjob-publish-settings")
WHOLE_TEXTS = Limits(dfa_states_per_step=10**6, members_per_step=10**7)  # a text is read in one step here
Case = tuple[str, Any, list[dict[str, Any]]]


def suite(folder: Path, *, formats: bool) -> Iterator[Case]:
    """Tests of format as an annotation stand in format.json, as an assertion in optional/format."""
    for path in sorted((folder / "json_schema_test_suite").rglob("*.json")):
        if (path.name == "format.json") == formats:
            continue
        for group in json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal):
            yield f"{path.name}: {group['description']}", group["schema"], group["tests"]


def lines(paths: Iterable[Path], every: int) -> Iterator[Case]:
    n = 0
    for path in sorted(paths):
        for row in read_jsonl(path):
            n += 1
            if n % every == 0:
                yield str(row["id"]), row["schema"], row["tests"]


def check(cases: Iterable[Case], options: SchemaOptions) -> tuple[collections.Counter[str], int, int]:
    """Refusals by keyword, schemas, instances judged; asserts that none was judged wrongly."""
    refused: collections.Counter[str] = collections.Counter()
    wrong: list[tuple[str, str, str]] = []
    schemas = judged = 0
    for name, schema, tests in cases:
        schemas += 1
        text = json.dumps(schema, default=float)
        try:
            language, _ = to_language(JsonSchema(text, options), Limits(), time.monotonic)
            machine = automaton(language.start, dict(language.rules), WHOLE_TEXTS)
        except UnsupportedConstraint as error:
            if error.keyword != "empty language" or any(t["valid"] for t in tests):
                refused[error.keyword] += 1
            continue
        for test in tests:
            candidates = texts(text, test["data"], options)
            accepted = any(matches(machine, t.encode("utf-8", "surrogatepass")) for t in candidates)
            judged += 1
            if accepted != test["valid"] and not (test["valid"] and any(n in name for n in NARROWED)):
                wrong.append((name, "accepted" if accepted else "rejected", candidates[0][:200]))
    assert wrong == []
    return refused, schemas, judged


def test_the_official_suite_is_judged_rightly_where_it_is_not_refused(data_dir: Path) -> None:
    refused, schemas, judged = check(suite(data_dir, formats=True), SchemaOptions())
    assert judged > 600
    assert sum(refused.values()) <= 0.32 * schemas, refused
    check(suite(data_dir, formats=False), SchemaOptions(assert_formats=False))


def test_schemastore_is_judged_rightly_where_it_is_not_refused(data_dir: Path) -> None:
    paths = [data_dir / "schemastore" / "schemas.jsonl"]
    _, _, judged = check(lines(paths, every=6), SchemaOptions())
    assert judged > 20


def test_a_sample_of_jsonschemabench_is_judged_rightly(data_dir: Path) -> None:
    _, _, judged = check(lines((data_dir / "jsonschemabench").glob("*.jsonl"), every=12), SchemaOptions())
    assert judged > 100


@pytest.mark.skipif(
    "PALMETTE_ACCEPTANCE" not in os.environ, reason="a minute long: set PALMETTE_ACCEPTANCE=1 to run it"
)
def test_all_of_schemastore_and_jsonschemabench_is_judged_rightly_and_few_are_refused(data_dir: Path) -> None:
    check(lines([data_dir / "schemastore" / "schemas.jsonl"], every=1), SchemaOptions())
    refused, schemas, judged = check(lines((data_dir / "jsonschemabench").glob("*.jsonl"), every=1), SchemaOptions())
    assert judged > 3000
    assert sum(refused.values()) <= 0.105 * schemas, refused


def random_text(constraint: Constraint, rng: random.Random, budget: int) -> bytes:
    matcher, left = constraint.matcher(), budget
    while not matcher.is_terminated:
        token = int(rng.choice(matcher.allowed(budget=left).tolist()))
        matcher.advance(token)
        left -= 1
    return b"".join(constraint.vocabulary.tokens[t] for t in matcher.tokens if t not in constraint.vocabulary.eos_ids)


def test_texts_of_random_walks_under_the_mask_satisfy_the_schema(data_dir: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the jsonschema package judges the texts")
    letters = [bytes([b]) for b in range(256)]
    words = [b'": "', b'", "', b'": ', b", ", b"true", b"null", b"abc", b"12", b"}}", b'"}', b"]]"]
    vocabulary = Vocabulary([b"", *letters, *words], eos_ids=[0])
    rng = random.Random(21)
    walked = 0
    for _, schema, _ in lines((data_dir / "jsonschemabench").glob("*.jsonl"), every=25):
        try:
            constraint = compile(JsonSchema(json.dumps(schema, default=float)), vocabulary)
            cost = constraint.matcher().cost_to_accept()
            if cost > 400:
                continue
            text = random_text(constraint, rng, cost + 40)
        except UnsupportedConstraint:
            continue
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator(schema).validate(json.loads(text))
        walked += 1
    assert walked > 20
