"""Grammars: recursion, both notations, and what is refused."""

from __future__ import annotations

import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.fsm.dfa import Subset
from palmette.fsm.grammar import parse_grammar
from palmette.fsm.limits import Limits
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Grammar
from tests.fsm.languages import accepts, automaton

ARITHMETIC = """
root ::= sum                      # GBNF
sum  ::= product ([+-] product)*
product ::= atom ("*" atom)*
atom ::= [0-9]+ | "(" sum ")"
"""


def grammar_automaton(text: str) -> Subset:
    language = parse_grammar(text, Limits())
    return automaton(language.start, dict(language.rules))


def balanced(text: str) -> bool:
    depth = 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0


def test_recursive_rules_accept_exactly_the_balanced_texts() -> None:
    machine = grammar_automaton('root ::= ("(" root ")")*')
    texts = [""]
    for _ in range(8):
        texts = [t + c for t in texts for c in "()"] if texts != [""] else ["", *"()"]
        for text in texts:
            assert accepts(machine, text) == balanced(text), text


def test_an_expression_grammar_accepts_expressions_of_any_depth() -> None:
    machine = grammar_automaton(ARITHMETIC)
    for text in ["1", "1+2*3", "(1)", "((((7))))*2-(3+4)", "(" * 50 + "1" + ")" * 50]:
        assert accepts(machine, text), text
    for text in ["", "1+", "(1", "1)", "()", "1 + 2"]:
        assert not accepts(machine, text), text


def test_lark_notation_reads_the_same() -> None:
    machine = grammar_automaton(
        '?start: item ("," item)*\n     // comment\nitem: "a".."c"+\n    | /x{2,3}/i\n    | "no"i{1}\n'
    )
    for text, expected in [("abc", True), ("a,xXx", True), ("NO", True), ("d", False), ("a,", False), ("x", False)]:
        assert accepts(machine, text) == expected, text


def test_a_matcher_follows_recursion_through_tokens_that_close_several_levels() -> None:
    vocabulary = Vocabulary([b"", b"(", b")", b"((", b")))", b"1", b"1)", b")+"], eos_ids=[0])
    matcher = compile(Grammar('root ::= "1" | "(" root ")"'), vocabulary).matcher()
    assert matcher.allowed().tolist() == [1, 3, 5]
    matcher.advance(3)
    matcher.advance(1)
    assert matcher.allowed().tolist() == [1, 3, 5, 6]
    matcher.advance(5)
    assert matcher.forced_bytes() == b")))"
    assert matcher.allowed().tolist() == [2, 4]
    matcher.advance(4)
    assert matcher.allowed().tolist() == [0]


@pytest.mark.parametrize(
    ("text", "keyword", "path"),
    [
        ('root ::= root "a" | "a"', "rule", "root"),
        ('root ::= a "x"\na ::= b? root | "y"\nb ::= "z"', "rule", "root"),
        ('root ::= "a" root', "empty language", ""),
        ("root ::= missing", "rule", "missing"),
        ('root ::= ("a"', "(", "offset 9"),
        ('root ::= "a")', ")", "offset 12"),
        ('%import common.WS\nroot: "a"', "%import", "offset 0"),
        ("root: /(a)\\1/", "back-reference", "offset 6"),
        ('root: "a"\nroot: "b"', "root", "offset 14"),
        ('root: "a"{20000}', "repeat", "offset 9"),
        ("", "grammar", "offset 0"),
    ],
)
def test_what_is_not_in_the_subset_is_refused_with_its_place(text: str, keyword: str, path: str) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        grammar_automaton(text)
    assert (caught.value.keyword, caught.value.path) == (keyword, path)
