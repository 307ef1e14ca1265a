"""The paper's jump-forward rule: what it keeps, what it rewrites, and that the text stays the same."""

from __future__ import annotations

import random

from palmette.fsm.compile import compile
from palmette.fsm.dfa import DEAD
from palmette.fsm.retokenize import paper_jump
from palmette.specs import Regex
from tests.fsm.test_forcing import ToyBPE, random_bpe


def spelled(bpe: ToyBPE, tokens: list[int]) -> bytes:
    return b"".join(bpe.vocabulary.tokens[t] for t in tokens)


def test_tokens_sampled_before_the_jump_may_change() -> None:
    bpe = ToyBPE([(b"a", b"b"), (b"ab", b"c")], b"abcx")
    automaton = compile(Regex("xa(bc|x)"), bpe.vocabulary).automaton
    emitted = [bpe.ids[b"x"], bpe.ids[b"a"], bpe.ids[b"b"]]
    state = automaton.read(automaton.start, b"xab")
    assert paper_jump(automaton, state, bpe.encode, emitted) == (1, [bpe.ids[b"abc"]])


def test_where_nothing_is_forced_everything_stays() -> None:
    bpe = ToyBPE([(b"a", b"b")], b"abc")
    automaton = compile(Regex("a(b|c)"), bpe.vocabulary).automaton
    emitted = [bpe.ids[b"a"]]
    state = automaton.read(automaton.start, b"a")
    assert paper_jump(automaton, state, bpe.encode, emitted) == (1, [])
    assert paper_jump(automaton, automaton.start, bpe.encode, []) == (0, [bpe.ids[b"a"]])


def test_its_last_token_may_be_one_the_whole_text_does_not_have() -> None:
    bpe = ToyBPE([(b"b", b"c")], b"abcd")
    constraint = compile(Regex("ab(c|d)"), bpe.vocabulary)
    kept, new = paper_jump(constraint.automaton, constraint.automaton.start, bpe.encode, [])
    assert (kept, spelled(bpe, new)) == (0, b"ab")
    assert bpe.encode(b"abc")[: len(new)] != new
    assert spelled(bpe, constraint.matcher().forced_tokens(bpe.encode)) == b"a", "the safe rule stops before it"


def test_a_character_is_never_cut_and_no_encoder_means_no_jump() -> None:
    bpe = ToyBPE([], b"a\xc3\xa9\xbc")
    automaton = compile(Regex("a(é|ü)"), bpe.vocabulary).automaton
    _, new = paper_jump(automaton, automaton.start, bpe.encode, [])
    assert spelled(bpe, new) == b"a"
    half = automaton.read(automaton.start, b"a\xc3")
    assert half != DEAD
    emitted = [bpe.ids[b"a"], bpe.ids[b"\xc3"]]
    assert paper_jump(automaton, half, bpe.encode, emitted) == (2, [])
    assert paper_jump(automaton, automaton.start, lambda data: None, []) == (0, [])
    assert paper_jump(automaton, automaton.start, lambda data: [bpe.ids[b"a"]] * 2, []) == (0, []), "other bytes"


def test_the_text_behind_a_jump_is_emitted_text_and_forced_text() -> None:
    rng = random.Random(43)
    jumps = rewritten = 0
    for _ in range(150):
        bpe = random_bpe(rng, b"abc")
        pattern = "".join(rng.choices(["a", "bc", "(a|b)", "c?", "ab", "[bc]"], k=6))
        constraint = compile(Regex(pattern), bpe.vocabulary)
        matcher = constraint.matcher()
        while not matcher.is_terminated:
            emitted = list(matcher.tokens)
            kept, new = paper_jump(constraint.automaton, matcher._state(), bpe.encode, emitted)
            forced = matcher.forced_bytes()
            assert spelled(bpe, emitted[:kept] + new) == spelled(bpe, emitted) + forced
            jumps += bool(forced)
            rewritten += kept < len(emitted)
            if forced:
                matcher.rollback(len(emitted) - kept)
                for token in new:
                    matcher.advance(token)
            else:
                matcher.advance(rng.choice(matcher.allowed().tolist()))
    assert jumps > 100
    assert rewritten > 0
