"""Tags in free text, reasoning and healing, against definitions written without automata."""

from __future__ import annotations

import importlib
import itertools
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.fsm.algebra import Node
from palmette.fsm.compile import compile
from palmette.fsm.dfa import matches
from palmette.fsm.language import to_language
from palmette.fsm.vocabulary import Vocabulary, special_bytes
from palmette.specs import (
    Choices,
    Concat,
    Grammar,
    Healed,
    JsonSchema,
    OneOf,
    Reasoned,
    Regex,
    Repeated,
    SchemaOptions,
    Spec,
    Tag,
    Tagged,
)
from tests.fsm.languages import automaton

EOS, SPECIAL, OTHER = 0, 1, 2
S, OO = "§", "¶"  # one character each, in these tests, for the special tokens <S> and <O>
TOY = [
    b"",
    b"",
    b"",
    *[bytes([b]) for b in b"abt<>"],
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9",
    b"<t",
    b"t>",
    b"a<",
    b">a",
    b"\xa9<",
]
VOCABULARY = Vocabulary(TOY, eos_ids=[EOS], special={SPECIAL: "<S>", OTHER: "<O>"})


def encoded(text: str) -> bytes:
    """A text with S and OO in it as an automaton reads it."""
    return text.encode().replace(S.encode(), special_bytes(SPECIAL)).replace(OO.encode(), special_bytes(OTHER))


def in_tagged(text: str, spec: Tagged, start: int = 0, tags: int = 0) -> bool:
    """By the definition: the first trigger that is complete must be the beginning of a tag."""
    begins = [t.begin.replace("<S>", S).replace("<O>", OO) for t in spec.tags]
    triggers = [t.replace("<S>", S).replace("<O>", OO) for t in spec.triggers] or begins
    triggers = [t[: t.index(S) + 1] if S in t else t for t in triggers]
    if begins[0][0] == S:  # a trigger that ends inside the text of a special token takes all of it
        triggers = [S if "<S>".startswith(t) else t for t in triggers]
    if spec.stop_after_first and tags:
        return start == len(text)
    for end in range(start + 1, len(text) + 1):
        complete = [t for t in triggers if end - start >= len(t) and text[:end].endswith(t)]
        for trigger, (tag, begin) in itertools.product(complete, zip(spec.tags, begins, strict=True)):
            at = end - len(trigger)
            if begin.startswith(trigger) and text.startswith(begin, at):
                inside, close = at + len(begin), tag.end.replace("<S>", S).replace("<O>", OO)
                assert isinstance(tag.content, Regex)
                for stop in range(inside, len(text) + 1):
                    content_fits = re.fullmatch(tag.content.pattern, text[inside:stop]) and text.startswith(close, stop)
                    if content_fits and in_tagged(text, spec, stop + len(close), tags + 1):
                        return True
        if complete:
            return False
        if text[end - 1] in (S, OO):
            return False  # free text holds no special token
    return bool(tags) or not spec.at_least_one


A, AB = Regex("a?"), Regex("[ab]*")
TAGGED = [
    Tagged((Tag("<t", A, ">"),)),
    Tagged((Tag("<t>", A, "b"),), triggers=("<",)),
    Tagged((Tag("<a", AB, "<>"), Tag("<ba", A, "")), triggers=("<",)),
    Tagged((Tag("aa", A, "b"),)),
    Tagged((Tag("ab", A, ">"), Tag("ba", A, "<")), at_least_one=True),
    Tagged((Tag("<a", A, "b"), Tag("b<", A, "b"))),
    Tagged((Tag("a<b", A, "b"), Tag("<b", A, "a"))),
    Tagged((Tag("<t", AB, ">"),), stop_after_first=True),
    Tagged((Tag("<t", A, ">"),), at_least_one=True, stop_after_first=True),
    Tagged((Tag("<S>", A, "b"),)),
    Tagged((Tag("<S>a", A, "<O>"), Tag("<S>b", A, "<S>")), triggers=("<S>",)),
    Tagged((Tag("<S>a", A, ""), Tag("<S>b", A, "")), triggers=("<S>a", "<S>b")),
    Tagged((Tag("b<S>", A, ">"), Tag("<a", A, ">"))),
    Tagged((Tag("<S>a", A, "b"),), triggers=("<",)),  # the trigger ends inside the special token's text
    Tagged((Tag("<t", Regex("é?"), "<"),)),
]  # fmt: skip


def words(spec: Tagged, longest: int) -> Iterator[str]:
    letters = "abt<>é" + (S if "S>" in repr(spec) else "") + (OO if "O>" in repr(spec) else "")
    letters = "".join(c for c in letters if c in "ab" + repr(spec) + S + OO) + ("t" if "t" not in repr(spec) else "")
    for n in range(longest + 1):
        yield from map("".join, itertools.product(letters, repeat=n))


@pytest.mark.parametrize("spec", TAGGED)
def test_exactly_the_texts_of_the_definition_are_accepted(spec: Tagged) -> None:
    machine = compile(spec, VOCABULARY).automaton.machine
    accepted = 0
    for word in words(spec, 5):
        expected = in_tagged(word, spec)
        accepted += expected
        assert matches(machine, encoded(word)) == expected, word
    assert accepted > 10


def test_random_triggers_that_overlap_are_read_by_the_definition() -> None:
    rng = random.Random(17)
    texts = ["".join(w) for n in range(7) for w in itertools.product(f"ab{S}", repeat=n)]
    checked = refused = 0
    for _ in range(120):
        begins = [rng.choices(["a", "b", "b", "<S>"], k=rng.randint(1, 4)) for _ in range(rng.randint(1, 3))]
        tags = tuple(Tag("".join(begin), A, rng.choice(["", "a", "b<S>"])) for begin in begins)
        triggers = tuple({"".join(begin[: rng.randint(1, 2)]): None for begin in begins})
        spec = Tagged(tags, triggers if rng.random() < 0.5 else ())
        try:
            machine = compile(spec, VOCABULARY).automaton.machine
        except UnsupportedConstraint:  # a trigger inside another
            refused += 1
            continue
        wrong = [t for t in texts if matches(machine, encoded(t)) != in_tagged(t, spec)]
        assert not wrong, (spec, wrong[:3])
        checked += 1
    assert checked > 60
    assert refused > 3


@pytest.mark.parametrize("spec", TAGGED)
def test_a_token_is_allowed_iff_some_text_with_tags_starts_with_prefix_and_token(spec: Tagged) -> None:
    constraint = compile(spec, VOCABULARY)
    known = sorted({encoded(w) for w in words(spec, 6) if in_tagged(w, spec)})
    starts = {w[:n] for w in known for n in range(len(w) + 1)}
    rng = random.Random(7)
    for _ in range(12):
        matcher, prefix = constraint.matcher(), b""
        while len(prefix) < 2:
            letters = set(b"".join(known))
            expected = {
                t for t, data in enumerate(VOCABULARY.tokens) if t != EOS and data and prefix + data in starts
            } | ({EOS} if prefix in set(known) else set())
            allowed = {t for t in matcher.allowed().tolist() if set(VOCABULARY.tokens[t]) <= letters}
            assert allowed == expected, prefix
            token = rng.choice(sorted(allowed))
            if token == EOS:
                break
            matcher.advance(token)
            prefix += VOCABULARY.tokens[token]


def test_tags_agree_with_re_and_with_llguidance() -> None:
    llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")
    peer = importlib.import_module("llguidance.numpy")
    spec = Tagged((Tag("<t=a>", Regex("[0-9]{1,3}"), "</t>"), Tag("<t=b>", Regex("[xyz]*"), "</t>")), triggers=("<t=",))
    pattern = r"(?s:((?!<t=).)*(<t=a>[0-9]{1,3}</t>|<t=b>[xyz]*</t>))*(?s:((?!<t=).)*)"
    pieces = [
        "<",
        "t",
        "=",
        "<t",
        "t=",
        "=a",
        ">",
        "</",
        "/t>",
        "a",
        "b",
        ">1",
        "12",
        "2",
        "3",
        "y",
        "z",
        "xy",
        "z<",
        "/",
        "1",
        "é",
        "x",
    ]
    vocabulary = Vocabulary([b"", *(p.encode() for p in pieces), b"\xc3", b"\xa9"], eos_ids=[0])

    class Tokenizer:
        eos_token_id, bos_token_id = 0, None
        tokens = [b"<eos>", *vocabulary.tokens[1:]]
        special_token_ids = [0]

        def __call__(self, text: bytes | str) -> list[int]:
            return vocabulary.greedy(text.encode() if isinstance(text, str) else text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokenizer()))
    tag = llguidance.StructTag
    grammar = tag.to_grammar(
        [
            tag(trigger="<t=", begin=t.begin, grammar=f"start: /{t.content.pattern}/", end=t.end)
            for t in spec.tags
            if isinstance(t.content, Regex)
        ]
    )
    rng = random.Random(3)
    compared = finished = 0
    constraint = compile(spec, vocabulary)
    for _ in range(60):
        ours, theirs, text = constraint.matcher(), llguidance.LLMatcher(tokenizer, grammar), b""
        assert not theirs.is_error(), theirs.get_error()
        for _ in range(25):
            bits = peer.allocate_token_bitmask(1, len(vocabulary))
            peer.fill_next_token_bitmask(theirs, bits, 0)
            expected = np.flatnonzero(np.unpackbits(bits[0].view(np.uint8), bitorder="little")).tolist()
            allowed = ours.allowed().tolist()
            assert allowed == expected, text
            compared += 1
            token = rng.choice([t for t in allowed if t] or [0])
            if ours.is_accepting:
                assert re.fullmatch(pattern, text.decode()), text
                finished += 1
            if token == 0:
                break
            ours.advance(token)
            assert theirs.consume_token(token)
            text += vocabulary.tokens[token]
    assert compared > 500
    assert finished > 100


def test_free_text_ends_anywhere_but_inside_a_character() -> None:
    matcher = compile(Tagged((Tag("<t", A, ">"),)), VOCABULARY).matcher()
    assert EOS in matcher.allowed()
    matcher.advance(TOY.index(b"\xc3"))
    assert matcher.allowed().tolist() == [TOY.index(b"\xa9"), TOY.index(b"\xa9<")]
    matcher.advance(TOY.index(b"\xa9<"))
    assert EOS in matcher.allowed()
    matcher.advance(TOY.index(b"t"))
    assert EOS not in matcher.allowed()


# -- special tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        Regex("(?s:.)*"), Regex(r"[^a]*"), Regex(r"\P{L}*"), Regex("(?!a)(?s:.)*"), Choices(("<S>", "<O>")),
        JsonSchema.of(True), Grammar('root ::= [^a]* "<S>"'), Healed("<S>"), Tagged((Tag("<O>", Regex("(?s:.)*")),)),
    ],
)  # fmt: skip
def test_only_template_text_ever_asks_for_a_special_token(spec: Spec) -> None:
    every_byte = Vocabulary(
        [b"", b"", b"", *[bytes([b]) for b in range(256)]], eos_ids=[0], special={1: "<S>", 2: "<O>"}
    )
    rng = random.Random(5)
    for _ in range(8):
        matcher = compile(spec, every_byte).matcher()
        for _ in range(12):
            allowed = matcher.allowed().tolist()
            assert SPECIAL not in allowed
            assert 3 + 0xFF not in allowed
            assert (OTHER in allowed) == (
                isinstance(spec, Tagged) and _whole([d for d in matcher._read if d != special_bytes(OTHER)])
            )
            token = rng.choice(allowed)
            matcher.advance(token)
            if token == EOS:
                break


def _whole(read: list[bytes]) -> bool:
    try:
        b"".join(read).decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_special_token_is_one_token_even_where_a_vocabulary_has_its_bytes() -> None:
    tokens = [b"", b"", b"\xff", b"\x00", b"\x01", b"\xff\x00", b"a", b"<S>", b"<", b"S", b">"]
    vocabulary = Vocabulary(tokens, eos_ids=[0], special={1: "<S>"})
    matcher = compile(Concat(("<S>", Regex("a"))), vocabulary).matcher()
    assert matcher.allowed().tolist() == [1]
    assert not matcher.try_advance(2)
    matcher.advance(1)
    assert matcher.allowed().tolist() == [6]
    plain = compile(Concat(("<S>", Regex("a"))), Vocabulary(tokens, eos_ids=[0])).matcher()
    assert plain.allowed().tolist() == [7, 8]


def test_special_tokens_are_forced_and_counted_as_one_token() -> None:
    vocabulary = Vocabulary(
        [b"", b"", b"", *[bytes([b]) for b in b"abc \n"], b"ab", b"bc"], eos_ids=[0], special={1: "<S>", 2: "<O>"}
    )
    ids = {data: i for i, data in enumerate(vocabulary.tokens) if data}

    def encode(data: bytes) -> list[int]:  # the merge b+c was learnt before a+b
        return [ids[p] for p in re.findall(rb"bc|ab(?!c)|[abc \n]", data)]

    matcher = compile(Concat(("ab\n<S>ab<O>\n", Regex("b?c"))), vocabulary).matcher()
    assert matcher.cost_to_accept() == 8  # ab, line break, <S>, ab, <O>, line break, c and the end
    forced = matcher.plan_forced(encode)
    assert [vocabulary.tokens[t] for t in forced] == [
        b"ab", b"\n", special_bytes(1), b"ab", special_bytes(2),
    ]  # fmt: skip
    for token in forced:
        assert matcher.allowed().tolist() == [token]
        matcher.advance(token)
    assert matcher.forced_tokens(encode, forced) == []  # the line break may still merge
    assert matcher.forced_bytes() == b"\n"


# -- other compositions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        (Concat(("a", Regex("b|bb"), "<")), "a(b|bb)<"),
        (OneOf(("a", Regex("b+"), Concat((Regex("a"), "b")))), "a|b+|ab"),
        (Repeated(Regex("ab?"), 1, 3), "(ab?){1,3}"),
        (Repeated(Regex("a|bb"), separator="<t"), "((a|bb)(<t(a|bb))*)?"),
        (Repeated(Regex("a"), 2, 3, "b"), "a(ba){1,2}"),
        (Repeated(Regex("a?"), 0, 2, "b"), "(a?(ba?)?)?"),
        (Repeated(Regex("a"), 0, 1, "b"), "a?"),
        (Healed("a<", Regex("b+")), "a<b+"),
        (Healed("", Choices(("a", "ab"))), "a|ab"),
        (Healed("ab"), "ab[abt<>]*"),
        (Reasoned("<t", Regex("a+")), "((?!<t)[abt<>])*<ta+"),
        (Reasoned("aa", Regex("b"), begin="<"), "<((?!aa)[abt<>])*aab"),
        (Reasoned("ab"), "((?!ab)[abt<>])*ab[abt<>]*"),
        (Concat((Reasoned("b", Regex("a")), "t")), "((?!b)[abt<>])*bat"),
        (Tagged((Tag("<", None, "b"),), at_least_one=True, stop_after_first=True), "((?!<)[abt<>])*<((?!b)[abt<>])*b"),
    ],
)
def test_compositions_are_the_languages_that_re_says(spec: Spec, pattern: str) -> None:
    machine = automaton(*_parts(spec))
    for n in range(6):
        for word in map("".join, itertools.product("abt<>", repeat=n)):
            assert matches(machine, word.encode()) == bool(re.fullmatch(pattern, word)), word


def _parts(spec: Spec) -> tuple[Node, dict[str, Node]]:
    language, _ = to_language(spec)
    return language.start, dict(language.rules)


def test_rules_of_equal_names_stay_apart() -> None:
    one, two = Grammar('root ::= "a" root? "b"'), Grammar('root ::= "b" root? "a"')
    machine = automaton(*_parts(Concat((one, "<", two, OneOf((one, two))))))
    for text, expected in [("ab<baab", True), ("aabb<bbaaba", True), ("ab<abab", False), ("ab<babb", False)]:
        assert matches(machine, text.encode()) == expected, text
    lists = JsonSchema.of({"type": "array", "items": {"$ref": "#"}, "maxItems": 1})
    machine = automaton(*_parts(Concat((lists, "t", JsonSchema.of({"type": "array", "items": {"$ref": "#"}})))))
    assert matches(machine, b"[[[]]]t[[], [[]]]")
    assert not matches(machine, b"[[], []]t[]")


@pytest.mark.parametrize(
    ("spec", "place", "word"),
    [
        (Tagged((Tag("<a", Regex("(?<=b)"), ">"),)), "tags[0].content: offset 0", "lookbehind"),
        (Concat(("a", JsonSchema.of({"properties": {"a": {"$dynamicRef": "#"}}}))), "parts[1]/properties/a", "dynamicRef"),  # noqa: E501
        (OneOf((Repeated(Choices(())),)), "parts[0].part", "choices"),
        (Tagged((Tag("xab", A, ""), Tag("a", A, ""))), "'xab'", "trigger"),
        (Tagged((Tag("ab<S>", A, ""), Tag("b", A, ""))), "'ab'", "trigger"),
        (Concat(("a", Reasoned("b", budget=2))), "parts[1]", "Reasoned"),
        (Concat(("a<END>",)), "parts[0]", "special token"),
        (Concat(("\ud800",)), "parts[0]", "lone surrogate"),
        (Repeated(Regex("a"), 0, 20_000), "", "repeat"),
        (Healed("a" * (1 << 19)), "prefix", "spec_bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_with_its_place(spec: Spec, place: str, word: str) -> None:
    vocabulary = Vocabulary(TOY, eos_ids=[EOS], special={SPECIAL: "<S>", EOS: "<END>"})
    with pytest.raises(UnsupportedConstraint, match=word) as caught:
        compile(spec, vocabulary)
    assert caught.value.path == place


def test_specifications_check_their_shape_when_they_are_made() -> None:
    for make in (
        lambda: Tagged(()),
        lambda: Tagged((Tag("", A),)),
        lambda: Tagged((Tag("a", A),), triggers=("b",)),
        lambda: Tagged((Tag("ab", A),), triggers=("a", "b")),
        lambda: OneOf(()),
        lambda: Repeated(A, 2, 1),
        lambda: Reasoned(""),
        lambda: Reasoned("a", budget=-1),
    ):
        with pytest.raises(InvalidOption):
            make()
    nested: Spec = A
    for _ in range(63):
        nested = Concat((nested,))
    with pytest.raises(UnsupportedConstraint, match="64 levels"):
        Concat((nested,))


def test_unenforced_keywords_of_a_part_are_listed_with_its_place() -> None:
    loose = JsonSchema.of({"type": "array", "uniqueItems": True}, SchemaOptions(strict=False))
    assert to_language(Concat(("a", loose)))[1] == ("parts[1] uniqueItems",)
    assert to_language(loose)[1] == (" uniqueItems",)
