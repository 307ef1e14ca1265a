"""From a flattened schema to a language: one rule per conjunction of schemas, made from a work list.

A rule's name stands for the conjunction, so a schema that refers to itself becomes a recursive rule. Knows which kinds
of values a conjunction allows; strings, objects and arrays are written by the modules of those names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import NEVER, Language, Literal, Node, Ref, alt
from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Machine
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.schema.arrays import array_node
from palmette.fsm.schema.disjoint import is_impossible
from palmette.fsm.schema.enums import allows, excludes
from palmette.fsm.schema.flat import Conjunction, Flat, Group, flatten
from palmette.fsm.schema.numeric import number_node
from palmette.fsm.schema.objects import object_node
from palmette.fsm.schema.source import Source
from palmette.fsm.schema.strings import string_node
from palmette.fsm.schema.text import Punctuation, kind_of, value_node
from palmette.specs import SchemaOptions

MAX_ALTERNATIVES = 4096  # combinations of branches of one value


def compile_schema(
    text: str, options: SchemaOptions, limits: Limits, clock: Callable[[], float] | None = None
) -> tuple[Language, tuple[str, ...]]:
    """The language of a schema given as JSON, and the keywords it leaves unenforced.

    Raises:
        UnsupportedConstraint: `path` is a JSON pointer into the schema.
    """
    return Builder(Source(text, limits), options, limits, clock).language()


class Builder:
    """Compiles one document. `rule_for` is how the modules for single kinds refer to other schemas."""

    def __init__(
        self, source: Source, options: SchemaOptions, limits: Limits, clock: Callable[[], float] | None
    ) -> None:
        self.source = source
        self.options = options
        self.limits = limits
        self.budget = Budget(limits, clock)
        self.punctuation = Punctuation(options)
        self.unenforced: dict[str, None] = {}
        self.patterns: dict[str, Node] = {}
        self.pattern_machines: dict[str, Machine | None] = {}
        self.number_nodes: dict[tuple[Any, ...], Node] = {}
        self._rules: dict[str, Node] = {}
        self._names: dict[Conjunction, str] = {}
        self._waiting: list[Conjunction] = []
        self._flats: dict[Conjunction, Flat] = {}

    def language(self) -> tuple[Language, tuple[str, ...]]:
        start = self.rule_for((("", ()),))
        while self._waiting:
            self.budget.tick()
            conjunction = self._waiting.pop()
            self._rules[self._names[conjunction]] = self._node(conjunction)
        return Language(start, self._rules), tuple(self.source.at_every_twin(self.unenforced))

    def rule_for(self, conjunction: Conjunction) -> Node:
        """A reference to the language of values that satisfy every element of `conjunction`."""
        conjunction = tuple(sorted(set(conjunction)))
        name = self._names.get(conjunction)
        if name is None:
            parts = ["#" + place + (f" without {','.join(gone)}" if gone else "") for place, gone in conjunction]
            name = self._names[conjunction] = " & ".join(parts) or "any value"
            self._waiting.append(conjunction)
        return Ref(name)

    def flat(self, conjunction: Conjunction) -> Flat:
        found = self._flats.get(conjunction)
        if found is None:
            self.budget.tick()
            found = self._flats[conjunction] = flatten(conjunction, self.source, strict=self.options.strict)
            self.unenforced.update(dict.fromkeys(found.unenforced))
        return found

    # -- one value -------------------------------------------------------------------------------------------------

    def _node(self, conjunction: Conjunction) -> Node:
        flat = self.flat(conjunction)
        if flat.never:
            return NEVER
        if flat.groups:
            return self._choose(flat, flat.groups[0])
        if flat.enums:
            return self._enumerated(flat)
        kinds = []
        if flat.excluded:
            self._check_excluded(flat)
        for kind in sorted(flat.types):
            kinds.append(self._of_kind(kind, flat))
        return alt(kinds)

    def _choose(self, flat: Flat, group: Group) -> Node:
        if not group.branches:
            if group.keyword == "~any":
                return NEVER
            raise UnsupportedConstraint(group.place, group.keyword, "it must not be an empty list")
        branches = [flat.without(group, b) for b in group.branches]
        if group.exclusive:
            branches = self._exclusive(flat, group, branches)
        if len(self._names) > MAX_ALTERNATIVES + self.source.size // 8:
            reason = f"the alternatives combine to more than {MAX_ALTERNATIVES} schemas"
            raise UnsupportedConstraint(group.place, group.keyword, reason, "combine fewer of them")
        return alt([self.rule_for(b) for b in branches if not self.flat(b).never])

    def _exclusive(self, flat: Flat, group: Group, branches: list[Conjunction]) -> list[Conjunction]:
        """`branches` so that only one of them can hold: each that may overlap others is joined by their negations."""
        overlapping: list[list[int]] = [[] for _ in branches]
        for i, one in enumerate(branches):
            for j in range(i):
                self.budget.tick()
                if not is_impossible(self, tuple(sorted({*one, *branches[j]}))):
                    overlapping[i].append(j)
                    overlapping[j].append(i)
        out: list[Conjunction] = []
        for i, others in enumerate(overlapping):
            branch = group.branches[i]
            if others:
                names = [self.source.add(group.branches[j], "excluded", {"~not": group.branches[j]}) for j in others]
                branch = self.source.add(branch, "alone", {"~all": [branch, *names]})
            conjunction = flat.without(group, branch)
            try:
                self.flat(conjunction)
            except UnsupportedConstraint as error:
                if not others or self.options.strict:
                    if not others:
                        raise
                    reason = f"branches {others[0]} and {i} are not provably disjoint, so both may hold"
                    hint = (
                        f"use anyOf, or tell them apart by a required const property; {error.keyword}: {error.reason}"
                    )
                    raise UnsupportedConstraint(group.place, "oneOf", reason, hint) from None
                self.unenforced[f"{group.place} oneOf"] = None
                conjunction = branches[i]
            out.append(conjunction)
        return out

    def _of_kind(self, kind: str, flat: Flat) -> Node:
        if kind == "null":
            return NEVER if excludes(flat, None) else Literal("null")
        if kind == "boolean":
            return alt([Literal(t) for t, v in (("true", True), ("false", False)) if not excludes(flat, v)])
        if kind == "number":
            return number_node(self, flat)
        if kind == "string":
            return string_node(self, flat)
        return array_node(self, flat) if kind == "array" else object_node(self, flat)

    def _enumerated(self, flat: Flat) -> Node:
        place, values = flat.enums[0]
        if len(values) > self.limits.enum_values:
            raise exceeded("enum_values", self.limits.enum_values, place, f"{len(values)} values")
        kept = []
        for value in values:
            self.budget.tick()
            if allows(self, flat, value):
                kept.append(value)
        return alt([value_node(v, self.punctuation) for v in kept])

    def _check_excluded(self, flat: Flat) -> None:
        for place, values in flat.excluded:
            for value in values:
                kind = kind_of(value)
                if kind in flat.types and kind in ("array", "object"):
                    reason = f"one {kind} cannot be left out of all others"
                    raise UnsupportedConstraint(place, "not enum", reason, "state what is allowed instead")
