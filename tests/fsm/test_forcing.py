"""Forced tokens against every text of the language, tokenized whole by a reference BPE; budgets against the end."""

from __future__ import annotations

import itertools
import random

import pytest

from palmette.errors import RequestError
from palmette.fsm.compile import compile
from palmette.fsm.dfa import matches
from palmette.fsm.matcher import Matcher
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Regex
from tests.fsm.languages import regex_automaton


class ToyBPE:
    """Byte-pair encoding by its definition: merge the pair that was learnt first, everywhere, until none is left."""

    def __init__(self, merges: list[tuple[bytes, bytes]], alphabet: bytes) -> None:
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        pieces = list(dict.fromkeys([*(bytes([b]) for b in alphabet), *(a + b for a, b in merges)]))
        self.vocabulary = Vocabulary([b"", *pieces], eos_ids=[0])
        self.ids = {piece: i + 1 for i, piece in enumerate(pieces)}

    def encode(self, data: bytes) -> list[int]:
        pieces = [bytes([b]) for b in data]
        while True:
            pairs = [(self.ranks[p], p) for p in itertools.pairwise(pieces) if p in self.ranks]
            if not pairs:
                return [self.ids[p] for p in pieces]
            _, (left, right) = min(pairs)
            merged: list[bytes] = []
            for piece in pieces:
                if merged and merged[-1] == left and piece == right:
                    merged[-1] = left + right
                else:
                    merged.append(piece)
            pieces = merged


def random_bpe(rng: random.Random, alphabet: bytes) -> ToyBPE:
    pieces = [bytes([b]) for b in alphabet]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(rng.randint(3, 9)):
        pair = (rng.choice(pieces), rng.choice(pieces))
        if pair not in merges and len(pair[0] + pair[1]) <= 5 and pair[0] + pair[1] not in pieces:
            merges.append(pair)
            pieces.append(pair[0] + pair[1])
    return ToyBPE(merges, alphabet)


def test_the_straddling_merge_of_the_design_is_not_jumped_over() -> None:
    bpe = ToyBPE([(b"c", b"d"), (b"b", b"cd"), (b"a", b"b"), (b"z", b"a")], b"abcdez")
    constraint = compile(Regex("zab(cd|e)"), bpe.vocabulary)
    assert constraint.matcher().forced_bytes() == b"zab"
    assert [bpe.vocabulary.tokens[t] for t in bpe.encode(b"zabcd")] == [b"za", b"bcd"]
    forced = constraint.matcher().forced_tokens(bpe.encode)
    for text in (b"zabcd", b"zabe"):
        assert bpe.encode(text)[: len(forced)] == forced


def test_forced_tokens_begin_the_tokenization_of_every_text_of_the_language() -> None:
    rng = random.Random(13)
    alphabet = b"abc"
    texts = [bytes(w) for n in range(9) for w in itertools.product(alphabet, repeat=n)]
    forced_total = checked = 0
    for _ in range(60):
        bpe = random_bpe(rng, alphabet)
        head = "".join(rng.choices("abc", k=rng.randint(1, 4)))
        pattern = head + rng.choice(["(a|b)c?", "(ab|c)", "[bc]{1,2}", "(cab|cb)?", "a(b|c)", "(bca|bcb)c"])
        constraint = compile(Regex(pattern), bpe.vocabulary)
        machine = regex_automaton(pattern)
        words = [w for w in texts if matches(machine, w)]
        matcher = constraint.matcher()
        forced = matcher.forced_tokens(bpe.encode)
        for word in words:
            assert bpe.encode(word)[: len(forced)] == forced, (pattern, word)
        # behind a canonical beginning too
        for word in words:
            tokens = bpe.encode(word)
            for cut in range(1, len(tokens)):
                matcher = constraint.matcher()
                for token in tokens[:cut]:
                    matcher.advance(token)
                more = matcher.forced_tokens(bpe.encode, tokens[:cut])
                for other in words:
                    whole = bpe.encode(other)
                    if whole[:cut] == tokens[:cut]:
                        assert whole[cut : cut + len(more)] == more, (pattern, word, other, cut)
                        checked += 1
        forced_total += len(forced)
    assert forced_total > 40
    assert checked > 500


def test_a_planned_token_is_the_only_one_in_the_mask_until_it_is_read() -> None:
    bpe = ToyBPE([(b"a", b"b")], b"abc")
    constraint = compile(Regex("ab(a|c)"), bpe.vocabulary)
    matcher = constraint.matcher()
    plan = matcher.plan_forced(bpe.encode)
    assert [bpe.vocabulary.tokens[t] for t in plan] == [b"ab"]
    assert matcher.allowed().tolist() == plan
    assert not matcher.try_advance(bpe.ids[b"a"])
    matcher.advance(plan[0])
    assert set(matcher.allowed().tolist()) == {bpe.ids[b"a"], bpe.ids[b"c"]}
    matcher.rollback(1)
    assert matcher.allowed().tolist() == plan


def test_forced_text_ends_before_trailing_whitespace_and_half_characters() -> None:
    bpe = ToyBPE([], b"ab: \xc3\xa9\xbc")
    spaced = compile(Regex("ab:  (a|b)"), bpe.vocabulary).matcher()
    assert b"".join(bpe.vocabulary.tokens[t] for t in spaced.forced_tokens(bpe.encode)) == b"ab:"
    accented = compile(Regex("a(é|ü)"), bpe.vocabulary).matcher()
    assert accented.forced_bytes() == b"a\xc3"
    assert b"".join(bpe.vocabulary.tokens[t] for t in accented.forced_tokens(bpe.encode)) == b"a"


@pytest.mark.parametrize(
    "pattern", ["a{3,40}", "(ab|c){2,}c", "[abc]*cab", "a(bc?){1,9}", "(aaa|b{7})c*", "(?=.{4,9}$)(ab|c)*"]
)
def test_every_output_under_a_budget_ends_accepted(pattern: str) -> None:
    rng = random.Random(17)
    machine = regex_automaton(pattern)
    for _ in range(8):
        bpe = random_bpe(rng, b"abc")
        constraint = compile(Regex(pattern), bpe.vocabulary)
        minimum = constraint.matcher().cost_to_accept()
        with pytest.raises(RequestError, match="raise max_new_tokens"):
            constraint.matcher().allowed(budget=minimum - 1)
        for budget in (minimum, minimum + 1, minimum + 5):
            matcher, text, left = constraint.matcher(), b"", budget
            while not matcher.is_terminated:
                allowed = matcher.allowed(budget=left)
                assert len(allowed), (pattern, text, left)
                assert set(allowed.tolist()) <= set(matcher.allowed().tolist())
                token = rng.choice(allowed.tolist())
                matcher.advance(token)
                text += bpe.vocabulary.tokens[token]
                left -= 1
            assert left >= 0
            assert matches(machine, text)


def test_the_cost_falls_by_one_along_the_greedy_tokenization_of_the_shortest_end() -> None:
    rng = random.Random(19)
    for pattern in ["(ab|c){2,}c", "a{3,40}b|ccc", "(?=.{4,9}$)(ab|c)*", "[bc]{2,3}(ab)*a"]:
        bpe = random_bpe(rng, b"abc")
        matcher = compile(Regex(pattern), bpe.vocabulary).matcher()
        while (cost := matcher.cost_to_accept()) > 1:
            costs = {t: _cost_after(matcher, t) for t in matcher.allowed(budget=cost).tolist()}
            assert max(costs.values()) == cost - 1, "one token always spends the budget exactly"
            matcher.advance(max(costs, key=lambda t: costs[t]))
        assert matcher.is_accepting


def _cost_after(matcher: Matcher, token: int) -> int:
    twin = matcher.fork()
    twin.advance(token)
    return twin.cost_to_accept()
