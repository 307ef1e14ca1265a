"""Masks and matchers against exhaustive enumeration on toy vocabularies."""

from __future__ import annotations

import random

import numpy as np
import pytest

from palmette.errors import RequestError, UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.fsm.dfa import DEAD, Machine, matches
from palmette.fsm.limits import Limits
from palmette.fsm.slices import pack
from palmette.fsm.table import Table
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import walk
from palmette.specs import Choices, Regex
from tests.fsm.languages import regex_automaton
from tests.fsm.test_regex_oracle import random_pattern

EOS = 0
# Single bytes first, then tokens that join letters, and tokens that split and straddle the bytes of é, ü and a newline.
TOY: list[bytes] = [
    b"",
    *[bytes([b]) for b in b'ab\n"\\:,{}[]0123-. tnu'],
    b"\xc3", b"\xa9", b"\xbc",
    b"ab", b"ba", b"aab", b"bb", b"aaaa", b"\xc3\xa9", b"a\xc3", b"\xa9b", b"\xa9\xc3", b"b\n", b"\n\n", b'a"', b'":',
    b"ab",  # a second id for the same bytes
]  # fmt: skip
VOCABULARY = Vocabulary(TOY, eos_ids=[EOS])


def wide_vocabulary() -> Vocabulary:
    """Random tokens, many enough for slices and for the dense walk."""
    rng = random.Random(3)
    words = {bytes([b]) for b in range(256)}
    while len(words) < 6000:
        letters = rng.choice(["abcdefgh", "abc é日", "0123456789", ' "\\\n{}:,a', "XYZ_abc"])
        words.add("".join(rng.choices(letters, k=rng.randint(1, 7))).encode())
    for text in ["日本語".encode(), "é".encode() * 3]:
        words |= {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    return Vocabulary([b"", *sorted(words)], eos_ids=[EOS])


def by_definition(pattern: str, prefix: bytes, max_len: int, alphabet: bytes) -> set[int]:
    """Tokens t such that a word of the language starts with prefix + t, by trying every short continuation."""
    machine = regex_automaton(pattern)
    out = {EOS} if matches(machine, prefix) else set()
    for token, data in enumerate(TOY):
        if data and _has_continuation(machine, prefix + data, max_len, alphabet):
            out.add(token)
    return out


def _has_continuation(machine: Machine, data: bytes, max_len: int, alphabet: bytes) -> bool:
    frontier = [data]
    for _ in range(max_len + 1):
        if any(matches(machine, w) for w in frontier):
            return True
        frontier = [w + bytes([b]) for w in frontier for b in alphabet]
    return False


@pytest.mark.parametrize(
    "pattern",
    [
        "(ab|aab)*", "a{2,3}b", "[aé]{1,3}", "(é|ü)a?", "(?=a)[ab]{2}", "(?!ab)[ab]{2}", "a(?m:$)\\n?", ".{0,2}",
        "[^a]b", "(a|b)*a(a|b){2}", "b|a\\n",
    ],
)  # fmt: skip
def test_a_token_is_allowed_iff_some_word_starts_with_prefix_and_token(pattern: str) -> None:
    constraint = compile(Regex(pattern), VOCABULARY)
    alphabet = b"ab\n\xc3\xa9\xbc"
    rng = random.Random(5)
    for _ in range(4):
        matcher, prefix = constraint.matcher(), b""
        for _ in range(3):
            allowed = matcher.allowed().tolist()
            expected = by_definition(pattern, prefix, 3, alphabet)
            assert set(allowed) == expected, (pattern, prefix)
            assert [t for t in range(len(TOY)) if matcher.is_allowed(t)] == allowed
            going_on = [t for t in allowed if t != EOS]
            if not going_on:
                break
            token = rng.choice(going_on)
            matcher.advance(token)
            prefix += TOY[token]


def test_masks_equal_the_plain_walk_in_every_state_that_random_walks_visit() -> None:
    vocabulary = wide_vocabulary()
    assert vocabulary.slices, "the vocabulary must be large enough to use slices"
    patterns = [
        r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"', ".{0,30}", r"\w{1,12}( \w+)*", "[a-h]+@[a-h]{2,9}",
        '"[^"]{3,9}"', "[^a-c]*", "(abc|ab|a)*", r"\d{1,40}(\.\d+)?", "(?s:.)*", "[日é]{0,5}[^日]*",
        '(?s:.{0,20})"(?!a)[a-z]*',
    ]  # fmt: skip
    rng = random.Random(4)
    visited = 0
    for pattern in patterns:
        constraint = compile(Regex(pattern), vocabulary)
        automaton = constraint.automaton
        table = Table(automaton.machine)
        for _ in range(6):
            matcher = constraint.matcher()
            for _ in range(8):
                state = matcher._state()
                nodes, _ = walk(table, vocabulary.trie, state)
                alive = np.zeros(vocabulary.trie.num_nodes, bool)
                alive[nodes] = True
                expected = np.zeros(vocabulary.mask_words * 32, bool)
                expected[vocabulary.trie.token_ids[alive[vocabulary.trie.token_nodes]]] = True
                expected[EOS] = matcher.is_accepting
                assert np.array_equal(matcher.mask(), pack(expected)), (pattern, b"".join(matcher._read))
                visited += 1
                going_on = [t for t in matcher.allowed().tolist() if t != EOS]
                if not going_on:
                    break
                matcher.advance(rng.choice(going_on))
    assert visited > 300


def test_the_walk_agrees_with_stepping_every_token_byte_by_byte() -> None:
    vocabulary = wide_vocabulary()
    for pattern in [".{0,9}", "[a-c]*é[a-h]*", r'"[^"]*"', "abc|abcdefgh|é日"]:
        constraint = compile(Regex(pattern), vocabulary)
        automaton = constraint.automaton
        allowed = set(constraint.matcher().allowed().tolist())
        for token, data in enumerate(vocabulary.tokens):
            if data:
                assert (automaton.read(automaton.start, data) != DEAD) == (token in allowed), (pattern, data)


def test_random_patterns_generate_only_words_and_never_get_stuck() -> None:
    rng = random.Random(11)
    compiled = 0
    for _ in range(150):
        pattern = random_pattern(rng, 4)
        try:
            constraint = compile(Regex(pattern), VOCABULARY)
        except UnsupportedConstraint:
            continue
        compiled += 1
        machine = regex_automaton(pattern)
        matcher = constraint.matcher()
        for _ in range(12):
            allowed = matcher.allowed().tolist()
            assert allowed, f"an empty mask after {matcher._read} in {pattern!r}"
            token = rng.choice(allowed)
            matcher.advance(token)
            if token == EOS:
                break
        if matcher.is_terminated:
            assert matches(machine, b"".join(matcher._read)), pattern
    assert compiled > 80


def test_rollback_and_fork_restore_every_observable() -> None:
    constraint = compile(Regex("(a|ab|é)*b?"), VOCABULARY)
    rng = random.Random(2)
    matcher = constraint.matcher()
    trail = [(matcher.allowed().tolist(), matcher.is_accepting, matcher.is_terminated)]
    for _ in range(60):
        action = rng.random()
        if action < 0.55 and not matcher.is_terminated:
            matcher.advance(rng.choice(matcher.allowed().tolist()))
            trail.append((matcher.allowed().tolist(), matcher.is_accepting, matcher.is_terminated))
        elif action < 0.8 and len(trail) > 1:
            back = rng.randint(0, len(trail) - 1)
            matcher.rollback(back)
            del trail[len(trail) - back :]
        else:
            twin = matcher.fork()
            if not twin.is_terminated:
                twin.advance(rng.choice(twin.allowed().tolist()))
        assert (matcher.allowed().tolist(), matcher.is_accepting, matcher.is_terminated) == trail[-1]


def test_a_token_that_is_not_allowed_is_refused_and_changes_nothing() -> None:
    matcher = compile(Regex("ab"), VOCABULARY).matcher()
    with pytest.raises(RequestError, match="not allowed"):
        matcher.advance(TOY.index(b"b"))
    with pytest.raises(RequestError):
        matcher.advance(EOS)
    assert matcher.advance_bytes(b"a")
    assert not matcher.advance_bytes(b"a")
    matcher.advance(TOY.index(b"b"))
    assert matcher.is_accepting
    assert matcher.allowed().tolist() == [EOS]
    matcher.advance(EOS)
    assert matcher.allowed().tolist() == []


def test_choices_are_exactly_the_texts_even_when_one_begins_another() -> None:
    constraint = compile(Choices(("a", "ab", "ba\n", "é")), VOCABULARY)
    for text, expected in [("a", True), ("ab", True), ("ba\n", True), ("é", True), ("b", False), ("abb", False)]:
        matcher = constraint.matcher()
        assert (matcher.advance_bytes(text.encode()) and matcher.is_accepting) == expected, text


def test_bytes_that_no_token_writes_alone_are_not_part_of_the_language() -> None:
    vocabulary = Vocabulary([b"", b"a", b"b"], eos_ids=[0])
    assert compile(Regex("[a-z]+"), vocabulary).matcher().allowed().tolist() == [1, 2]
    assert compile(Regex("ac|b"), vocabulary).matcher().allowed().tolist() == [2]
    with pytest.raises(UnsupportedConstraint, match="empty language"):
        compile(Regex("c+"), vocabulary)


def test_an_automaton_that_outgrows_its_limit_is_rebuilt_under_running_matchers() -> None:
    constraint = compile(Regex("(a|b)*a(a|b){6}"), VOCABULARY, Limits(dfa_states=150))
    matcher, rng = constraint.matcher(), random.Random(1)
    other = matcher.fork()
    letters = [TOY.index(b"a"), TOY.index(b"b")]
    for _ in range(400):
        matcher.mask()
        matcher.advance(rng.choice(letters))
    assert constraint.automaton.epoch > 0
    assert other.advance_bytes(b"a" * 7)
    assert other.is_accepting


def test_equal_specifications_have_equal_keys() -> None:
    one, two = compile(Regex("a+"), VOCABULARY), compile(Regex("a+"), VOCABULARY)
    assert one == two
    assert hash(one) == hash(two)
    assert one != compile(Regex("a*"), VOCABULARY)
    assert one != compile(Regex("a+"), Vocabulary([b"", b"a"], eos_ids=[0]))
