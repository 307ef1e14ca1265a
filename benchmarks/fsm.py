"""What the automata of constraints grow to on the embedded model's vocabulary: `python -m benchmarks.fsm`.

Per constraint: compile + first mask, masks on the first visit of a state, and masks of states visited before, along
random walks under the mask, with the states and distinct masks there are afterwards. One process, no peers: for a quick
look while working on `fsm`; `benchmarks.constrained` measures with care.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import numpy as np

from benchmarks.fsm_constraints import CASES
from benchmarks.fsm_constraints import CHARACTER as CHARACTER
from benchmarks.fsm_vocab import smollm2_vocabulary
from palmette.fsm.compile import compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Grammar, Regex, Spec

WALKS, STEPS = 12, 60

CONSTRAINTS: list[tuple[str, Spec]] = [
    *((c.name, c.spec) for c in CASES),
    ("arithmetic", Grammar('root ::= s\ns ::= p ([+-] p)*\np ::= a ("*" a)*\na ::= [0-9]+ | "(" s ")"')),
]


def measure(spec: Spec, vocabulary: Vocabulary) -> dict[str, Any]:
    rng = random.Random(1)
    out = np.zeros(vocabulary.mask_words, np.uint32)
    gc.collect()
    start = time.perf_counter()
    constraint = compile(spec, vocabulary)
    constraint.matcher().fill_mask(out)
    ready = time.perf_counter() - start
    cold: list[float] = []
    warm: list[float] = []
    seen = {constraint.automaton.start}
    for _ in range(WALKS):
        matcher = constraint.matcher()
        for _ in range(STEPS):
            state = matcher._state()
            times = cold if state not in seen else warm
            seen.add(state)
            start = time.perf_counter()
            matcher.fill_mask(out)
            times.append(time.perf_counter() - start)
            ids = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
            matcher.advance(int(rng.choice(ids.tolist())))
            if matcher.is_terminated:
                break
    automaton = constraint.automaton
    return {
        "ready_ms": ready * 1e3,
        "cold": np.array(cold or [0.0]) * 1e3,
        "warm": np.array(warm or [0.0]) * 1e6,
        "states": automaton.budget.states,
        "masks": automaton.masks.num_distinct,
        "mb": automaton.masks.nbytes / 2**20,
    }


def main() -> None:
    start = time.perf_counter()
    vocabulary = smollm2_vocabulary()
    vocabulary.warm_up()
    print(f"vocabulary: {len(vocabulary)} tokens, {time.perf_counter() - start:.2f} s with the file read\n")
    measure(Regex("[a-z]+x"), vocabulary)  # numpy's own first calls
    widths = {"ready ms": 9, "cold p50": 10, "p99 ms": 8, "warm p50": 10, "p99 us": 8, "states": 8, "masks": 7, "MB": 6}
    print(f"{'constraint':<20}" + "".join(f"{text:>{width}}" for text, width in widths.items()))
    for name, spec in CONSTRAINTS:
        m = measure(spec, vocabulary)
        c50, c99 = np.percentile(m["cold"], [50, 99])
        w50, w99 = np.percentile(m["warm"], [50, 99])
        print(
            f"{name:<20}{m['ready_ms']:>9.2f}{c50:>10.3f}{c99:>8.2f}{w50:>10.2f}{w99:>8.2f}"
            f"{m['states']:>8}{m['masks']:>7}{m['mb']:>6.1f}"
        )


if __name__ == "__main__":
    main()
