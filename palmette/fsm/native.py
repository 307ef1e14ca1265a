"""The compiled automaton (automaton.cpp) behind ctypes: an `Unfolding` like `unfolding.Unfolded`, its oracle.

A constraint's items are lowered in Python and handed over once; states, rows and masks appear on the other side. One
call serves one question. A first, quick call keeps the interpreter's lock: it lasts some microseconds, and giving the
lock away could cost a step as many milliseconds while a constraint is compiled beside it. What is not done by then goes
on in a call that gives the lock away.

Knows arrays, addresses and who owns what. The vocabulary's arrays and all masks are numpy's; the automaton and the
vocabulary's handle end with the Python objects here.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterable
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from palmette.fsm.budget import Budget
from palmette.fsm.dfa import DEAD, Machine, Segments
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.program import Kind, Program
from palmette.fsm.slices import Mask, Slice
from palmette.fsm.trie import Trie
from palmette.native import NotBuilt, is_wanted, load_library

_VERSION = 1
_LIMITS = ("dfa_states", "dfa_states_per_step", "members_per_step", "nfa_states")  # code -1 - i
_ASKING_FAILED, _NO_MEMORY, _TOO_LONG = -5, -6, -7
_TEXT, _BYTES, _LISTS = int(Kind.TEXT), int(Kind.BYTES), (int(Kind.CAT), int(Kind.ALT))
_FIRST_BLOCK, _BLOCK = 8, 64  # masks allocated at once
_LONGEST_ARGUMENT = 130  # of an item that was made over there
_Ask: Any = ctypes.CFUNCTYPE(c_int32, c_int32, c_int32)
_IntArray: TypeAlias = "array[int]"


class _Limits(ctypes.Structure):
    _fields_ = [
        ("nfa_states", c_int64),
        ("dfa_states", c_int64),
        ("dfa_states_per_step", c_int64),
        ("members_per_step", c_int64),
    ]


class _Counters(ctypes.Structure):
    _fields_ = [("states", c_int64), ("nfa_states", c_int64), ("nbytes", c_int64), ("masked_states", c_int64)]


class Library:
    """The functions of automaton.cpp: `quick` keeps the interpreter's lock, `slow` gives it away."""

    def __init__(self, slow: ctypes.CDLL) -> None:
        self.slow = slow
        self.quick = ctypes.PyDLL(slow._name, handle=slow._handle)
        for functions in (self.slow, self.quick):
            _declare(functions)


def library() -> Library | None:
    """The compiled functions; None where they are not built or PALMETTE_NATIVE=0 says not to use them."""
    return _loaded() if is_wanted() else None


def why_not_native() -> str | None:
    """What keeps constraints in Python; None if nothing does."""
    try:
        _open()
    except NotBuilt as error:
        return str(error)
    return None


@lru_cache(maxsize=1)
def _loaded() -> Library | None:
    try:
        return Library(_open())
    except NotBuilt:
        return None


def _open() -> ctypes.CDLL:
    functions = load_library(Path(__file__).parent, "_automaton")
    if functions.pm_version() != _VERSION:
        raise NotBuilt("it was built from other sources: install palmette again")
    return functions


class NativeVocabulary:
    """What automata need of a vocabulary, in arrays that live as long as this does."""

    def __init__(
        self,
        library: Library,
        trie: Trie,
        slices: Iterable[Slice],
        *,
        eos_ids: tuple[int, ...],
        mask_words: int,
        max_token_len: int,
    ) -> None:
        self.mask_words = mask_words
        self.max_token_len = max_token_len
        self._library = library
        self._handle: int | None = None
        self._keep: list[npt.NDArray[Any]] = []
        ends = np.array(eos_ids, np.int32)
        self._handle = library.quick.pm_vocabulary(
            mask_words, self._kept(ends), len(ends), *map(self._kept, trie_arrays(trie))
        )
        if not self._handle:
            raise MemoryError
        for part in slices:
            starts, edges, up_to = map(self._kept, slice_arrays(part))
            failed = library.quick.pm_add_slice(
                self._handle,
                starts,
                edges,
                len(part.graph),
                part.max_turns,
                part.max_chars,
                up_to,
                *map(self._kept, trie_arrays(part.others)),
            )
            if failed:
                raise MemoryError

    def __del__(self) -> None:
        if self._handle:
            self._library.quick.pm_free_vocabulary(self._handle)

    @property
    def handle(self) -> int:
        assert self._handle
        return self._handle

    def _kept(self, data: npt.NDArray[Any]) -> int:
        self._keep.append(data)
        return int(data.ctypes.data)


def trie_arrays(trie: Trie) -> tuple[npt.NDArray[Any], ...]:
    """child_start, bytes, ids and several, as automaton.cpp's Trie has them."""
    below = [*(level.offset for level in trie.levels[1:]), trie.num_nodes]
    starts = [lv.child_start[:-1] + offset for lv, offset in zip(trie.levels, below, strict=True)]
    child_start = np.concatenate([*starts, [trie.num_nodes]]).astype(np.int32)
    letters = np.concatenate([level.bytes for level in trie.levels]).astype(np.uint8)
    ids = trie.first_ids.astype(np.int32)
    several: list[int] = []
    for node, equal in trie.shared.items():
        ids[node] = -2 - len(several)
        several += [len(equal), *equal.tolist()]
    return child_start, letters, ids, np.array(several or [0], np.int32)


def slice_arrays(part: Slice) -> tuple[npt.NDArray[Any], ...]:
    """graph_start, graph_edges and up_to, as automaton.cpp's Slice has them."""
    starts = np.cumsum([0, *map(len, part.graph)], dtype=np.int32)
    edges = np.array([edge for edges in part.graph for edge in edges], np.int32).reshape(-1)
    return starts, edges, np.array(part.up_to, np.uint32)


class NativeUnfolding:
    """See `unfolding.Unfolding`."""

    def __init__(self, library: Library, vocabulary: NativeVocabulary, nfa: Nfa, item: int, budget: Budget) -> None:
        """`nfa`: Python's own, which only `Costs` unfolds; `item`: what is to be matched."""
        self.nfa = nfa
        self.budget = budget
        self._library = library
        self._quick = library.quick
        self._vocabulary = vocabulary  # outlives the handle
        self._words = vocabulary.mask_words
        self._machines: list[Machine] = []
        self._failures: list[BaseException] = []
        self._handle: int | None = None
        self._ask: Any = None
        self._hand_over(nfa, budget, vocabulary.max_token_len)
        self._counters = library.quick.pm_counters(self._handle).contents
        self._before = budget.states  # Python's, which are counted there too
        self._out = (c_int32 * 768)()
        self._out_address = ctypes.addressof(self._out)
        self._rows: dict[int, Segments] = {DEAD: ()}
        self._accepts: dict[int, bool] = {DEAD: False}
        self._members: dict[int, tuple[int, ...]] = {}
        self._nfa_states: dict[int, int] = {DONE: DONE}  # over there -> in `nfa`
        self._items: dict[int, int] = {}
        self._masks: dict[int, Mask] = {}
        self._likely_masks: dict[int, Mask] = {}
        self._distinct: list[Mask] = []
        self._prefetched: set[int] = set()
        self._blocks: list[Mask] = []
        self._next, self._block_size = 0, 0
        self._address = 0
        self.start = self._checked(self._quick.pm_start(self._handle, item))

    def __del__(self) -> None:
        if self._handle:
            self._quick.pm_free(self._handle)

    def _hand_over(self, nfa: Nfa, budget: Budget, max_token_len: int) -> None:
        program = nfa.program
        starts, code, self._machines = encoded(program)
        self._num_items = len(program.kinds)
        kinds = bytes(program.kinds)
        rules, dead = array("i", program.rules), array("i", sorted(nfa.dead_items))
        holder: list[int] = []
        if self._machines:
            self._ask = _Ask(_answer(self._quick, holder, self._machines, self._failures))
        self._handle = self._quick.pm_new(
            self._vocabulary.handle,
            _limits(budget.limits),
            budget.states,
            max_token_len if program.largest_count > max_token_len else -1,
            len(kinds),
            kinds,
            starts.buffer_info()[0],
            len(code),
            code.buffer_info()[0],
            len(rules),
            rules.buffer_info()[0],
            len(dead),
            dead.buffer_info()[0],
            ctypes.cast(self._ask, c_void_p) if self._ask else None,
        )
        if not self._handle:
            raise MemoryError
        holder.append(self._handle)

    # -- the automaton ---------------------------------------------------------------------------------------------

    def accepts(self, state: int) -> bool:
        known = self._accepts.get(state)
        if known is None:
            answer = self._checked(self._quick.pm_accepts(self._handle, self.budget.step, state))
            known = self._accepts[state] = bool(answer)
        return known

    def segments(self, state: int) -> Segments:
        row = self._rows.get(state)
        if row is None:
            n = self._checked(self._quick.pm_segments(self._handle, self.budget.step, state, self._out_address))
            flat = self._out[: 3 * n]
            row = self._rows[state] = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        return row

    def read(self, state: int, data: bytes) -> int:
        return self._checked(self._quick.pm_read(self._handle, self.budget.step, state, data, len(data)))

    def forced(self, state: int, most: int) -> tuple[bytes, int]:
        out, end = ctypes.create_string_buffer(most), c_int32()
        n = self._quick.pm_forced(self._handle, self.budget.step, state, out, most, ctypes.byref(end))
        return ctypes.string_at(out, self._checked(n)), end.value

    def members(self, state: int) -> tuple[int, ...]:
        found = self._members.get(state)
        if found is None:
            out = (c_int64 * 3)()
            self._checked(self._quick.pm_members(self._handle, state, out))
            address, num_members, num_told = out
            flat = (c_int32 * (num_members + 3 * num_told)).from_address(address)[:]
            known = self._nfa_states
            for i in range(num_members, len(flat), 3):
                known[flat[i]] = self.nfa.state(self._item(flat[i + 1]), known[flat[i + 2]])
            found = self._members[state] = tuple(sorted(known[m] for m in flat[:num_members]))
        return found

    def _item(self, item: int) -> int:
        """The item of Python's program that is `item` over there."""
        if item < self._num_items:
            return item
        found = self._items.get(item)
        if found is None:
            out = (c_int32 * _LONGEST_ARGUMENT)()
            kind = self._quick.pm_item(self._handle, item, out)
            program = self.nfa.program
            if kind == Kind.TEXT:
                found = program.text(bytes(out[1 : 1 + out[0]]))
            elif kind == Kind.REP:
                found = program.rep(*out[:3])
            else:
                assert kind == Kind.MACHINE, "unfolding makes no other items"
                found = program.machine(self._machines[out[0]], out[1], bool(out[2]))
            self._items[item] = found
        return found

    # -- masks -----------------------------------------------------------------------------------------------------

    @property
    def num_states(self) -> int:
        return int(self._counters.states) + self.budget.states - self._before

    @property
    def num_masks(self) -> int:
        return len(self._distinct)

    @property
    def num_masked_states(self) -> int:
        return int(self._counters.masked_states)

    @property
    def nbytes(self) -> int:
        return len(self._distinct) * self._words * 4 + int(self._counters.nbytes)

    def outgrown(self, states: float, nfa_states: float) -> bool:
        counters = self._counters
        return bool(counters.states + self.budget.states - self._before > states or counters.nfa_states > nfa_states)

    def mask(self, state: int) -> Mask:
        found = self._masks.get(state)
        if found is None:
            found = self._new_mask(state, 0)
            self._masks[state] = found
        return found

    def prefetch(self, state: int, limit: int) -> int:
        step = self.budget.step
        origin = self._checked(self._quick.pm_saturated(self._handle, step, state))
        if origin in self._prefetched:
            return 0
        self._prefetched.add(origin)
        out = (c_int32 * limit)()
        n = self._checked(self._library.slow.pm_likely(self._handle, step, origin, limit, ctypes.addressof(out)))
        made = 0
        for likely in out[:n]:
            if likely not in self._likely_masks:
                self._likely_masks[likely] = self._new_mask(likely, 1)
                made += 1
        return made

    def behind_tokens(self, state: int) -> npt.NDArray[np.int32]:
        out = np.zeros(self._words * 32, np.int32)
        self._checked(self._library.slow.pm_behind_tokens(self._handle, self.budget.step, state, out.ctypes.data))
        return out

    def _new_mask(self, state: int, is_saturated: int) -> Mask:
        distinct = self._distinct
        if len(distinct) * self._words * 4 > self.budget.limits.mask_cache_bytes:
            self._forget_masks()
        if self._next == self._block_size:
            self._new_block()
        step = self.budget.step
        number = self._quick.pm_mask(self._handle, step, state, is_saturated, self._address, 1)
        if number == _TOO_LONG:
            number = self._library.slow.pm_mask(self._handle, step, state, is_saturated, self._address, 0)
        if number < 0:
            raise self._refusal(number)
        if number == len(distinct):
            distinct.append(self._blocks[-1][self._next])
            self._next += 1
            self._address += self._words * 4
        mask: Mask = distinct[number]
        return mask

    def _new_block(self) -> None:
        size = _BLOCK if self._blocks else _FIRST_BLOCK
        block = np.empty((size, self._words), np.uint32)
        self._next, self._block_size, self._address = 0, size, int(block.ctypes.data)
        block.setflags(write=False)
        self._blocks.append(block)

    def _forget_masks(self) -> None:
        self._quick.pm_clear_masks(self._handle)
        for known in (self._masks, self._likely_masks, self._distinct, self._prefetched, self._blocks):
            known.clear()
        self._next = self._block_size = 0

    # -- refusals --------------------------------------------------------------------------------------------------

    def _checked(self, answer: int) -> int:
        if answer < 0:
            raise self._refusal(answer)
        return answer

    def _refusal(self, code: int) -> BaseException:
        if -len(_LIMITS) <= code < 0:
            name = _LIMITS[-1 - code]
            return exceeded(name, getattr(self.budget.limits, name), "the automaton")
        if code == _ASKING_FAILED and self._failures:
            return self._failures.pop()
        return MemoryError() if code == _NO_MEMORY else AssertionError(f"the compiled automaton answered {code}")


def encoded(program: Program) -> tuple[_IntArray, _IntArray, list[Machine]]:
    """Where each item's argument begins, the arguments as automaton.cpp reads them, and the machines they number."""
    starts, code = array("i"), array("i")
    machines: dict[int, int] = {}
    found: list[Machine] = []
    for kind, arg in zip(bytes(program.kinds), program.args, strict=True):
        starts.append(len(code))
        if kind == _TEXT:
            code.append(len(arg))
            code.extend(arg)
        elif kind == _BYTES:
            edges, final = arg
            code.extend((final, len(edges)))
            for edge in edges:
                code.extend(edge)
        elif kind in _LISTS:
            code.append(len(arg))
            code.extend(arg)
        elif kind == Kind.REP:
            code.extend(arg)
        elif kind == Kind.CALL:
            code.append(arg)
        elif kind == Kind.MACHINE:
            machine, state, accepting = arg
            number = machines.setdefault(id(machine), len(found))
            if number == len(found):
                found.append(machine)
            code.extend((number, state, accepting))
    return starts, code, found


def _answer(
    functions: Any, handle: list[int], machines: list[Machine], failures: list[BaseException]
) -> Callable[[int, int], int]:
    """What the other side calls for a row of an automaton that is Python's. It holds nothing that holds it."""

    def ask(number: int, state: int) -> int:
        try:
            machine = machines[number]
            segments = machine.segments(state)
            flat = array("i", chain.from_iterable(segments))
            accepts = machine.accepts(state)
            address = flat.buffer_info()[0]
            return int(functions.pm_give_row(handle[0], number, state, address, len(segments), accepts))
        except BaseException as error:  # noqa: BLE001  it may not pass through the caller; raised again behind it
            failures.append(error)
            return 1

    return ask


def _limits(limits: Limits) -> _Limits:
    return _Limits(limits.nfa_states, limits.dfa_states, limits.dfa_states_per_step, limits.members_per_step)


def _declare(functions: Any) -> None:
    handle, pointer = c_void_p, c_void_p
    state, count, step = c_int32, c_int32, c_int64
    trie = (pointer, pointer, pointer, pointer)
    signatures: dict[str, tuple[Any, ...]] = {  # result, then arguments
        "pm_version": (c_int32,),
        "pm_vocabulary": (handle, count, pointer, count, *trie),
        "pm_add_slice": (c_int32, handle, pointer, pointer, count, count, count, pointer, *trie),
        "pm_free_vocabulary": (None, handle),
        "pm_new": (handle, handle, POINTER(_Limits), c_int64, count, count, c_char_p, pointer, count, pointer, count,
                   pointer, count, pointer, c_void_p),
        "pm_free": (None, handle),
        "pm_counters": (POINTER(_Counters), handle),
        "pm_start": (state, handle, c_int32),
        "pm_give_row": (c_int32, handle, c_int32, state, pointer, count, c_int32),
        "pm_accepts": (c_int32, handle, step, state),
        "pm_read": (state, handle, step, state, c_char_p, c_int64),
        "pm_segments": (count, handle, step, state, pointer),
        "pm_forced": (count, handle, step, state, pointer, count, pointer),
        "pm_saturated": (state, handle, step, state),
        "pm_mask": (c_int32, handle, step, state, c_int32, pointer, c_int32),
        "pm_clear_masks": (None, handle),
        "pm_behind_tokens": (c_int32, handle, step, state, pointer),
        "pm_likely": (count, handle, step, state, count, pointer),
        "pm_members": (c_int32, handle, state, pointer),
        "pm_item": (c_int32, handle, c_int32, pointer),
    }  # fmt: skip
    for name, (result, *arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
