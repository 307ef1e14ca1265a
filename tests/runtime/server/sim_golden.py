"""What each request of the simulation is owed: the model's answer alone, without faults, as plainly as possible."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from palmette.types import FinishReason, GenerateRequest, Request, ScoreRequest
from tests.runtime.fake_model import next_token, score
from tests.runtime.server.sim_world import VOCAB


@dataclass(frozen=True, slots=True)
class Golden:
    """A generation alone, without faults, written down as plainly as possible."""

    tokens: tuple[int, ...]
    text: str
    uncut: str  # with the stop string, and what was held back for it
    reason: FinishReason


def drawn_behind(token_ids: Sequence[int]) -> int:
    """The token that the simulated model draws: one of the first three, and another after any other beginning."""
    return (crc32(bytes(token_ids)) >> 7) % 3


def golden(request: GenerateRequest, kv_tokens: int) -> Golden:
    """What the model says to a request."""
    params, said = request.params, list[int]()
    for _ in range(min(params.max_new_tokens, kv_tokens - len(request.token_ids))):
        said.append(drawn_behind([*request.token_ids, *said]))
        if said[-1] in params.stop_token_ids:
            text = text_of(said[:-1])
            return Golden(tuple(said), text, text, FinishReason.STOP)
        text = text_of(said)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in params.stop if stop in text]
        if found:
            return Golden(tuple(said), text[: min(found)[1]], text, FinishReason.STOP)
    text = text_of(said)
    return Golden(tuple(said), text, text, FinishReason.LENGTH)


def text_of(token_ids: list[int]) -> str:
    """The text of tokens without the bytes of a last character that is not whole."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(VOCAB[token] for token in token_ids))


def golden_scores(request: ScoreRequest) -> tuple[float, ...]:
    """What it says to choices."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(request.trie.token_ids, request.trie.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    scores = [score([*request.token_ids, *path[:-1]], path[-1]) for path in paths]
    if request.unconditional:
        scores += [score(path[:-1], path[-1]) if len(path) > 1 else 0.0 for path in paths]
    return tuple(scores)


def golden_embedding(request: Request) -> tuple[float, ...]:
    """What it says to a prompt that is to be embedded."""
    return (float(next_token(request.token_ids)),)
