"""The shortest words of items and states: what it takes, at most, to come to an end from here.

Among the shortest the lexicographically first, so that what remains after its first token is again the shortest word
of the state reached. Sizes follow Knuth, "A generalization of Dijkstra's algorithm" (IPL 6, 1977), by plain iteration.
"""

from __future__ import annotations

from collections import deque

from palmette.fsm.dfa import Machine, Subset
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.program import Kind


class Shortest:
    """Shortest words over the items and states of `nfa`. None = no word."""

    def __init__(self, nfa: Nfa) -> None:
        self.nfa = nfa
        self._items: dict[int, bytes | None] = {}
        self._states: dict[int, bytes | None] = {DONE: b""}
        self._rules: list[bytes | None] = [None] * len(nfa.program.rules)
        changed = bool(self._rules)
        while changed:
            changed = False
            for rule, body in enumerate(nfa.program.rules):
                self._items.clear()
                word = self.of_item(body)
                if _better(word, self._rules[rule]):
                    self._rules[rule] = word
                    changed = True
        self._items.clear()

    def of_dfa_state(self, machine: Subset, state: int) -> bytes:
        """The shortest word accepted from a live state of a (not anchored) subset automaton."""
        best: bytes | None = None
        for member in machine.members[state]:
            word = self.of_state(member)
            if _better(word, best):
                best = word
        assert best is not None, "a live state has a word"
        return best

    def of_state(self, state: int) -> bytes | None:
        path = []
        while state not in self._states:
            path.append(state)
            state = self.nfa.rests[state]
        word = self._states[state]
        for above in reversed(path):
            top = self.of_item(self.nfa.items[above])
            word = None if word is None or top is None else top + word
            self._states[above] = word
        return word

    def of_item(self, item: int) -> bytes | None:
        stack = [item]
        while stack:
            i = stack[-1]
            if i in self._items:
                stack.pop()
                continue
            missing = [c for c in self._children(i) if c not in self._items]
            if missing:
                stack += missing
            else:
                self._items[i] = self._word(i)
                stack.pop()
        return self._items[item]

    def _children(self, item: int) -> tuple[int, ...]:
        kind, arg = self.nfa.program.kinds[item], self.nfa.program.args[item]
        if kind in (Kind.CAT, Kind.ALT):
            return tuple(arg)
        if kind == Kind.REP:
            return (arg[0],)
        return tuple(node for _, _, node in arg[0]) if kind == Kind.BYTES else ()

    def _word(self, item: int) -> bytes | None:
        kind, arg = self.nfa.program.kinds[item], self.nfa.program.args[item]
        best: bytes | None = None
        if kind == Kind.BYTES:
            best = b"" if arg[1] else None
            for low, _, node in arg[0]:
                rest = self._items[node]
                if rest is not None and _better(bytes([low]) + rest, best):
                    best = bytes([low]) + rest
        elif kind == Kind.CAT:
            parts = [self._items[i] for i in arg]
            best = b"".join(p for p in parts if p is not None) if None not in parts else None
        elif kind == Kind.ALT:
            for i in arg:
                if _better(self._items[i], best):
                    best = self._items[i]
        elif kind == Kind.REP:
            once = self._items[arg[0]]
            best = b"" if arg[1] == 0 else None if once is None else once * arg[1]
        elif kind == Kind.CALL:
            best = self._rules[arg]
        elif kind == Kind.MACHINE:
            best = _of_machine(arg[0], arg[1], accepting=arg[2])
        else:
            best = b""
        return best


def _of_machine(machine: Machine, start: int, *, accepting: bool) -> bytes | None:
    """Breadth first, low bytes first: the first word found is the lexicographically first of the shortest."""
    if accepting and machine.accepts(start):
        return b""
    queue = deque([(start, b"")])
    seen: set[int] = set()
    while queue:
        state, word = queue.popleft()
        for low, _, to in machine.segments(state):
            if to not in seen:
                seen.add(to)
                longer = word + bytes([low])
                if machine.accepts(to):
                    return longer
                queue.append((to, longer))
    return None


def _better(word: bytes | None, than: bytes | None) -> bool:
    return word is not None and (than is None or (len(word), word) < (len(than), than))
