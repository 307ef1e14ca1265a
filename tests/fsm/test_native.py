"""The compiled automaton against the one in Python: same masks, same bounds, same refusals, and nothing left behind."""

from __future__ import annotations

import gc
import json
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm import native
from palmette.fsm.compile import Constraint, compile
from palmette.fsm.limits import Limits
from palmette.fsm.matcher import Matcher
from palmette.fsm.unfolding import Unfolded
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec
from tests.fsm.conftest import read_jsonl
from tests.fsm.test_matcher_oracle import EOS, TOY, VOCABULARY, wide_vocabulary
from tests.fsm.test_regex_oracle import random_pattern

pytestmark = pytest.mark.skipif(native.library() is None, reason="the compiled automaton is not built")

WIDE = wide_vocabulary()
WORDS = [b'": "', b'", "', b'": ', b", ", b"true", b"null", b"abc", b"12", b"}}", b'"}', b"]]"]
BYTES = Vocabulary([b"", *(bytes([b]) for b in range(256)), *WORDS], eos_ids=[EOS])
Both = Callable[[Spec, Vocabulary, Limits | None], tuple[Constraint, Constraint]]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """Compiles a constraint twice: compiled code's, Python's."""

    def compiled(spec: Spec, vocabulary: Vocabulary, limits: Limits | None) -> tuple[Constraint, Constraint]:
        out = []
        for wanted in "10":
            monkeypatch.setenv("PALMETTE_NATIVE", wanted)
            out.append(compile(spec, vocabulary, limits))
        monkeypatch.delenv("PALMETTE_NATIVE")
        assert isinstance(out[0].automaton.machine, native.NativeUnfolding)
        assert isinstance(out[1].automaton.machine, Unfolded)
        return out[0], out[1]

    return compiled


def assert_alike(one: Matcher, two: Matcher) -> None:
    """Every question that a state answers."""
    assert np.array_equal(one.mask(), two.mask())
    assert one.is_accepting == two.is_accepting
    assert one.forced_bytes() == two.forced_bytes()
    assert one.cost_to_accept() == two.cost_to_accept()
    (a, s), (b, t) = ((m.constraint.automaton, m._state()) for m in (one, two))
    assert a.peak(s) == b.peak(t)
    assert np.array_equal(a.token_costs(s), b.token_costs(t))
    assert a.worst_cost(s) == b.worst_cost(t)
    ranges = [[(low, high) for low, high, _ in m.machine.segments(x)] for m, x in ((a, s), (b, t))]
    assert ranges[0] == ranges[1]
    for budget in (one.cost_to_accept(), one.cost_to_accept() + 2):
        assert np.array_equal(one.allowed(budget=budget), two.allowed(budget=budget))


def walk_alike(constraints: tuple[Constraint, Constraint], rng: random.Random, steps: int) -> int:
    """One random walk; how many states were compared."""
    matchers = [c.matcher() for c in constraints]
    for n in range(steps):
        assert_alike(*matchers)
        if rng.random() < 0.2:
            matchers[0].prefetch()
        going_on = [t for t in matchers[1].allowed().tolist() if t != EOS]
        if not going_on:
            return n + 1
        token = rng.choice(going_on)
        assert [m.try_advance(token) for m in matchers] == [True, True]
    return steps


SPECS: list[Spec] = [
    Regex(".{0,50}"), Regex(r"([a-h]+,? )*[a-h]+\."), Regex(r"\w{1,12}( \w+)*"), Regex("(?s:.{0,20})\"(?!a)[a-z]*"),
    Regex("[a-h]{0,9}(abc|XYZ)[0-9]{3}"), Regex("(a|b)*a(a|b){7}"), Choices(tuple(f"abc{i}" for i in range(60))),
    Regex(r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}[0-9]+"), Regex("[日é]{0,5}[^日]*"),
    Grammar('root ::= "(" root ")" root | item\nitem ::= [a-c]* | "é"'), JsonSchema.of(True),
    JsonSchema.of({"type": "object", "properties": {"a": {"type": "string", "maxLength": 30}, "b": {"minimum": 5}}}),
    JsonSchema.of({"type": "array", "items": {"type": "string", "pattern": "^[a-d]+$", "minLength": 3}}),
    JsonSchema.of({"enum": [1, "a", "abc", None, [1, "a"]]}),
    JsonSchema.of({"properties": {"t": {"type": "string", "format": "date-time"}, "n": {"multipleOf": 7}}}),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_every_state_answers_like_pythons(both: Both, spec: Spec) -> None:
    rng = random.Random(1)
    constraints = both(spec, WIDE, None)
    assert sum(walk_alike(constraints, rng, 9) for _ in range(4)) >= 4


def test_random_patterns_over_small_vocabularies_answer_like_pythons(both: Both) -> None:
    rng = random.Random(5)
    compared = 0
    for n in range(60):
        letters = [*TOY[:24], *("".join(rng.choices("abé\n", k=rng.randint(1, 4))).encode() for _ in range(30))]
        vocabulary = VOCABULARY if n % 3 else Vocabulary(letters, eos_ids=[EOS])
        try:
            constraints = both(Regex(random_pattern(rng, 4)), vocabulary, None)
        except UnsupportedConstraint:
            continue
        compared += sum(walk_alike(constraints, rng, 6) for _ in range(2))
    assert compared > 100


def real_specs(data_dir: Path) -> Iterator[Spec]:
    for n, row in enumerate(read_jsonl(data_dir / "schemastore" / "schemas.jsonl")):
        if n % 40 == 0:
            yield JsonSchema(json.dumps(row["schema"]))
    for path in sorted((data_dir / "jsonschemabench").glob("*.jsonl")):
        for n, row in enumerate(read_jsonl(path)):
            if n % 60 == 0:
                yield JsonSchema(json.dumps(row["schema"]))


def test_real_schemas_answer_like_pythons(both: Both, data_dir: Path) -> None:
    rng = random.Random(8)
    compared = 0
    for spec in real_specs(data_dir):
        try:
            constraints = both(spec, BYTES, None)
        except UnsupportedConstraint:
            continue
        try:
            matchers = [c.matcher() for c in constraints]
            for _ in range(12):
                masks = [m.mask() for m in matchers]
                assert np.array_equal(masks[0], masks[1])
                assert matchers[0].cost_to_accept() == matchers[1].cost_to_accept()
                compared += 1
                token = int(rng.choice(matchers[1].allowed().tolist()))
                if token == EOS:
                    break
                for m in matchers:
                    m.advance(token)
        except UnsupportedConstraint:
            continue
    assert compared > 100, compared


@pytest.mark.parametrize(
    ("limits", "spec"),
    [
        (Limits(dfa_states_per_step=2), Regex("(a|b)*a(a|b){9}")),
        (Limits(members_per_step=6), Regex("(a|b)*a(a|b){9}")),
        (Limits(dfa_states=8), Regex("(a|b)*a(a|b){9}")),
        (Limits(nfa_states=20), Regex("a{1,9}b{1,90}")),
        (Limits(dfa_states_per_step=8), Regex("(?!.*aba)(a|b)*a(a|b){9}")),  # crossed in Python, asked from over there
    ],
    ids=range(5),
)
def test_limits_are_named_as_in_python(both: Both, limits: Limits, spec: Spec) -> None:
    names = []
    for constraint in both(spec, VOCABULARY, limits):
        with pytest.raises(UnsupportedConstraint) as caught:
            walk_far(constraint)
        names.append(caught.value.keyword)
        assert constraint.matcher().advance_bytes(b"a"), "a crossed limit ends one request and not the constraint"
    assert names[0] == names[1] == next(n for n, v in vars_of(limits).items() if v != vars_of(Limits())[n])


def walk_far(constraint: Constraint) -> None:
    matcher = constraint.matcher()
    for _ in range(40):
        matcher.mask()
        if not matcher.try_advance(TOY.index(b"a")):
            matcher.advance(TOY.index(b"b"))


def vars_of(limits: Limits) -> dict[str, float]:
    return {name: getattr(limits, name) for name in Limits.__slots__}


def test_an_error_in_a_row_of_pythons_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = compile(Regex("(?!ab)[a-c]{2,50}"), VOCABULARY)
    machine = constraint.automaton.machine
    assert isinstance(machine, native.NativeUnfolding)
    [product] = machine._machines

    def fail(state: int) -> None:
        raise RuntimeError("no row today")

    monkeypatch.setattr(product, "segments", fail)
    with pytest.raises(RuntimeError, match="no row today"):
        constraint.matcher().mask()
    monkeypatch.undo()
    assert constraint.matcher().allowed().size > 0


def test_a_mask_outlives_its_constraint_and_the_automaton_does_not() -> None:
    vocabulary = Vocabulary(TOY, eos_ids=[EOS])
    constraint = compile(Regex("(?!ba)[ab]{1,9}"), vocabulary)
    mask = constraint.matcher().mask()
    expected = mask.copy()
    machine = weakref.ref(constraint.automaton.machine)
    tables = weakref.ref(constraint.automaton.machine._vocabulary)  # type: ignore[attr-defined]
    del constraint
    assert machine() is None, "no cycle keeps it"
    del vocabulary
    gc.collect()
    assert tables() is None
    assert np.array_equal(mask, expected)
    assert not mask.flags.writeable


def test_memory_is_counted_and_bounded_by_the_masks_that_may_be_kept() -> None:
    room = 20 * WIDE.mask_words * 4
    constraint = compile(Regex("[a-h]{0,9}(abc|XYZ)[0-9]{3}"), WIDE, Limits(mask_cache_bytes=room))
    rng, sizes = random.Random(2), []
    for _ in range(30):
        matcher = constraint.matcher()
        for _ in range(6):
            allowed = matcher.allowed()
            sizes.append(constraint.nbytes)
            token = int(rng.choice(allowed.tolist()))
            if token == EOS:
                break
            matcher.advance(token)
    assert 0 < min(sizes) <= max(sizes) < room + (4 << 20)
    assert constraint.automaton.machine.num_masks <= 21


def test_constraints_on_two_threads_do_not_disturb_each_other() -> None:
    """One compiles and walks its own while another walks another, over one vocabulary."""
    expected = {}
    specs = {name: Regex(pattern) for name, pattern in (("a", r"([a-h]+,? )*[a-h]+\."), ("b", r"(?!ab)\w{1,90}é"))}
    for name, spec in specs.items():
        expected[name] = [m.tolist() for m in masks_of(spec)]
    found: dict[str, list[list[list[int]]]] = {name: [] for name in specs}

    def work(name: str) -> None:
        for _ in range(8):
            found[name].append([m.tolist() for m in masks_of(specs[name])])

    threads = [threading.Thread(target=work, args=(name,)) for name in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[name] == [expected[name]] * 8 for name in specs)


def masks_of(spec: Spec) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint32]]]:
    matcher, rng, out = compile(spec, WIDE).matcher(), random.Random(4), []
    for _ in range(10):
        out.append(matcher.mask())
        going_on = [t for t in matcher.allowed().tolist() if t != EOS]
        if not going_on:
            break
        matcher.advance(rng.choice(going_on))
    return out


def test_an_automaton_that_grew_too_large_is_rebuilt_over_there_too() -> None:
    constraint = compile(Regex("(a|b)*a(a|b){9}"), VOCABULARY, Limits(dfa_states=400))
    twin = compile(Regex("(a|b)*a(a|b){9}"), VOCABULARY)
    rng = random.Random(3)
    for _ in range(40):
        one, two = constraint.matcher(), twin.matcher()
        for _ in range(12):
            assert np.array_equal(one.mask(), two.mask())
            token = int(rng.choice([t for t in two.allowed().tolist() if t != EOS]))
            one.advance(token)
            two.advance(token)
    assert constraint.automaton.epoch > 0
