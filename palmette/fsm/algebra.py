"""Languages as frozen nodes over code points: what every kind of constraint becomes before it is lowered to bytes.

Knows structure only: the simplifications made here never need to look below a child's own class. Nodes compare by
identity, because they form deep shared graphs that nothing may walk recursively.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from palmette.fsm.charset import ANY, NEWLINE, CharSet, negate, union


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character of the set; the empty set is the empty language."""

    set: CharSet


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """Exactly this text; `Literal("")` is the empty word."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """One of these texts. Lowered to one trie, so thousands cost no more than their letters."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Alt:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """`part` at least `low` and at most `high` times; None = no upper bound."""

    part: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True, eq=False)
class And:
    """Texts that are in every part."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not:
    """Texts that are not in `part`."""

    part: Node


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """Where a position is asserted: text start or end, or (`multiline`) the start or end of a line."""

    end: bool
    multiline: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Anchored:
    """A whole pattern with anchors in places where they could not be resolved; its start is the anchors' start."""

    part: Node


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A lookahead. Exists only inside the regex parser, which turns it into And and Not."""

    part: Node
    negative: bool
    offset: int  # in the pattern


@dataclass(frozen=True, slots=True, eq=False)
class JsonText:
    """The texts of `part`, written as the inside of a JSON string: in exactly one way, escaped only where JSON must."""

    part: Node


@dataclass(frozen=True, slots=True, eq=False)
class Explicit:
    """The words of a given automaton (`dfa.Machine`) over ASCII. Stands inside an And, which finds its dead ends."""

    machine: Any


@dataclass(frozen=True, slots=True, eq=False)
class Keyed:
    """The JSON string of `name` and then `then`, or else `others`: another Keyed, or nothing.

    Lowered to one trie of all names, so that thousands of names cost one state and not thousands.
    """

    name: str
    then: Node
    others: Node


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """A named rule of the `Language`."""

    name: str


Node: TypeAlias = (
    Chars
    | Literal
    | Words
    | Seq
    | Alt
    | Repeat
    | And
    | Not
    | Anchor
    | Anchored
    | Look
    | JsonText
    | Explicit
    | Keyed
    | Ref
)


@dataclass(frozen=True, slots=True, eq=False)
class Language:
    """A start node and the rules its Refs name. Rules may be recursive."""

    start: Node
    rules: Mapping[str, Node]


NEVER = Chars(())
EMPTY = Literal("")
ANY_CHAR = Chars(ANY)
NOT_NEWLINE = Chars(negate(NEWLINE))
ANY_TEXT = Repeat(ANY_CHAR, 0, None)


def is_never(node: Node) -> bool:
    """True only when the node is the empty language on its face."""
    return isinstance(node, Chars) and not node.set


def is_empty_word(node: Node) -> bool:
    return isinstance(node, Literal) and not node.text


def seq(*parts: Node) -> Node:
    """Concatenation, flattened one level, adjacent literals joined."""
    flat: list[Node] = []
    for part in parts:
        for p in part.parts if isinstance(part, Seq) else (part,):
            if is_never(p):
                return NEVER
            if isinstance(p, Literal):
                if not p.text:
                    continue
                if flat and isinstance(flat[-1], Literal):
                    flat[-1] = Literal(flat[-1].text + p.text)
                    continue
            flat.append(p)
    if not flat:
        return EMPTY
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(parts: Iterable[Node]) -> Node:
    """Alternation, flattened one level: single characters join into one set, texts into one Words."""
    sets: list[CharSet] = []
    texts: dict[str, None] = {}
    others: dict[int, Node] = {}
    for part in parts:
        for p in part.parts if isinstance(part, Alt) else (part,):
            if isinstance(p, Chars):
                sets.append(p.set)
            elif isinstance(p, Literal):
                texts[p.text] = None
            elif isinstance(p, Words):
                texts.update(dict.fromkeys(p.texts))
            else:
                others[id(p)] = p
    out: list[Node] = list(others.values())
    joined = union(*sets)
    if joined:
        out.insert(0, Chars(joined))
    if texts:
        out.insert(0, Literal(next(iter(texts))) if len(texts) == 1 else Words(tuple(texts)))
    if not out:
        return NEVER
    return out[0] if len(out) == 1 else Alt(tuple(out))


def chain(*parts: Node) -> Node:
    """Concatenation that is not flattened: for long lists built from the end, where flattening would be quadratic."""
    if any(is_never(p) for p in parts):
        return NEVER
    return Seq(parts)


def either(one: Node, two: Node) -> Node:
    """Alternation that is not flattened, for the same use."""
    if is_never(one) or is_never(two):
        return two if is_never(one) else one
    return Alt((one, two))


def repeat(part: Node, low: int, high: int | None) -> Node:
    """Counted repetition. Nested counts become one where every number in between can be reached.

    (x{a,b}){c,d} is x{ac,bd} exactly when the runs k*a..k*b of neighbouring k touch, for all k from c to d; the gap
    a - k*(b-a) shrinks as k grows, so the first pair decides.
    """
    if is_never(part):
        return EMPTY if low == 0 else NEVER
    if high == 0 or is_empty_word(part):
        return EMPTY
    if low == high == 1:
        return part
    if isinstance(part, Repeat):
        a, b = part.low, part.high
        touching = a <= 1 if low == 0 else b is None or (low + 1) * a <= low * b + 1
        if low == high or touching:
            return Repeat(part.part, a * low, None if b is None or high is None else b * high)
    return Repeat(part, low, high)


def optional(part: Node) -> Node:
    return repeat(part, 0, 1)
