"""Masks: what is shared between states, what is computed ahead, and the tries of names and words they walk."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.budget import Budget
from palmette.fsm.compile import compile
from palmette.fsm.dfa import Subset, matches
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.program import EPS, NEVER, Program
from palmette.fsm.slices import pack
from palmette.fsm.unfolding import Unfolded
from palmette.fsm.utf8 import json_text, word_graph
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import narrow_walk, walk
from palmette.specs import Choices, JsonSchema, Regex, Spec
from tests.fsm.test_matcher_oracle import EOS, wide_vocabulary

WIDE = wide_vocabulary()


def spelled(program: Program, item: int) -> set[bytes]:
    """All words of a trie."""
    nfa = Nfa(program, Budget(Limits()))
    machine = Subset(nfa, nfa.state(item, DONE), nfa.budget)
    words, stack = set(), [(machine.start, b"")]
    while stack:
        state, word = stack.pop()
        if machine.accepts(state):
            words.add(word)
        stack += [(to, word + bytes([b])) for low, high, to in machine.segments(state) for b in range(low, high + 1)]
    return words


def test_a_word_graph_spells_exactly_its_words() -> None:
    rng = random.Random(3)
    for _ in range(200):
        words = {bytes(rng.choices(b"ab", k=rng.randint(0, 5))) for _ in range(rng.randint(1, 9))}
        words |= {b"x" * 200 + bytes([rng.choice(b"ab")])} if rng.random() < 0.2 else set()
        program = Program()
        assert spelled(program, word_graph(sorted(words), EPS, program.bytes_node, program.then)) == words


def test_words_with_bytes_that_cannot_be_written_are_left_out() -> None:
    program = Program(frozenset(b"abc"))
    assert spelled(program, word_graph([b"abz", b"ab", b"zc", b"ca"], EPS, program.bytes_node, program.then)) == {
        b"ab",
        b"ca",
    }
    assert program.text(b"az") == NEVER
    assert program.with_word(NEVER, b'"z"', EPS) == NEVER


def test_tries_built_word_by_word_hold_every_earlier_trie_unchanged() -> None:
    rng = random.Random(4)
    for _ in range(100):
        program = Program()
        names = {"".join(rng.choices('ab"é', k=rng.randint(0, 4))) for _ in range(rng.randint(1, 9))}
        names |= {"long" * 40 + rng.choice("ab") for _ in range(2)}
        trie, expected, history = NEVER, set[bytes](), []
        for name in names:
            data = f'"{json_text(name)}"'.encode()
            trie = program.with_word(trie, data, program.text(b":" + str(len(expected)).encode()))
            expected.add(data + b":" + str(len(expected)).encode())
            history.append((trie, set(expected)))
        for item, words in history:
            assert spelled(program, item) == words


def test_thousands_of_names_are_one_state_and_not_thousands() -> None:
    schema = {"type": "object", "properties": {f"property{i}": {"type": "null"} for i in range(800)}}
    constraint = compile(JsonSchema.of({**schema, "additionalProperties": False}), WIDE)
    machine = constraint.automaton.machine
    matcher = constraint.matcher()
    for text in (b'{"prop', b'erty17": null, "property1', b'8": null, "', b'property799": null'):
        assert matcher.advance_bytes(text)
        assert len(machine.members(matcher._states[-1])) <= 2
    assert not matcher.fork().advance_bytes(b', "property18')
    assert matcher.advance_bytes(b"}")
    assert matcher.is_accepting


def order_matters() -> list[tuple[dict[str, Any], list[str], list[str]]]:
    closed = {"type": "object", "additionalProperties": False}
    abc = {"a": {"const": 1}, "ab": {"const": 2}, "c": {"const": 3}}
    good = [
        "{}",
        '{"a": 1}',
        '{"ab": 2}',
        '{"a": 1, "ab": 2}',
        '{"a": 1, "c": 3}',
        '{"a": 1, "ab": 2, "c": 3}',
        '{"c": 3}',
    ]
    bad = ['{"c": 3, "a": 1}', '{"a": 1, "a": 1}', '{"a": 1,}', '{"d": 1}', '{, "a": 1}', '{"a": 2}']
    with_ab, without_ab = [g for g in good if '"ab"' in g], [g for g in good if '"ab"' not in g]
    two, one = [g for g in good if g.count(":") >= 2], [g for g in good if g.count(":") <= 1]
    return [
        ({**closed, "properties": abc}, good, bad),
        ({**closed, "properties": abc, "required": ["ab"]}, with_ab, without_ab),
        ({**closed, "properties": abc, "minProperties": 2}, two, [*one, *bad]),
        ({**closed, "properties": abc, "maxProperties": 1}, one, [*two, *bad]),
        ({"properties": abc, "type": "object", "additionalProperties": {"const": 0}},
         [*good, '{"a": 1, "z": 0, "y": 0}', '{"z": 0}'], ['{"z": 0, "a": 1}', '{"z": 1}', '{"a": 0}']),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(5))
def test_members_keep_their_order_counts_and_commas(case: int) -> None:
    schema, good, bad = order_matters()[case]
    machine = compile(JsonSchema.of(schema), WIDE).automaton.machine
    assert [g for g in good if not matches(machine, g.encode())] == []
    assert [b for b in bad if matches(machine, b.encode())] == []


def test_enumerated_values_of_every_kind_become_one_trie() -> None:
    values: list[Any] = [*range(50), *(f"v{i}\n" for i in range(50)), None, True, [1, "a"], {"k": [{}]}, 1.5, "é"]
    constraint = compile(JsonSchema.of({"enum": values}), WIDE)
    machine = constraint.automaton.machine
    assert len(machine.members(machine.start)) == 1
    for text in ["7", '"v3\\n"', "null", "true", '[1, "a"]', '{"k": [{}]}', "1.5", '"é"']:
        assert matches(machine, text.encode()), text
    for text in ["50", '"v50\\n"', "false", '[1,"a"]', '{"k": {}}', '"v3"']:
        assert not matches(machine, text.encode()), text


SPECS: list[Spec] = [
    Regex(r"[0-9]{4}-[0-9]{2}"), Regex(".{0,300}"), Regex(r'"([^"\\\x00-\x1f]|\\["\\/bfnrt])*"'),
    Regex("[a-h]+@[a-h]{2,9}"), Regex(r"(\w+,? )*\w+\."), Choices(tuple(f"abc{i}" for i in range(60))),
    JsonSchema.of(True),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_computing_masks_ahead_changes_none_of_them_and_leaves_fewer_to_compute(spec: Spec) -> None:
    plain, ahead = compile(spec, WIDE), compile(spec, WIDE)
    rng = random.Random(9)
    late = [0, 0]  # masks computed when they were asked for
    for _ in range(3):
        matchers = [plain.matcher(), ahead.matcher()]
        for _ in range(9):
            masks = []
            for i, constraint in enumerate((plain, ahead)):
                known = constraint.automaton.machine.num_masked_states
                masks.append(matchers[i].mask())
                late[i] += constraint.automaton.machine.num_masked_states - known
            assert np.array_equal(masks[0], masks[1])
            matchers[1].prefetch()
            going_on = [t for t in matchers[0].allowed().tolist() if t != EOS]
            if not going_on:
                break
            token = rng.choice(going_on)
            for matcher in matchers:
                matcher.advance(token)
    assert late[1] < late[0] or late == [1, 1], "the first mask is always computed when it is asked for"


def test_computing_ahead_stops_at_a_limit_and_harms_nobody() -> None:
    constraint = compile(Regex("a(a|b)*a(a|b){6}|x"), WIDE, Limits(dfa_states_per_step=2))
    matcher = constraint.matcher()
    assert matcher.prefetch() == 0
    assert matcher.advance_bytes(b"x")
    assert matcher.is_accepting
    with pytest.raises(UnsupportedConstraint):
        constraint.matcher().mask()


def test_a_mask_cache_that_is_full_is_emptied_and_masks_stay_right() -> None:
    room = 3 * WIDE.mask_words * 4
    small = compile(Regex("[a-h]{0,9}(abc|XYZ)[0-9]{3}"), WIDE, Limits(mask_cache_bytes=room))
    large = compile(Regex("[a-h]{0,9}(abc|XYZ)[0-9]{3}"), WIDE)
    for text in (b"", b"a", b"abc", b"abcXYZ", b"XYZ1", b"XYZ12", b"XYZ123"):
        one, two = small.matcher(), large.matcher()
        assert one.advance_bytes(text)
        assert two.advance_bytes(text)
        one.prefetch()
        assert np.array_equal(one.mask(), two.mask())
    assert small.automaton.machine.num_masks <= 5


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_the_walk_in_python_finds_the_nodes_of_the_walk_in_numpy(spec: Spec) -> None:
    lowering = Lowering(Budget(Limits()))
    unfolded = Unfolded(lowering, lowering.language(to_language(spec)[0]), WIDE)
    masks = unfolded.masks
    state, rng, found = unfolded.start, random.Random(1), 0
    for _ in range(12):
        few = narrow_walk(masks.table, WIDE.children, masks.saturated(state))
        if few is not None:
            nodes, _ = walk(masks.table, WIDE.trie, masks.saturated(state))
            assert sorted(few) == nodes.tolist()
            found += 1
        segments = unfolded.segments(state)
        if not segments:
            break
        state = rng.choice(segments)[2]
    assert found or isinstance(spec, Regex)


def test_tokens_that_share_their_bytes_are_allowed_together() -> None:
    vocabulary = Vocabulary([b"", b"a", b"ab", b"a", b"b", b"ab", b"a"], eos_ids=[0])
    assert compile(Regex("ab?"), vocabulary).matcher().allowed().tolist() == [1, 2, 3, 5, 6]
    bits = np.zeros(32, bool)
    bits[[1, 3, 6]] = True
    assert np.array_equal(compile(Regex("a"), vocabulary).matcher().mask(), pack(bits))
