"""Free text with tags in it, and free text up to a mark, as languages.

    free = text without a trigger
    (free trigger rest-of-begin content end)* free

As soon as a trigger is complete a tag must go on from it, so the first of two triggers that overlap decides. Where a
trigger or a `begin` holds a special token, that token alone is the trigger: free text cannot hold it.
Knows parts of template text and nodes; what a tag contains is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import (
    ANY_CHAR,
    ANY_TEXT,
    And,
    Literal,
    Node,
    Not,
    Words,
    alt,
    either,
    repeat,
    seq,
)
from palmette.fsm.template_text import Part, Token, parts_node

_MAX_FACTORED = 16  # levels of common beginnings


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One tag."""

    begin: tuple[Part, ...]
    trigger_len: int  # characters of `begin` that trigger it, special tokens counted by their texts
    rest: Node  # what follows `begin`


def until(end: tuple[Part, ...]) -> Node:
    """Any text up to the first `end`, which belongs to it. One automaton, so that its cost is one item's."""
    if all(isinstance(p, str) for p in end):
        stop = parts_node(end)
        return And((seq(ANY_TEXT, stop), Not(seq(ANY_TEXT, stop, ANY_CHAR, ANY_TEXT))))
    return And((seq(ANY_TEXT, parts_node(end)),))


def tagged(branches: list[Branch], *, at_least_one: bool, stop_after_first: bool) -> Node:
    """The language of texts with these tags.

    Raises:
        UnsupportedConstraint: a tag that can never begin, because another trigger is complete before its own.
    """
    groups: dict[tuple[Part, ...], list[tuple[str, Node]]] = {}
    for branch in branches:
        trigger, rest = _cut(branch)
        text, marks = _split(rest)
        groups.setdefault(trigger, []).append((text, seq(parts_node(marks), branch.rest)))
    plain = tuple(str(t[0]) for t in groups if isinstance(t[-1], str))
    free: Node = Not(seq(ANY_TEXT, _words(plain), ANY_TEXT)) if plain else ANY_TEXT
    tags: list[Node] = []
    simple: list[tuple[str, Node]] = []
    for trigger, rests in groups.items():
        _check_reachable(trigger, plain)
        head, marks = _split(trigger)
        node = seq(parts_node(marks), _one_of(rests))
        if _may_overlap(head, plain, closed=bool(marks)):
            tags.append(seq(_free_with(head, plain, free, closed=bool(marks)), node))
        else:
            simple.append((head, node))
    if simple:
        tags.append(seq(free, _one_of(simple)))
    tag = alt(tags)
    if stop_after_first:
        return tag if at_least_one else either(tag, free)
    return seq(repeat(tag, 1 if at_least_one else 0, None), free)


def _cut(branch: Branch) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """`begin` as what triggers it, up to the first special token at most, and what follows.

    A trigger that ends inside the text of a special token takes the whole token.
    """
    trigger: list[Part] = []
    left = branch.trigger_len
    for n, part in enumerate(branch.begin):
        following = branch.begin[n + 1 :]
        if isinstance(part, Token):
            return (*trigger, part), following
        if left <= len(part):
            behind: tuple[Part, ...] = (part[left:],) if left < len(part) else ()
            return (*trigger, part[:left]), (*behind, *following)
        trigger.append(part)
        left -= len(part)
    raise AssertionError("a trigger is no longer than its tag's begin")


def _split(parts: tuple[Part, ...]) -> tuple[str, tuple[Part, ...]]:
    """The text that `parts` begin with, and the others."""
    return (parts[0], parts[1:]) if parts and isinstance(parts[0], str) else ("", parts)


def _may_overlap(head: str, plain: tuple[str, ...], *, closed: bool) -> bool:
    """Whether a trigger that begins before `head` may be complete inside it, or with its last character if `closed`.

    If none may, `head` simply follows free text, and one automaton of free text serves all such triggers.
    """
    longest = len(head) if closed else len(head) - 1
    others = [t for t in plain if head[:1] in t[1:]]
    return any(t.endswith(head[:n]) for t in others for n in range(1, min(longest, len(t) - 1) + 1))


def _free_with(head: str, plain: tuple[str, ...], free: Node, *, closed: bool) -> Node:
    """Texts that end with `head` and complete no trigger before its last character, or not even with it if `closed`."""
    ending = seq(ANY_TEXT, Literal(head))
    return And((ending, free)) if closed else And((ending, Not(seq(ANY_TEXT, _words(plain), ANY_CHAR, ANY_TEXT))))


def _one_of(branches: list[tuple[str, Node]], depth: int = 0) -> Node:
    """A text and what follows it, for one of `branches`; what texts begin with in common is one state, not many."""
    by_first: dict[str, list[tuple[str, Node]]] = {}
    for text, node in branches:
        by_first.setdefault(text[:1], []).append((text, node))
    parts: list[Node] = []
    for first, group in by_first.items():
        if not first or len(group) == 1 or depth == _MAX_FACTORED:
            parts += [seq(Literal(text), node) for text, node in group]
            continue
        texts = [text for text, _ in group]
        pairs = zip(min(texts), max(texts), strict=False)  # what the first and the last share, all share
        common = next((n for n, (a, b) in enumerate(pairs) if a != b), min(map(len, texts)))
        parts.append(seq(Literal(group[0][0][:common]), _one_of([(t[common:], n) for t, n in group], depth + 1)))
    return alt(parts)


def _check_reachable(trigger: tuple[Part, ...], plain: tuple[str, ...]) -> None:
    text, marks = _split(trigger)
    for other in plain:
        at = text.find(other)
        if at >= 0 and (at + len(other) < len(text) or marks):
            reason = f"{other!r} inside it is a trigger of its own, which is complete first"
            raise UnsupportedConstraint(repr(text), "trigger", reason, "use one of them as the trigger of both tags")


def _words(texts: tuple[str, ...]) -> Node:
    return Literal(texts[0]) if len(texts) == 1 else Words(texts)
