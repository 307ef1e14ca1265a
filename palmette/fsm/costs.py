"""What it takes, at most, to come to an end: tokens from a state, and from whatever one more token may lead to.

The bound on a state is a sum over the items it still has to match, each written with tokens of its own:

    cost(item, rest) = cost(item) + cost(rest)        cost of a set of states = the least of its members'

Texts take the fewest tokens that spell them; a character of a class takes one for each of its bytes, unless a run of
one byte has tokens. From any state some token leads to one whose bound is lower by one, so whoever starts within a
budget always has a way. `peak` bounds the bounds behind one more token, so that a budget above it changes no mask.
Least fixed points over recursive rules follow Knuth, "A generalization of Dijkstra's algorithm" (IPL 6, 1977).
Knows items, states and tokens; nothing of masks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from palmette.fsm.dfa import Product
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.program import NEVER, Kind, Program
from palmette.fsm.vocabulary import Vocabulary

ENDLESS = 1 << 40  # no bound is known, or no word exists

_MAX_STATES = 512  # of an automaton inside an item: with more its peak is not known
_MAX_EXPLORED = 2048  # such states in all
_SLOPES = (0, 1, 2, 4, 8, 16, 32, 64)

# tokens to match it, bytes to match it at least, peak (see `Costs._peak`)
Cost: TypeAlias = tuple[int, int, int]

_NO_WORD: Cost = (ENDLESS, ENDLESS, -ENDLESS)


class Costs:
    """Bounds over the items and states of `nfa`, in tokens of `vocabulary`. Computed as they are asked for."""

    def __init__(self, nfa: Nfa, vocabulary: Vocabulary) -> None:
        self.nfa = nfa
        self.program: Program = nfa.program
        self.vocabulary = vocabulary
        self._items: dict[int, Cost] = {NEVER: _NO_WORD}
        self._spelled: dict[int, list[int]] = {}  # per text: fewest_tokens
        self._states: dict[int, tuple[int, int]] = {DONE: (0, 0)}  # cost, peak
        self._words: dict[tuple[Product, int, bool], bytes | None] = {}
        self._runs = Runs(self.vocabulary.run_lengths)
        self._to_explore = _MAX_EXPLORED
        self._reached: dict[Product, tuple[set[int], int]] = {}  # states looked at together, and their peak
        self._slope = 0  # tokens that a bound may grow by per byte read: recursion opens rules that must be closed
        self._rules: list[Cost] = []
        if self.program.rules:
            self._solve_rules()

    @property
    def growth(self) -> int:
        """What one token may add to a peak by opening recursive rules."""
        return self._slope * self.vocabulary.max_token_len

    def of_states(self, members: tuple[int, ...]) -> tuple[int, int]:
        """(bound on the tokens to the end from this set of NFA states, bound on that bound behind any one token)."""
        cost, peak = ENDLESS, 0
        for member in members:
            c, p = self._states.get(member) or self._of_state(member)
            cost = min(cost, c)
            peak = max(peak, p)
        return cost, min(peak + self.growth, ENDLESS)

    def _of_state(self, state: int) -> tuple[int, int]:
        nfa, known = self.nfa, self._states
        path = []
        while state not in known:
            path.append(state)
            state = nfa.rests[state]
        cost, peak = known[state]
        for above in reversed(path):
            tokens, shortest, inner = self.of_item(nfa.items[above])
            peak = max(inner + cost, peak - self._slope * min(shortest, ENDLESS))
            cost = min(tokens + cost, ENDLESS)
            known[above] = cost, peak
        return cost, peak

    def of_item(self, item: int) -> Cost:
        """The item's own cost."""
        known = self._items
        if item in known:
            return known[item]
        stack = [item]
        while stack:
            self.nfa.budget.tick()
            i = stack[-1]
            if i in known:
                stack.pop()
                continue
            missing = [c for c in self._children(i) if c not in known]
            if missing:
                stack += missing
            else:
                known[i] = self._cost(i)
                stack.pop()
        return known[item]

    # -- items -----------------------------------------------------------------------------------------------------

    def _children(self, item: int) -> tuple[int, ...]:
        kind, arg = self.program.kinds[item], self.program.args[item]
        if kind == Kind.CAT or kind == Kind.ALT:
            return tuple(arg)
        if kind == Kind.REP:
            return (arg[0],)
        return tuple(node for _, _, node in arg[0]) if kind == Kind.BYTES else ()

    def _cost(self, item: int) -> Cost:
        """Cost, fewest bytes and peak.

        peak = the most that the cost of what is left of the item can be after n > 0 of its bytes, less slope * n
        """
        kind, arg, known, slope = self.program.kinds[item], self.program.args[item], self._items, self._slope
        if kind == Kind.TEXT:
            left = self._spelled[item] = fewest_tokens(self.vocabulary, arg)
            # Whatever the slope: a little above what it could be. No token ends where no token can go on from.
            return left[0], len(arg), max(n for n in left[1:] if n < ENDLESS)
        if kind == Kind.BYTES:
            cost = shortest = 0 if arg[1] else ENDLESS
            peak = -ENDLESS
            for low, _, node in arg[0]:
                c, s, p = known[node]
                peak = max(peak, c - slope, p - slope)
                shortest = min(shortest, s + 1)
                if cost:
                    cost = min(cost, 1 + c, self._with_text(low, node))
            return cost, shortest, peak
        if kind == Kind.CAT:
            cost = shortest = 0
            peak = -ENDLESS
            for part in reversed(arg):
                c, s, p = known[part]
                peak = max(p + cost, peak - slope * min(s, ENDLESS))
                cost, shortest = min(cost + c, ENDLESS), min(shortest + s, ENDLESS)
            return cost, shortest, peak
        if kind == Kind.ALT:
            parts = [known[i] for i in arg]
            return min(p[0] for p in parts), min(p[1] for p in parts), max(p[2] for p in parts)
        if kind == Kind.REP:
            part, low, _ = arg
            c, s, p = known[part]
            if low == 0:
                return 0, 0, p
            run = self._run_byte(part)
            if run is None:
                return min(c * low, ENDLESS), min(s * low, ENDLESS), p + min(c * (low - 1), ENDLESS)
            return self._runs.cost(run, low)[0], low, self._runs.cost(run, low - 1)[1] + max(p, 0)
        if kind == Kind.CALL:
            rule: int = arg
            return self._rules[rule]
        if kind == Kind.MACHINE:
            return self._of_machine(*arg)
        return 0, 0, -ENDLESS

    def _with_text(self, byte: int, node: int) -> int:
        """The cost of a byte and then `node` where that begins with a text: one token may span both."""
        kind, arg = self.program.kinds[node], self.program.args[node]
        first = arg[0] if kind == Kind.CAT else node
        if self.program.kinds[first] != Kind.TEXT:
            return ENDLESS
        left = self._spelled[first]
        whole = fewest_tokens(self.vocabulary, bytes([byte]) + self.program.args[first], left)[0]
        return min(whole + self._items[node][0] - left[0], ENDLESS)

    def _run_byte(self, part: int) -> int | None:
        """The byte whose runs have the longest tokens among those that are a whole turn of a repetition."""
        if self.program.kinds[part] != Kind.BYTES or self.program.args[part][1]:
            return None
        best: int | None = None
        longest = 1
        for low, high, node in self.program.args[part][0]:
            if self.program.kinds[node] != Kind.EPS:
                continue
            for byte in range(low, high + 1):
                lengths = self.vocabulary.run_lengths.get(byte, ())
                if lengths and lengths[-1] > longest:
                    best, longest = byte, lengths[-1]
        return best

    def _of_machine(self, machine: Product, start: int, accepting: bool) -> Cost:
        word = self._word(machine, start, accepting=accepting)
        if word is None:
            return _NO_WORD
        peak = machine.ends_within
        if peak is None:
            reached, peak = self._reached.get(machine, (set[int](), 0))
            if start not in reached:
                with self.nfa.budget.outside_step():
                    reached, peak = self._reached[machine] = self._explored(machine, start)
        return fewest_tokens(self.vocabulary, word)[0], len(word), peak

    def _explored(self, machine: Product, start: int) -> tuple[set[int], int]:
        """States that `start` leads to, itself included, and the most that any of them costs: bytes at most."""
        reached = {start}
        queue = [start]
        peak = 0
        for _ in range(_MAX_STATES):
            if not queue or self._to_explore == 0:
                break
            self._to_explore -= 1
            state = queue.pop()
            word = self._word(machine, state, accepting=True)
            peak = max(peak, ENDLESS if word is None else len(word))
            new = {to for _, _, to in machine.segments(state)} - reached
            reached |= new
            queue += new
        return reached, ENDLESS if queue else peak

    def _word(self, machine: Product, start: int, *, accepting: bool) -> bytes | None:
        """The shortest word, the lexicographically first of them: breadth first, low bytes first.

        Its tails are the words of the states on its way, and are remembered as theirs.
        """
        known = self._words
        if (machine, start, accepting) in known:
            return known[machine, start, accepting]
        if accepting and machine.accepts(start):
            known[machine, start, True] = b""
            return b""
        known[machine, start, accepting] = None
        parents: dict[int, tuple[int, int]] = {}  # state -> the state and byte it was first reached by
        queue = deque([start])
        while queue:
            state = queue.popleft()
            for low, _, to in machine.segments(state):
                if to not in parents:
                    parents[to] = state, low
                    if machine.accepts(to):
                        word = b""
                        known[machine, to, True] = word
                        first = True
                        while first or to != start:
                            first = False
                            to, byte = parents[to]
                            word = bytes([byte]) + word
                            known[machine, to, to != start or accepting] = word
                        return word
                    queue.append(to)
        return None

    # -- rules -----------------------------------------------------------------------------------------------------

    def _solve_rules(self) -> None:
        """Costs by iteration from above; then the smallest slope at which the peaks stop growing."""
        bodies = self.program.rules
        recursive: list[bool] = []  # per item: a rule is called in it; children have lower numbers than their parents
        for item, kind in enumerate(self.program.kinds):
            self.nfa.budget.tick()
            recursive.append(kind == Kind.CALL or any(recursive[c] for c in self._children(item)))
        open_items = [item for item, is_open in enumerate(recursive) if is_open]

        def next_rules() -> list[Cost]:
            for item in open_items:
                self._items.pop(item, None)
            return [self.of_item(body) for body in bodies]

        self._rules = [_NO_WORD for _ in bodies]
        while True:
            solved = [(c, s, -ENDLESS) for c, s, _ in next_rules()]
            if solved == self._rules:
                break
            self._rules = solved
        for self._slope in _SLOPES:
            self._rules = solved
            for _ in range(len(bodies) + 1):
                following = next_rules()
                if following == self._rules:
                    return
                self._rules = following
        self._rules = [(c, s, ENDLESS) for c, s, _ in solved]
        next_rules()


class Runs:
    """What runs of one byte cost.

    Args:
        lengths: byte -> lengths of the tokens that are runs of it, ascending, 1 among them.
    """

    def __init__(self, lengths: Mapping[int, tuple[int, ...]]) -> None:
        self._lengths = lengths
        self._filled: dict[int, tuple[list[int], list[int]]] = {}  # per length: fewest tokens, most of any not longer

    def cost(self, byte: int, length: int) -> tuple[int, int]:
        """The fewest tokens of a run of `length`, and the most of any run not longer.

        Of the tokens of a fewest spelling, less than L are shorter than the longest one, L: among L of them some would
        add up to a multiple of L. So from a length on, L more cost one token more, and nothing need be filled in.
        """
        lengths = self._lengths[byte]
        longest = lengths[-1]
        limit = 2 * longest * longest + longest
        turns = max(0, -(-(length - limit) // longest))
        left, worst = self._filled.setdefault(byte, ([0], [0]))
        for n in range(len(left), length - turns * longest + 1):
            left.append(1 + min([left[n - k] for k in lengths if k <= n]))
            worst.append(max(worst[-1], left[-1]))
        return left[length - turns * longest] + turns, worst[length - turns * longest] + turns


def fewest_tokens(vocabulary: Vocabulary, data: bytes, of_tail: Sequence[int] = (0,)) -> list[int]:
    """Per offset, the fewest tokens that spell data[offset:]; 0 at the end. Needs a token for every single byte.

    `of_tail`: the answer for the end of `data`, if it is known.
    """
    children, is_token = vocabulary.children, vocabulary.is_token
    missing = len(data) + 1 - len(of_tail)
    left = [0] * missing + list(of_tail)
    for at in range(missing - 1, -1, -1):
        best = ENDLESS
        node: int | None = 0
        for end in range(at, len(data)):
            assert node is not None
            node = children.get(node * 256 + data[end])
            if node is None:
                break
            if left[end + 1] < best - 1 and is_token[node]:
                best = left[end + 1] + 1
        left[at] = best
    return left
