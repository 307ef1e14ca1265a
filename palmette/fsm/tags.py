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
    groups: dict[tuple[Part, ...], list[Node]] = {}
    for branch in branches:
        trigger, rest = _cut(branch)
        groups.setdefault(trigger, []).append(seq(parts_node(rest), branch.rest))
    plain = tuple(str(t[0]) for t in groups if isinstance(t[-1], str))
    free: Node = Not(seq(ANY_TEXT, _words(plain), ANY_TEXT)) if plain else ANY_TEXT
    tags: list[Node] = []
    for trigger, rests in groups.items():
        _check_reachable(trigger, plain)
        tags.append(seq(_free_up_to(trigger, plain, free), alt(rests)))
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


def _free_up_to(trigger: tuple[Part, ...], plain: tuple[str, ...], free: Node) -> Node:
    """Texts that end with `trigger` and complete no other one before that.

    Where no end of a trigger is a beginning of this one, nothing can be complete across its first character, so it
    simply follows free text; that costs one automaton for all such triggers, where the others cost one each.
    """
    head = trigger[0] if isinstance(trigger[0], str) else ""
    inside = len(head) - isinstance(trigger[-1], str)  # characters of it behind which another would be complete first
    if not any(t.endswith(head[:n]) for t in plain for n in range(1, min(inside, len(t) - 1) + 1)):
        return seq(free, parts_node(trigger))
    if len(trigger) == 1:
        return And((seq(ANY_TEXT, Literal(head)), Not(seq(ANY_TEXT, _words(plain), ANY_CHAR, ANY_TEXT))))
    return seq(And((seq(ANY_TEXT, Literal(head)), free)), parts_node(trigger[1:]))


def _check_reachable(trigger: tuple[Part, ...], plain: tuple[str, ...]) -> None:
    text = trigger[0]
    if not isinstance(text, str):
        return
    for other in plain:
        at = text.find(other)
        if at >= 0 and (at + len(other) < len(text) or len(trigger) > 1):
            reason = f"{other!r} inside it is a trigger of its own, which is complete first"
            raise UnsupportedConstraint(repr(text), "trigger", reason, "use one of them as the trigger of both tags")


def _words(texts: tuple[str, ...]) -> Node:
    return Literal(texts[0]) if len(texts) == 1 else Words(texts)
