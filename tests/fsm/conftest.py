"""Where the test data lies, and toy vocabularies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _data_dir() -> Path | None:
    """`shared/data` beside the checkout, or $PALMETTE_TEST_DATA. It is not part of the repository."""
    named = os.environ.get("PALMETTE_TEST_DATA")
    places = [Path(named)] if named else [p / "shared" / "data" for p in Path(__file__).resolve().parents]
    return next((p for p in places if (p / "regex.jsonl").exists()), None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    found = _data_dir()
    if found is None:
        pytest.skip("the shared test data is not here (set PALMETTE_TEST_DATA to its folder)")
    return found


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
