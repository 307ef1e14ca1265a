"""From the algebra over code points to items over bytes, and to the automaton of a whole language.

Knows UTF-8 and the JSON writing of characters, and finds out which rules are recursive, which never end, and which
call themselves before reading anything. Runs on an explicit stack.
"""

from __future__ import annotations

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import (
    ANY_TEXT,
    Alt,
    Anchor,
    Anchored,
    And,
    Chars,
    Explicit,
    JsonText,
    Keyed,
    Language,
    Literal,
    Node,
    Not,
    Ref,
    Repeat,
    Seq,
    Words,
)
from palmette.fsm.budget import Budget
from palmette.fsm.charset import CharSet
from palmette.fsm.dfa import Machine, Product, Subset
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.program import EPS, NEVER, NO_LIMIT, Kind, Program
from palmette.fsm.trampoline import Call, run
from palmette.fsm.utf8 import json_text, word_graph

_LONGEST_CHARACTER = 6  # bytes, as JSON may write it


class Lowering:
    """Builds the items of one language. `nfa` unfolds them."""

    def __init__(self, budget: Budget, alphabet: frozenset[int] | None = None) -> None:
        """`alphabet`: the bytes a vocabulary can write on their own; None = all."""
        self.budget = budget
        self.program = Program(alphabet)
        self.nfa = Nfa(self.program, budget)
        self._rules: dict[str, Node] = {}
        self._known: dict[tuple[int, bool], int] = {}  # (id of node, written as JSON) -> item
        self._keep: list[Node] = []  # ids stay valid while the nodes live
        self._chars: dict[tuple[CharSet, bool], int] = {}
        self._open: dict[str, int | None] = {}  # rules being lowered -> their CALL item, once one was needed
        self._done: dict[str, int] = {}
        self._rule_names: list[str] = []

    def language(self, language: Language) -> int:
        """The start item.

        Raises:
            UnsupportedConstraint: no word at all, left recursion, a name without a rule, or over a limit.
        """
        self._rules = dict(language.rules)
        start = run(self._item(language.start, False))
        self._refuse_left_recursion()
        self._find_dead_items()
        if start == NEVER or start in self.nfa.dead_items:
            raise UnsupportedConstraint(
                "", "empty language", "no text satisfies this constraint", "check for a contradiction"
            )
        return start

    def automaton(self, language: Language) -> Subset:
        return self.subset(self.language(language))

    def subset(self, item: int) -> Subset:
        """The automaton of one item."""
        return Subset(self.nfa, self.nfa.state(item, DONE), self.budget)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _item(self, node: Node, json: bool) -> Call[int]:
        item = self._at_once(node, json)
        if item is None:
            item = yield from self._new_item(node, json)
            assert item is not None
            self._known[id(node), json] = item
            self._keep.append(node)
        return item

    def _at_once(self, node: Node, json: bool) -> int | None:
        """The item of a node that was lowered before or has no parts: most have none, and a call costs more than it."""
        if isinstance(node, Literal):
            return self.program.text(_encoded(node.text, json))
        if isinstance(node, Chars):
            return self._characters(node.set, json)
        item = self._known.get((id(node), json))
        if item is None:
            self.budget.tick()
        return item

    def _new_item(self, node: Node, json: bool) -> Call[int]:
        program = self.program
        if isinstance(node, Words):
            return word_graph([_encoded(t, json) for t in node.texts], EPS, program.bytes_node, program.then)
        if isinstance(node, Seq | Alt):
            items = []
            for part in node.parts:
                item = self._at_once(part, json)
                items.append((yield self._item(part, json)) if item is None else item)
            return program.cat(tuple(items)) if isinstance(node, Seq) else program.alt(tuple(items))
        if isinstance(node, Keyed):
            others = self._at_once(node.others, json)
            if others is None:
                others = yield self._item(node.others, json)
            then = yield self._item(node.then, json)
            return program.with_word(others, b'"' + _encoded(node.name, True) + b'"', then)
        if isinstance(node, Repeat):
            inner = yield self._item(node.part, json)
            return program.rep(inner, node.low, NO_LIMIT if node.high is None else node.high)
        if isinstance(node, JsonText):
            written: int | None = self._at_once(node.part, True)
            if written is None:
                written = yield self._item(node.part, True)
            return written
        if isinstance(node, Ref):
            rule: int = yield self._rule(node.name)
            return rule
        if isinstance(node, Anchored):
            start = yield self._item(node.part, json)
            return self._checked([self._subset(start, anchored=True)], [])
        if isinstance(node, And | Not):
            included: list[Machine] = []
            excluded: list[Machine] = []
            for part in node.parts if isinstance(node, And) else (node,):
                inner = part.part if isinstance(part, Not) else part
                machine: Machine
                if isinstance(inner, Explicit):
                    machine = inner.machine
                else:
                    machine = self._subset((yield self._item(inner, json)), anchored=False)
                (excluded if isinstance(part, Not) else included).append(machine)
            if not included:
                included.append(self._subset((yield self._item(ANY_TEXT, json)), anchored=False))
            return self._checked(included, excluded, _all_but_words(node, json))
        assert isinstance(node, Anchor), f"{type(node).__name__} must be resolved before lowering"
        if node.multiline:
            return program.anchor(Kind.LINE_END if node.end else Kind.LINE_START)
        return program.anchor(Kind.END if node.end else Kind.START)

    def _characters(self, chars: CharSet, json: bool) -> int:
        key = (chars, json)
        item = self._chars.get(key)
        if item is None:
            item = self.program.characters(chars, json=json) if chars else NEVER
            self._chars[key] = item
        return item

    def _subset(self, item: int, *, anchored: bool) -> Machine:
        return Subset(self.nfa, self.nfa.state(item, DONE), self.budget, anchored=anchored)

    def _checked(self, included: list[Machine], excluded: list[Machine], ends_within: int | None = None) -> int:
        product = Product(included, excluded, self.budget, ends_within=ends_within)
        return self.program.machine(product, product.start, True) if product.is_live(product.start) else NEVER

    # -- rules -----------------------------------------------------------------------------------------------------

    def _rule(self, name: str) -> Call[int]:
        if name in self._done:
            return self._done[name]
        if name in self._open:  # below itself: recursive
            call = self._open[name]
            if call is None:
                call = self._open[name] = self.program.call(self.program.new_rule())
                self._rule_names.append(name)
            return call
        if name not in self._rules:
            raise UnsupportedConstraint(name, "rule", "no rule has this name")
        self._open[name] = None
        body = yield self._item(self._rules[name], False)
        call = self._open.pop(name)
        if call is not None:
            self.program.rules[self.program.args[call]] = body
        self._done[name] = body if call is None else call
        return self._done[name]

    def _refuse_left_recursion(self) -> None:
        """A rule that can reach itself before a byte is read would unfold for ever."""
        if not self.program.rules:
            return
        nullable = self._nullable_items()
        colour: dict[int, int] = {}  # 1 = on the path, 2 = finished
        for root, name in zip(self.program.rules, self._rule_names, strict=True):
            stack = [(root, iter(self._left_children(root, nullable)))]
            colour.setdefault(root, 1)
            if colour[root] == 2:
                continue
            while stack:
                item, rest = stack[-1]
                for child in rest:
                    if colour.get(child) == 1:
                        reason = "it can call itself before it has read anything (left recursion)"
                        raise UnsupportedConstraint(name, "rule", reason, "write a: b (op b)* for a: a op b | b")
                    if child not in colour:
                        colour[child] = 1
                        stack.append((child, iter(self._left_children(child, nullable))))
                        break
                else:
                    colour[item] = 2
                    stack.pop()

    def _left_children(self, item: int, nullable: list[bool]) -> list[int]:
        """Items that may be on top of the stack before `item` has read a byte."""
        kind, arg = self.program.kinds[item], self.program.args[item]
        if kind == Kind.CALL:
            return [self.program.rules[arg]]
        if kind == Kind.ALT:
            return list(arg)
        if kind == Kind.REP:
            return [arg[0]]
        out: list[int] = []
        if kind == Kind.CAT:
            for part in arg:
                out.append(part)
                if not nullable[part]:
                    break
        return out

    def _nullable_items(self) -> list[bool]:
        nullable = list(self.program.nullable)
        changed = True
        while changed:
            changed = False
            for item, kind in enumerate(self.program.kinds):
                arg = self.program.args[item]
                if nullable[item]:
                    continue
                if (
                    (kind == Kind.CALL and nullable[self.program.rules[arg]])
                    or (kind == Kind.CAT and all(nullable[i] for i in arg))
                    or (kind == Kind.ALT and any(nullable[i] for i in arg))
                    or (kind == Kind.REP and nullable[arg[0]])
                ):
                    nullable[item] = changed = True
        return nullable

    def _find_dead_items(self) -> None:
        """Items without a finite word: only rules that always call themselves make them."""
        if not self.program.rules:
            return
        kinds, args = self.program.kinds, self.program.args
        alive = [kind not in (Kind.CAT, Kind.ALT, Kind.REP, Kind.CALL, Kind.BYTES) for kind in kinds]
        changed = True
        while changed:
            changed = False
            for item, kind in enumerate(kinds):
                if alive[item]:
                    continue
                arg = args[item]
                if (
                    (kind == Kind.BYTES)
                    or (kind == Kind.CAT and all(alive[i] for i in arg))
                    or (kind == Kind.ALT and any(alive[i] for i in arg))
                    or (kind == Kind.REP and (arg[1] == 0 or alive[arg[0]]))
                    or (kind == Kind.CALL and alive[self.program.rules[arg]])
                ):
                    alive[item] = changed = True
        self.nfa.dead_items = {i for i, ok in enumerate(alive) if not ok}


def _all_but_words(node: And | Not, json: bool) -> int | None:
    """Where it is every text but some words: bytes that finish a character and make the text longer than any word."""
    longest = 0
    for part in node.parts if isinstance(node, And) else (node,):
        if isinstance(part, Not) and isinstance(part.part, Words):
            longest = max(longest, *(len(_encoded(t, json)) for t in part.part.texts))
        elif part is not ANY_TEXT:
            return None
    return longest + _LONGEST_CHARACTER


def _encoded(text: str, json: bool) -> bytes:
    return (json_text(text) if json else text).encode()
