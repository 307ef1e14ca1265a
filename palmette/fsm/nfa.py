"""The byte NFA, unfolded on demand: a state is a stack of items still to be matched (a partial derivative).

    state = (item, rest)    rest = another state;  state 0 = nothing left to match

Expanding a state replaces its top item until bytes are on top (Antimirov, "Partial derivatives of regular expressions
and finite automaton constructions", TCS 155, 1996, with the continuation kept as a list). Counted repeats and recursive
rules therefore cost nothing before they are reached. No state is a dead end: empty items are never pushed.
"""

from __future__ import annotations

from typing import TypeAlias

from palmette.fsm.budget import Budget
from palmette.fsm.limits import exceeded
from palmette.fsm.program import FOREVER, NO_LIMIT, RET, Kind, Program

Edge: TypeAlias = tuple[int, int, int]  # first byte, last byte, state

DONE = 0
# What stands to the left of a state, for anchors.
AFTER_OTHER, AT_START, AFTER_NEWLINE = 0, 1, 2
# What an assertion that was passed allows to come next.
_ANY_NEXT, _END_NEXT, _LINE_END_NEXT = 0, 1, 2
_NEWLINE = 10


class Nfa:
    """States and their expansions.

    With `saturate` = n, counts above n count no further: the words of up to n bytes from a state, and which of them can
    go on, stay the same, while the thousands of states of a large count become one. Masks are computed on such an NFA,
    with the length of the longest token.
    """

    def __init__(self, program: Program, budget: Budget, *, saturate: int | None = None) -> None:
        self.program = program
        self.budget = budget
        self.saturate = saturate
        self.dead_items: set[int] = set()  # items without words: rules that never end
        self.items: list[int] = [0]
        self.rests: list[int] = [0]
        self._ids: dict[tuple[int, int], int] = {}
        self._translations: dict[tuple[Nfa, int], int] = {}
        self._expanded: dict[tuple[int, int], tuple[tuple[Edge, ...], bool]] = {}

    def state(self, item: int, rest: int) -> int:
        if item == 0:
            return rest
        key = (item, rest)
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self.items)
            if found > self.budget.limits.nfa_states:
                raise exceeded("nfa_states", self.budget.limits.nfa_states, "the automaton")
            self.items.append(item)
            self.rests.append(rest)
        return found

    def expand(self, state: int, context: int = AFTER_OTHER) -> tuple[tuple[Edge, ...], bool]:
        """The state's outgoing byte ranges (they may overlap), and whether the match may end here."""
        key = (state, context)
        found = self._expanded.get(key)
        if found is None:
            found = self._expanded[key] = self._expand(state, context)
        return found

    def translated(self, other: Nfa, state: int) -> int:
        """The state of this NFA that stands for `state` of `other`, which has the same program."""
        stack = []
        while state != DONE and (other, state) not in self._translations:
            stack.append(state)
            state = other.rests[state]
        result = DONE if state == DONE else self._translations[other, state]
        for above in reversed(stack):
            item = other.items[above]
            if self.program.kinds[item] == Kind.REP:
                part, low, high = self.program.args[item]
                item = self.program.rep(part, *self._saturated(low, high))
            result = self._translations[other, above] = self.state(item, result)
        return result

    def _saturated(self, low: int, high: int) -> tuple[int, int]:
        if self.saturate is not None:
            high = NO_LIMIT if high > self.saturate else high
            low = FOREVER if low > self.saturate else low
        return low, high

    def _expand(self, first: int, context: int) -> tuple[tuple[Edge, ...], bool]:
        program, kinds, args = self.program, self.program.kinds, self.program.args
        edges: list[Edge] = []
        accepts = False
        stack = [(first, _ANY_NEXT)]
        seen = {(first, _ANY_NEXT)}
        while stack:
            state, following = stack.pop()
            if state == DONE:
                accepts = True
                continue
            item, rest = self.items[state], self.rests[state]
            if item in self.dead_items:
                continue
            kind, arg = kinds[item], args[item]
            pushed: list[int] = []
            after = following
            if kind == Kind.BYTES:
                if following != _END_NEXT:
                    for low, high, node in arg[0]:
                        if following == _ANY_NEXT:
                            edges.append((low, high, self.state(node, rest)))
                        elif low <= _NEWLINE <= high:
                            edges.append((_NEWLINE, _NEWLINE, self.state(node, rest)))
                if arg[1]:
                    pushed.append(rest)
            elif kind == Kind.TEXT:
                if following == _ANY_NEXT or (following == _LINE_END_NEXT and arg[0] == _NEWLINE):
                    edges.append((arg[0], arg[0], self.state(program.text(arg[1:]), rest)))
            elif kind == Kind.CAT:
                top = rest
                for part in reversed(arg):
                    top = self.state(part, top)
                pushed.append(top)
            elif kind == Kind.ALT:
                pushed += [self.state(part, rest) for part in arg]
            elif kind == Kind.REP:
                part, low, high = arg
                if low == 0:
                    pushed.append(rest)
                more = low if low == FOREVER else max(low - 1, 0), high if high == NO_LIMIT else high - 1
                pushed.append(self.state(part, self.state(program.rep(part, *self._saturated(*more)), rest)))
            elif kind == Kind.CALL:
                frame = rest if self.items[rest] == RET else self.state(RET, rest)  # a tail call keeps its frame
                pushed.append(self.state(program.rules[arg], frame))
            elif kind in (Kind.EPS, Kind.RET):
                pushed.append(rest)
            elif kind == Kind.MACHINE:
                machine, at, accepting = arg
                if following == _ANY_NEXT:
                    for low, high, to in machine.segments(at):
                        edges.append((low, high, self.state(program.machine(machine, to, True), rest)))
                if accepting and machine.accepts(at):
                    pushed.append(rest)
            elif kind == Kind.START or kind == Kind.LINE_START:
                if context == AT_START or (kind == Kind.LINE_START and context == AFTER_NEWLINE):
                    pushed.append(rest)
            else:
                after = _END_NEXT if kind == Kind.END or following == _END_NEXT else _LINE_END_NEXT
                pushed.append(rest)
            for target in pushed:
                entry = (target, after)
                if entry not in seen:
                    seen.add(entry)
                    stack.append(entry)
        return tuple(edges), accepts
