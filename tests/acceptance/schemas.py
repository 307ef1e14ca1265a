"""Schemas to write texts under: real ones where the shared data lies beside the repository, made-up ones elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def schemas(count: int, *, real: bool) -> list[dict[str, Any]]:
    """`count` schemas, spread over what there is; made-up ones alone unless `real`."""
    found = list(_real()) if real and DATA.is_dir() else []
    if len(found) < count:
        rng = random.Random(0)
        found += [made_up(rng) for _ in range(count - len(found))]
    step = len(found) / count
    return [found[int(i * step)] for i in range(count)]


def made_up(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of the kinds that people write for extraction."""
    kinds = ["string", "integer", "number", "boolean", "enum", "date", "pattern"]
    kind = "object" if depth == 2 else rng.choice(kinds + ["object", "array"] * (depth > 0))
    if kind == "object":
        names = rng.sample(["name", "age", "city", "kind", "price", "tags", "owner", "id", "notes", "active"], 4)
        properties = {name: made_up(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        return {"type": "array", "items": made_up(rng, depth - 1), "maxItems": rng.randint(1, 4)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", "blue", 1, 2.5, None, True], 3)}
    if kind == "date":
        return {"type": "string", "format": "date"}
    if kind == "pattern":
        return {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(3, 30)}
    return {"type": kind, "minimum": 0, "maximum": 10**6} if kind == "integer" else {"type": kind}


def _real() -> Iterator[dict[str, Any]]:
    for path in [*sorted((DATA / "jsonschemabench").glob("*.jsonl")), DATA / "schemastore" / "schemas.jsonl"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            schema = json.loads(line)["schema"]
            if isinstance(schema, dict):
                yield schema
