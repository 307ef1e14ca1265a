"""Specifications made of others as one language.

Knows how the parts are put together, not what they are. Their rules are renamed where names meet: a rule of the second
schema is "2:" and its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import (
    ANY_TEXT,
    Alt,
    Anchored,
    And,
    Explicit,
    JsonText,
    Keyed,
    Language,
    Node,
    Not,
    Ref,
    Repeat,
    Seq,
    alt,
    repeat,
    seq,
)
from palmette.fsm.basic import basic_language
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.tags import Branch, tagged, until
from palmette.fsm.template_text import Part, Specials, parts_node, template_parts
from palmette.fsm.trampoline import Call, run
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
    Spec,
    Tag,
    Tagged,
)


@dataclass(frozen=True, slots=True, eq=False)
class Reasoning:
    """The part of a text that a thinking budget bounds: what may precede anything."""

    language: Language  # the reasoning, its marks included, and then any bytes
    budget: int  # tokens between the marks


class Composer:
    """Builds the language of one specification. Specs are at most `MAX_SPEC_DEPTH` deep, so it may recurse."""

    def __init__(self, limits: Limits, clock: Callable[[], float] | None, special: Specials) -> None:
        self.limits = limits
        self._clock = clock
        self._deadline = clock() + limits.compile_seconds if clock else 0.0
        self._special = special
        self._rules: dict[str, Node] = {}
        self._known: dict[Spec, Node] = {}
        self._parts = 0
        self._unenforced: dict[str, None] = {}
        self._size = 0  # bytes of template text

    def language(self, spec: Spec) -> tuple[Language, tuple[str, ...]]:
        """
        Raises:
            UnsupportedConstraint: `path` begins with the place of the part inside `spec`.
        """
        bounded = _bounded(spec)
        if bounded is not None:  # what bounds its tokens is no matter of the language
            prefix, reasoned = bounded
            node = seq(self._plain(prefix, "prefix"), self._reasoned(reasoned, ""))
        else:
            node = self._node(spec, "")
        return Language(node, self._rules), tuple(self._unenforced)

    def reasoning(self, spec: Spec) -> Reasoning | None:
        """What the thinking budget of `spec` bounds; None without one."""
        bounded = _bounded(spec)
        if bounded is None:
            return None
        prefix, reasoned = bounded
        head = seq(self._plain(prefix, "prefix"), self._reasoning(reasoned, ""), And((Explicit(_AnyBytes()),)))
        assert reasoned.budget is not None, "that is what makes it bounded"
        return Reasoning(Language(head, {}), reasoned.budget)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _node(self, spec: Spec | None, place: str) -> Node:
        if spec is None:
            return ANY_TEXT
        known = self._known.get(spec)
        if known is None:
            known = self._known[spec] = self._new_node(spec, place)
        return known

    def _new_node(self, spec: Spec, place: str) -> Node:
        if isinstance(spec, Regex | Choices | JsonSchema | Grammar):
            return self._basic(spec, place)
        if isinstance(spec, Concat | OneOf):
            nodes = []
            for i, part in enumerate(spec.parts):
                here = _at(place, f"parts[{i}]")
                nodes.append(self._template(part, here) if isinstance(part, str) else self._node(part, here))
            return seq(*nodes) if isinstance(spec, Concat) else alt(nodes)
        if isinstance(spec, Repeated):
            return self._repeated(spec, place)
        if isinstance(spec, Tagged):
            return self._tagged(spec, place)
        if isinstance(spec, Healed):
            return seq(self._plain(spec.prefix, _at(place, "prefix")), self._node(spec.content, _at(place, "content")))
        if spec.budget is not None:
            reason = "with a budget it must stand alone, or right behind the prefix of a Healed"
            raise UnsupportedConstraint(place, "Reasoned", reason, "leave the budget out, or put it around the whole")
        return self._reasoned(spec, place)

    def _basic(self, spec: Regex | Choices | JsonSchema | Grammar, place: str) -> Node:
        if self._clock is not None and self._clock() > self._deadline:
            raise exceeded("compile_seconds", self.limits.compile_seconds, place)
        try:
            language, unenforced = basic_language(spec, self.limits, self._clock)
        except UnsupportedConstraint as error:
            path = place + error.path if error.path[:1] in ("", "/") or not place else f"{place}: {error.path}"
            raise UnsupportedConstraint(path, error.keyword, error.reason, error.hint) from None
        self._unenforced.update(dict.fromkeys(place + u for u in unenforced))
        self._parts += 1
        if not self._rules.keys().isdisjoint(language.rules):
            language = renamed(language, f"{self._parts}:")
        self._rules.update(language.rules)
        return language.start

    def _repeated(self, spec: Repeated, place: str) -> Node:
        for bound in (spec.low, spec.high or 0):
            if bound > self.limits.repeat:
                raise exceeded("repeat", self.limits.repeat, place, bound)
        part = self._node(spec.part, _at(place, "part"))
        if not spec.separator:
            return repeat(part, spec.low, spec.high)
        separator = self._template(spec.separator, _at(place, "separator"))
        more = repeat(seq(separator, part), max(spec.low - 1, 0), None if spec.high is None else spec.high - 1)
        return repeat(seq(part, more), 1 if spec.low else 0, 1)

    def _tagged(self, spec: Tagged, place: str) -> Node:
        if len(spec.tags) > self.limits.enum_values:
            raise exceeded("enum_values", self.limits.enum_values, place, f"{len(spec.tags)} tags")
        branches = []
        for i, tag in enumerate(spec.tags):
            here = _at(place, f"tags[{i}]")
            begin = self._parts_of(tag.begin, _at(here, "begin"))
            shortest = min((t for t in spec.triggers if tag.begin.startswith(t)), key=len, default=tag.begin)
            branches.append(Branch(begin, len(shortest), self._inside(tag, here)))
        try:
            return tagged(branches, at_least_one=spec.at_least_one, stop_after_first=spec.stop_after_first)
        except UnsupportedConstraint as error:
            raise UnsupportedConstraint(_at(place, error.path), error.keyword, error.reason, error.hint) from None

    def _inside(self, tag: Tag, place: str) -> Node:
        """What follows the tag's begin, its end included."""
        end = self._parts_of(tag.end, _at(place, "end"))
        if tag.content is None and end:
            return until(end)
        return seq(self._node(tag.content, _at(place, "content")), parts_node(end))

    def _reasoned(self, spec: Reasoned, place: str) -> Node:
        return seq(self._reasoning(spec, place), self._node(spec.content, _at(place, "content")))

    def _reasoning(self, spec: Reasoned, place: str) -> Node:
        end = until(self._parts_of(spec.end, _at(place, "end")))
        return seq(self._template(spec.begin, _at(place, "begin")), end)

    # -- text ------------------------------------------------------------------------------------------------------

    def _template(self, text: str, place: str) -> Node:
        return parts_node(self._parts_of(text, place))

    def _parts_of(self, text: str, place: str) -> tuple[Part, ...]:
        self._count(text, place)
        return template_parts(text, self._special, place)

    def _plain(self, text: str, place: str) -> Node:
        self._count(text, place)
        return parts_node(template_parts(text, {}, place))

    def _count(self, text: str, place: str) -> None:
        self._size += len(text.encode("utf-8", "surrogatepass"))
        if self._size > self.limits.spec_bytes:
            raise exceeded("spec_bytes", self.limits.spec_bytes, place, f"{self._size} bytes")


def renamed(language: Language, prefix: str) -> Language:
    """The same language, the names of its rules behind `prefix`."""
    done: dict[int, Node] = {}
    rules = {prefix + name: run(_renamed(node, prefix, done)) for name, node in language.rules.items()}
    return Language(run(_renamed(language.start, prefix, done)), rules)


def _renamed(node: Node, prefix: str, done: dict[int, Node]) -> Call[Node]:
    """A copy of `node`; parts that are shared stay shared, and parts without rules are not copied."""
    known = done.get(id(node))
    if known is not None:
        return known
    new: Any = node
    if isinstance(node, Ref):
        new = Ref(prefix + node.name)
    elif isinstance(node, Seq | Alt | And):
        parts = []
        for part in node.parts:
            parts.append((yield _renamed(part, prefix, done)))
        if any(a is not b for a, b in zip(parts, node.parts, strict=True)):
            new = type(node)(tuple(parts))
    elif isinstance(node, Repeat):
        part = yield _renamed(node.part, prefix, done)
        new = node if part is node.part else Repeat(part, node.low, node.high)
    elif isinstance(node, Not | Anchored | JsonText):
        part = yield _renamed(node.part, prefix, done)
        new = node if part is node.part else type(node)(part)
    elif isinstance(node, Keyed):
        then = yield _renamed(node.then, prefix, done)
        others = yield _renamed(node.others, prefix, done)
        new = node if then is node.then and others is node.others else Keyed(node.name, then, others)
    result: Node = new
    done[id(node)] = result
    return result


def _bounded(spec: Spec) -> tuple[str, Reasoned] | None:
    """The text before, and the Reasoned whose tokens are bounded."""
    prefix = ""
    while isinstance(spec, Healed) and spec.content is not None:
        prefix, spec = prefix + spec.prefix, spec.content
    return (prefix, spec) if isinstance(spec, Reasoned) and spec.budget is not None else None


def _at(place: str, inner: str) -> str:
    return f"{place}.{inner}" if place and inner else place or inner


class _AnyBytes:
    """Accepts everything, text or not."""

    start = 1

    def accepts(self, state: int) -> bool:
        return state == 1

    def segments(self, state: int) -> tuple[tuple[int, int, int], ...]:
        return ((0, 255, 1),) if state == 1 else ()
