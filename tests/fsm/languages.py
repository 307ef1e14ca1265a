"""Helpers shared by the automaton tests."""

from __future__ import annotations

from palmette.fsm.algebra import Language, Node
from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Subset, matches
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.fsm.parse import parse_regex


def automaton(node: Node, rules: dict[str, Node] | None = None, limits: Limits | None = None) -> Subset:
    return Lowering(Budget(limits or Limits())).automaton(Language(node, rules or {}))


def regex_automaton(pattern: str, *, search: bool = False, limits: Limits | None = None) -> Subset:
    return automaton(parse_regex(pattern, limits, search=search), limits=limits)


def accepts(machine: Subset, text: str) -> bool:
    return matches(machine, text.encode("utf-8", "surrogatepass"))
