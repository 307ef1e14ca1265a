"""The compiled automaton alone, under the address and undefined-behaviour sanitizers: its masks are Python's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Machine
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.fsm.native import encoded, slice_arrays, trie_arrays
from palmette.fsm.slices import Mask
from palmette.fsm.unfolding import Unfolded
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec
from tests.fsm.test_matcher_oracle import wide_vocabulary

WIDE = wide_vocabulary()
KNOWN_ROWS = 300  # of each of Python's automata; asking for another fails, as it does when a limit is crossed there
CASES: list[tuple[Spec, list[bytes]]] = [
    (Regex(".{0,300}"), [b"abcdefgh", "日é".encode()]),
    (Regex(r"([a-h]+,? )*[a-h]+\."), [b"abc, de f."]),
    (Regex("(a|b)*a(a|b){9}"), [b"abbabaabab"]),
    (Regex("(?!ab)[a-c]{2,50}"), [b"acb", b"ba"]),
    (Grammar('root ::= "[" root* "]" | "é" | [0-9]{1,90}'), [b"[[1][23]]", "[é]".encode()]),
    (Choices(tuple(f"word {i}" for i in range(40))), [b"word 17"]),
    (
        JsonSchema.of(
            {"properties": {"a": {"type": "string", "maxLength": 90}, "b": {"type": "integer", "minimum": 5}}}
        ),
        [b'{"a": "abc", "b": 17', b'{"b": 5}'],
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    out = tmp_path_factory.mktemp("driver") / "driver"
    source = Path(__file__).with_name("automaton_driver.cpp")
    flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror"]
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run([compiler, *flags, *sanitized, str(source), "-o", str(out)], capture_output=True, check=False)
    if done.returncode and b"asan" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stderr.decode()
    return out


def lowered(spec: Spec) -> tuple[Lowering, int]:
    lowering = Lowering(Budget(Limits()), WIDE.single_bytes)
    return lowering, lowering.language(to_language(spec)[0])


def dump(spec: Spec, texts: list[bytes]) -> bytes:
    lowering, item = lowered(spec)
    program = lowering.program
    starts, code, machines = encoded(program)
    kinds = [int(kind) for kind in program.kinds]  # now: looking at the machines' rows makes more items
    saturate = WIDE.max_token_len if program.largest_count > WIDE.max_token_len else -1
    blocks: list[Iterable[int]] = [[WIDE.mask_words, len(WIDE.slices), saturate, item, len(texts)], WIDE.eos_ids]
    blocks += [a.tolist() for a in trie_arrays(WIDE.trie)]
    for part in WIDE.slices:
        blocks.append([len(part.graph), part.max_turns, part.max_chars])
        blocks += [a.reshape(-1).view(np.int32).tolist() for a in slice_arrays(part)]
        blocks += [a.tolist() for a in trie_arrays(part.others)]
    rows: list[int] = []
    for number, machine in enumerate(machines):
        rows += known_rows(number, machine, program.args)
    blocks += [kinds, starts, code, program.rules, sorted(lowering.nfa.dead_items), rows, *texts]
    flat = [np.array(list(b), np.int64).astype(np.int32) for b in blocks]
    return b"".join(np.int32(len(b)).tobytes() + b.tobytes() for b in flat)


def known_rows(number: int, machine: Machine, arguments: Sequence[object]) -> list[int]:
    """Machine, state, accepting, segments and those, for states that its items lead to."""
    out: list[int] = []
    queue = list(dict.fromkeys(a[1] for a in arguments if isinstance(a, tuple) and len(a) == 3 and a[0] is machine))
    seen = set(queue)
    for at, state in enumerate(queue):  # which grows
        if at == KNOWN_ROWS:
            break
        segments = machine.segments(state)
        out += [number, state, int(machine.accepts(state)), len(segments), *(x for s in segments for x in s)]
        new = dict.fromkeys(to for _, _, to in segments if to not in seen)
        queue += new
        seen |= new.keys()
    return out


def hashed(mask: Mask) -> str:
    h = 0xCBF29CE484222325
    for word in mask.tolist():
        h = ((h ^ word) * 0x100000001B3) & (2**64 - 1)
    return f"{h:016x}"


@pytest.mark.parametrize(("spec", "texts"), CASES, ids=range(len(CASES)))
def test_it_touches_nothing_that_is_not_its_own_and_its_masks_are_pythons(
    driver: Path, tmp_path: Path, spec: Spec, texts: list[bytes]
) -> None:
    file = tmp_path / "constraint"
    file.write_bytes(dump(spec, texts))
    done = subprocess.run([str(driver), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    oracle = Unfolded(*lowered(spec), WIDE)
    oracle.budget.begin_step()
    expected = [
        hashed(oracle.mask(oracle.read(oracle.start, text[:n]))) for text in texts for n in range(len(text) + 1)
    ]
    assert done.stdout.split() == [*expected, "done"]
