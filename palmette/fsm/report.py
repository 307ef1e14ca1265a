"""What `palmette fsm` says about a constraint: its states, chains, forced text and masks, as data and as text.

Knows a compiled constraint and, where there is one, a tokenizer. Explores a bounded part of the automaton, so numbers
of states are those explored.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from palmette.errors import UnsupportedConstraint
from palmette.fsm.byte_labels import chain_label
from palmette.fsm.compile import Constraint
from palmette.fsm.compile import compile as compile_constraint
from palmette.fsm.compressed import Graph, explore
from palmette.fsm.cursor import Encode
from palmette.fsm.dfa import DEAD, step
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Spec

MAX_CHAINS = 8  # different ones that are shown, the longest
MAX_SHOWN = 70  # characters of a text that are shown


@dataclass(frozen=True, slots=True)
class Report:
    """Times are in seconds; texts are UTF-8, with \\xHH for half a character."""

    states: int  # explored
    complete: bool  # were these all?
    transitions: int
    drawn_states: int  # of the compressed automaton
    chains: tuple[str, ...]  # longest first
    chain_bytes: int  # bytes in all of them
    forced_text: str  # at the start
    forced_tokens: tuple[str, ...]  # at the start; none without a tokenizer
    shortest_text: str
    forced_in_shortest: tuple[str, ...]  # runs of it that are forced
    forced_share: float  # of its bytes
    cost_to_accept: int  # an upper bound on tokens, end-of-sequence included
    vocabulary: int  # tokens
    distinct_masks: int  # of the explored states
    allowed: tuple[int, float, int]  # tokens that a mask allows: fewest, median, most
    compile_seconds: float
    first_mask_seconds: float
    slowest_mask_seconds: float
    unenforced: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    spec: Spec, vocabulary: Vocabulary, *, limit: int, clock: Callable[[], float], encode: Encode | None = None
) -> tuple[Report, Graph]:
    """Compile, look at up to `limit` states, and time it with `clock` (seconds).

    Raises:
        UnsupportedConstraint: it is refused, or a state crosses a limit.
    """
    _ = vocabulary.slices, vocabulary.children  # made once per vocabulary, so not counted
    start = clock()
    constraint = compile_constraint(spec, vocabulary, clock=clock)
    compiled = clock()
    constraint.matcher().mask()
    first_mask = clock() - compiled
    automaton = constraint.automaton
    graph = explore(automaton, limit)
    slowest, masks = first_mask, []
    for state in graph.states:
        automaton.budget.begin_step()
        before = clock()
        masks.append(automaton.mask(state))
        slowest = max(slowest, clock() - before)
    counts = [int(np.bitwise_count(mask).sum()) for mask in masks]
    word = _shortest_text(spec, vocabulary)
    runs = _forced_runs(constraint, word)
    matcher = constraint.matcher()
    tokens = matcher.forced_tokens(encode) if encode else []
    chains = sorted((e.chain for e in graph.chains), key=lambda chain: (-len(chain), chain))
    report = Report(
        states=len(graph.states),
        complete=graph.complete,
        transitions=graph.num_transitions,
        drawn_states=len(graph.nodes),
        chains=tuple(map(chain_label, chains)),
        chain_bytes=sum(map(len, chains)),
        forced_text=_text(matcher.forced_bytes()),
        forced_tokens=tuple(_text(constraint.vocabulary.tokens[t]) for t in tokens),
        shortest_text=_text(word),
        forced_in_shortest=tuple(map(_text, runs)),
        forced_share=sum(map(len, runs)) / len(word) if word else 0.0,
        cost_to_accept=matcher.cost_to_accept(),
        vocabulary=len(constraint.vocabulary),
        distinct_masks=len({mask.tobytes() for mask in masks}),
        allowed=(min(counts), float(statistics.median(counts)), max(counts)),
        compile_seconds=compiled - start,
        first_mask_seconds=first_mask,
        slowest_mask_seconds=slowest,
        unenforced=constraint.unenforced,
    )
    return report, graph


def to_text(report: Report) -> str:
    """The report as lines for people."""
    r = report
    fewest, median, most = r.allowed
    kinds = Counter(r.chains)
    shown = [_quoted(label) + (f" x{n}" if n > 1 else "") for label, n in list(kinds.items())[:MAX_CHAINS]]
    more = f", and {len(kinds) - len(shown)} more" if len(kinds) > len(shown) else ""
    rows = [
        ("states", f"{r.states} explored{'' if r.complete else ', more beyond them'}; {r.transitions} transitions"),
        ("compressed", f"{r.drawn_states} states, {len(r.chains)} chains of {r.chain_bytes} bytes"),
        ("chains", ("  ".join(shown) or "none") + more),
        ("forced at first", _quoted(r.forced_text) + ("" if not r.forced_tokens else f" as {_tokens(r)}")),
        ("shortest text", _quoted(r.shortest_text)),
        ("forced in it", f"{100 * r.forced_share:.0f} %: " + ("  ".join(map(_quoted, r.forced_in_shortest)) or "none")),
        ("cost to accept", f"at most {r.cost_to_accept} tokens, end-of-sequence included"),
        ("masks", f"{r.distinct_masks} distinct; {fewest} to {most} tokens allowed, median {median:g}"),
        ("mask density", f"{_percent(fewest, r)} to {_percent(most, r)} of {r.vocabulary} tokens"),
        ("times", f"compile {_ms(r.compile_seconds)}, first mask {_ms(r.first_mask_seconds)}, slowest mask "
         f"{_ms(r.slowest_mask_seconds)}"),
        ("not enforced", "; ".join(r.unenforced) or "nothing is left out"),
    ]  # fmt: skip
    return "\n".join(f"{name:<16} {value}" for name, value in rows)


def refusal_text(error: UnsupportedConstraint) -> str:
    """A refusal as lines: where, what, why, and the way out."""
    rows = [("at", error.path or "the whole"), ("keyword", error.keyword), ("reason", error.reason)]
    if error.hint:
        rows.append(("hint", error.hint))
    return "refused\n" + "\n".join(f"  {name:<8} {value}" for name, value in rows)


def _shortest_text(spec: Spec, vocabulary: Vocabulary) -> bytes:
    """The shortest text, the first in byte order among several: a walk that spends a budget of single bytes exactly."""
    letters = [bytes([b]) for b in sorted(vocabulary.single_bytes)]
    matcher = compile_constraint(spec, Vocabulary([*letters, b""], eos_ids=[len(letters)])).matcher()
    out = bytearray()
    while (cost := matcher.cost_to_accept()) > 1:
        token = int(matcher.allowed(budget=cost)[0])
        matcher.advance(token)
        out += letters[token]
    return bytes(out)


def _forced_runs(constraint: Constraint, word: bytes) -> list[bytes]:
    """The parts of `word` where each byte is the only one that may come, and must."""
    machine = constraint.automaton.machine
    runs: list[bytearray] = []
    is_open = False
    state = constraint.automaton.start
    for byte in word:
        constraint.automaton.budget.begin_step()
        segments = machine.segments(state)
        is_forced = len(segments) == 1 and segments[0][0] == segments[0][1] and not machine.accepts(state)
        if is_forced and is_open:
            runs[-1].append(byte)
        elif is_forced:
            runs.append(bytearray([byte]))
        is_open = is_forced
        state = step(machine, state, byte)
        assert state != DEAD, "a word of the language has a way through it"
    return [bytes(run) for run in runs]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _tokens(report: Report) -> str:
    n = len(report.forced_tokens)
    return f"{n} token{'' if n == 1 else 's'}: " + " ".join(map(_quoted, report.forced_tokens))


def _quoted(text: str) -> str:
    """As one line between backticks, shortened."""
    if not text:
        return "nothing"
    line = text if all(c.isprintable() for c in text) else chain_label(text.encode())
    return "`" + (line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 1] + "…") + "`"


def _percent(count: int, report: Report) -> str:
    return f"{100 * count / report.vocabulary:.3g} %"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
