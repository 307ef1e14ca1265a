"""A job's tokens read like a list, and no further back than somebody asks; paths are checked by their bounds."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.errors import InvalidOption, PromptTooLong
from palmette.runtime.admission import Limits
from palmette.runtime.tokens import Tokens
from palmette.types import GenerateRequest, TokenPath

SEGMENTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)
PLACES = st.integers(0, 30)


def path_of(segments: list[list[int]]) -> TokenPath:
    path = TokenPath(None, ())
    for segment in segments:
        path = TokenPath(path, segment)
    return path


@given(
    SEGMENTS, st.booleans(), st.lists(st.tuples(st.sampled_from(["slice", "item", "append", "cut"]), PLACES, PLACES))
)
def test_tokens_read_like_a_list(segments: list[list[int]], plain: bool, steps: list[tuple[str, int, int]]) -> None:
    path = path_of(segments)
    model, prompt_len = list(path), len(path)
    tokens = Tokens(tuple(path) if plain else path)
    for kind, a, b in steps:
        if kind == "slice":
            assert tokens[a:b].tolist() == model[a:b]
            assert tokens[a:].tolist() == model[a:]
        elif kind == "item" and a < len(model):
            assert tokens[a] == model[a]
        elif kind == "append":
            tokens.append(a)
            tokens.extend([b, b])
            model += [a, b, b]
        elif kind == "cut":
            tokens.truncate(max(prompt_len, min(a, len(model))))
            del model[max(prompt_len, a) :]
        assert len(tokens) == len(model)
    assert tokens[:].tolist() == model


def test_only_segments_that_somebody_asked_for_are_read() -> None:
    tokens = Tokens(path_of([[0, 1, 2], [3, 4], [5, 6, 7]]))
    assert tokens.num_unread == 8
    assert tokens[7] == 7
    assert tokens.num_unread == 5
    tokens.append(8)
    assert tokens[4:9].tolist() == [4, 5, 6, 7, 8]
    assert tokens.num_unread == 3
    assert tokens[3:3].tolist() == tokens[0:0].tolist() == []
    assert tokens.num_unread == 3


@given(SEGMENTS)
def test_a_path_is_the_sequence_of_its_tokens(segments: list[list[int]]) -> None:
    path, plain = path_of(segments), tuple(token for segment in segments for token in segment)
    assert path == plain
    assert (hash(path), tuple(path), len(path)) == (hash(plain), plain, len(plain))
    assert path != (*plain, 0)
    assert path == path_of([list(plain)])
    assert path[1:-1] == plain[1:-1]
    path.place = object()
    sent = copy.copy(path)  # as pickle does it
    assert (sent == plain, sent.place) == (True, None)
    assert (path.low, path.high) == (min((0, *plain)), max((0, *plain)))


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_token_that_the_model_lacks_is_found_anywhere_in_a_path(wrong: int) -> None:
    limits = Limits(vocab_size=10, context_len=8, kv_tokens=8, page_size=1)
    limits.check(GenerateRequest("good", path_of([[0, 9], [1], [5]])))
    for segments in ([[wrong, 1], [2], [3]], [[1], [2, wrong], [3]], [[1], [2], [wrong]]):
        with pytest.raises(InvalidOption, match=str(wrong)):
            limits.check(GenerateRequest("bad", path_of(segments)))
    with pytest.raises(PromptTooLong):
        limits.check(GenerateRequest("long", path_of([[1, 2, 3, 4]] * 2)))
    with pytest.raises(InvalidOption):
        limits.check(GenerateRequest("none", path_of([])))
