"""/v1/embeddings: refused unless the operator vouches for the model."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.config import ServerConfig
from tests.runtime.server.openai.asking import ask, refused
from tests.runtime.server.serving import Served, serving

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def embedder() -> Iterator[Served]:
    with serving(tiny_model(), ServerConfig(embeddings=True)) as running:
        yield running


def test_a_model_that_nobody_vouched_for_is_refused(served: Served) -> None:
    assert "--embeddings" in refused(served, PATH, input="hi")["message"]


def test_texts_and_tokens_have_the_same_vectors(embedder: Served) -> None:
    answer = ask(embedder, PATH, input=["hi", "abc"])
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    first = answer["data"][0]["embedding"]
    assert math.fsum(x * x for x in first) == pytest.approx(1.0, abs=1e-4)
    assert first != answer["data"][1]["embedding"]
    as_tokens = ask(embedder, PATH, input=[104, 105])["data"][0]["embedding"]
    assert as_tokens == pytest.approx(first, abs=1e-5)


def test_base64_is_float32(embedder: Served) -> None:
    floats = ask(embedder, PATH, input="hi")["data"][0]["embedding"]
    packed = base64.b64decode(ask(embedder, PATH, input="hi", encoding_format="base64")["data"][0]["embedding"])
    assert struct.unpack(f"<{len(floats)}f", packed) == pytest.approx(floats, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [5000]}, "input[0]"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded_is_named(embedder: Served, body: dict[str, Any], param: str) -> None:
    assert refused(embedder, PATH, **body)["param"] == param


def test_a_text_longer_than_the_context_is_refused(embedder: Served) -> None:
    assert refused(embedder, PATH, input="a" * 3000)["code"] == "context_length_exceeded"
