"""Thinking budgets: never exceeded, the end always reached, and everything else as without them."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from palmette.errors import RequestError
from palmette.fsm.compile import compile
from palmette.fsm.matcher import Matcher
from palmette.fsm.reasoned import ReasonedMatcher
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Concat, Healed, Reasoned, Regex, Spec, Tag, Tagged
from tests.fsm.test_forcing import ToyBPE, random_bpe

EOS = 0
TOKENS = [
    b"",
    b"",
    b"",
    *[bytes([b]) for b in b"ab<e>\n"],
    b"\xc3",
    b"\xa9",
    b"<e",
    b"e>",
    b"e>a",
    b"aa",
    b"b<",
    b">\xc3",
]
VOCABULARY = Vocabulary(TOKENS, eos_ids=[EOS], special={1: "[B]", 2: "[E]"})
CONTENTS: list[Spec | None] = [
    None,
    Regex("a{2,5}b"),
    Regex("é{1,2}"),
    Choices(("aab", "ba\n")),
    Concat(("[B]", Regex("a+"))),
    Tagged((Tag("<a", Regex("b*"), ">"),), at_least_one=True),
]
MARKS = [("", "<e>"), ("<b>", "<e>"), ("", "[E]"), ("[B]\n", "\n[E]\n"), ("", "é"), ("", "aa")]


def shortest(text: str) -> int:
    """The fewest tokens of a mark."""
    return compile(Concat((text,)), VOCABULARY).matcher().cost_to_accept() - 1 if text else 0


@pytest.mark.parametrize(("begin", "end"), MARKS)
@pytest.mark.parametrize("content", CONTENTS)
def test_the_end_comes_in_time_whatever_is_drawn(begin: str, end: str, content: Spec | None) -> None:
    rng = random.Random(9)
    marks = shortest(begin) + shortest(end)
    longest = 0
    for budget in (0, 1, 2, 5):
        constraint = compile(Reasoned(end, content, budget, begin), VOCABULARY)
        for total in (None, None, 12, 7, 4):
            matcher = constraint.matcher()
            left = total
            if left is not None and matcher.cost_to_accept() > left:
                continue
            used = 0
            for _ in range(60):
                assert isinstance(matcher, ReasonedMatcher)
                used += matcher.is_reasoning
                allowed = matcher.allowed(budget=left).tolist()
                assert allowed, (budget, total, matcher._read)
                endings = [t for t in allowed if t == EOS]
                token = rng.choice(endings if endings and rng.random() < 0.3 else allowed)
                matcher.advance(token)
                left = None if left is None else left - 1
                if token == EOS:
                    break
            assert used <= marks + budget
            longest = max(longest, used - marks)
            assert left is None or matcher.is_terminated
            if matcher.is_terminated:  # the text is one of the language, whatever its tokens
                plain = compile(Reasoned(end, content, None, begin), VOCABULARY).matcher()
                assert plain.advance_bytes(b"".join(matcher._read))
                assert plain.is_accepting
    assert longest == 5, "the whole budget can be used"


def test_within_the_budget_nothing_is_forbidden() -> None:
    free = compile(Reasoned("<e>", Regex("a+")), VOCABULARY).matcher()
    bounded = compile(Reasoned("<e>", Regex("a+"), budget=20), VOCABULARY).matcher()
    rng = random.Random(4)
    for _ in range(15):
        assert np.array_equal(free.mask(), bounded.mask())
        token = rng.choice(free.allowed().tolist())
        free.advance(token)
        bounded.advance(token)


def test_when_the_budget_is_used_up_only_the_way_to_the_end_is_left() -> None:
    matcher = compile(Reasoned("<e>", Regex("a+"), budget=3), VOCABULARY).matcher()
    for _ in range(3):
        matcher.advance(TOKENS.index(b"b"))
    assert [TOKENS[t] for t in matcher.allowed()] == [b"<", b"<e", b"b<"], "two tokens are left"
    assert not matcher.try_advance(TOKENS.index(b"a"))
    with pytest.raises(RequestError):
        matcher.advance(TOKENS.index(b"a"))
    matcher.advance(TOKENS.index(b"<"))
    assert [TOKENS[t] for t in matcher.allowed()] == [b"e>", b"e>a"], "one is left, and may reach further"
    matcher.advance(TOKENS.index(b"e>a"))
    assert {TOKENS[t] for t in matcher.allowed()} == {b"", b"a", b"aa"}
    assert matcher.is_accepting


def test_rollback_fork_and_bytes_restore_the_thinking_budget() -> None:
    constraint = compile(Reasoned("<e>", Regex("(a|b)*"), budget=4), VOCABULARY)
    rng = random.Random(2)
    matcher: Matcher = constraint.matcher()

    def seen() -> tuple[object, ...]:
        assert isinstance(matcher, ReasonedMatcher)
        return matcher.allowed().tolist(), matcher.is_accepting, matcher.is_reasoning, matcher.tokens

    trail = [seen()]
    inside = 0
    for _ in range(200):
        action = rng.random()
        if action < 0.6 and not matcher.is_terminated:
            matcher.advance(rng.choice(matcher.allowed().tolist()))
            trail.append(seen())
        elif action < 0.8:
            back = rng.randint(0, len(trail) - 1)
            matcher.rollback(back)
            del trail[len(trail) - back :]
        else:
            twin = matcher.fork()
            if not twin.is_terminated:
                twin.advance(rng.choice(twin.allowed().tolist()))
        assert seen() == trail[-1]
        inside += bool(trail[-1][2])
    assert 20 < inside < 180
    fresh = constraint.matcher()
    assert fresh.advance_bytes(b"aab\xc3\xa9aaaaaa<")
    assert fresh.advance_bytes(b"e>ab")
    assert fresh.is_accepting


def test_a_healed_prefix_stands_before_the_reasoning() -> None:
    constraint = compile(Healed("a", Healed("b", Reasoned("<e>", Regex("a"), budget=0, begin="[B]"))), VOCABULARY)
    matcher = constraint.matcher()
    out = []
    while not matcher.is_terminated:
        token = matcher.allowed().tolist()[0]
        matcher.advance(token)
        out.append(token)
    assert b"".join(TOKENS[t] if t != 1 else b"[B]" for t in out) == b"ab[B]<e>a"


def test_forced_tokens_of_the_marks_fit_the_budget_or_are_not_forced() -> None:
    """A tokenizer that writes a mark with more tokens than the fewest."""
    bpe = ToyBPE([(b"a", b"b"), (b"b", b"c"), (b"ab", b"cd")], b"abcde")
    constraint = compile(Reasoned("e", Regex("a"), budget=0, begin="abc"), bpe.vocabulary)
    matcher = constraint.matcher()
    plan = matcher.plan_forced(lambda data: [bpe.ids[bytes([b])] for b in data])  # a b c, where ab c would do
    assert len(plan) < 3
    while not matcher.is_terminated:
        matcher.advance(matcher.allowed().tolist()[0])
    assert b"".join(bpe.vocabulary.tokens[t] for t in matcher.tokens) == b"abcea"


def test_no_vocabulary_makes_the_two_demands_meet_in_an_empty_mask() -> None:
    rng = random.Random(31)
    walks = 0
    for _ in range(60):
        bpe = random_bpe(rng, b"abc")
        end = "".join(rng.choices("abc", k=rng.randint(1, 3)))
        content = Regex(rng.choice(["a{1,3}b", "(ab|c){2}", "[bc]{2,3}a", "c|abab"]))
        begin = "".join(rng.choices("abc", k=rng.randint(0, 2)))
        constraint = compile(Reasoned(end, content, rng.randint(0, 3), begin), bpe.vocabulary)
        cost = constraint.matcher().cost_to_accept()
        for left in (cost, cost + 1, cost + 3):
            matcher = constraint.matcher()
            while not matcher.is_terminated:
                allowed = matcher.allowed(budget=left).tolist()
                assert allowed
                matcher.advance(rng.choice(allowed))
                left -= 1
            assert left >= 0
            text = b"".join(bpe.vocabulary.tokens[t] for t in matcher.tokens[:-1]).decode()
            assert re.fullmatch(f"{begin}((?!{end}).)*{end}({content.pattern})", text) or end in text
            walks += 1
    assert walks == 180
