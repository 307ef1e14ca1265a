"""Token masks of this package and its peers, side by side: `python -m benchmarks.constrained`.

Per engine and constraint, each in a fresh process:

    ready      ms    compile, and the mask of the start, after forty compilations of two others
    cold       ms    masks at places whose automaton state (this package's) was not visited before: p50, p99
    warm       us    masks along the same texts, walked once more: p50, p99
    memory     MB    growth of the process's peak from before the compilation to the end; the vocabulary is not in it

Every engine reads the same tokens: sample texts, tokenized as the model tokenizes them, and random walks under the
mask. An engine that refuses one leaves that walk. Each figure is the median over the rounds; compare columns of one
run only. Engines that are not installed are left out with a line.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fsm_constraints import CASES, Case
from benchmarks.fsm_engines import ENGINES, version, why_missing
from benchmarks.fsm_memory import peak, reset_peak
from benchmarks.fsm_vocab import smollm2_encoder, smollm2_tokens
from palmette.fsm.compile import compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import JsonSchema, Regex

WARM_UPS = 20  # of each of two constraints
WALKS, STEPS = 8, 60
COLUMNS = ("ready_ms", "cold50_ms", "cold99_ms", "warm50_us", "warm99_us", "memory_mb")

Plan = list[list[tuple[int, bool]]]  # per walk: tokens, and whether the mask before each is of a new state


def main() -> None:
    arguments = _arguments()
    cases = [c for c in CASES if not arguments.only or any(o in c.name for o in arguments.only)]
    names = []
    for name in arguments.engines:
        reason = why_missing(name)
        if reason:
            print(f"{name} is left out: {reason}")
        else:
            names.append(name)
    print("; ".join(f"{n} {version(n)}" for n in names))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.pickle"  # our own file, read back by our own children
        tokens, (eos,) = smollm2_tokens()
        vocabulary, encode = Vocabulary(tokens, eos_ids=[eos]), smollm2_encoder()
        work.write_bytes(pickle.dumps((tokens, eos, {c.name: plan_of(c, vocabulary, encode) for c in cases})))
        del vocabulary, encode
        results = {}
        for case in cases:
            results[case.name] = {n: _measured(n, case, work, arguments) for n in names}
            for name in names:
                _print_row(case.name, name, results[case.name][name])
    _print_medians(names, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


def plan_of(case: Case, vocabulary: Vocabulary, encode: Callable[[str], list[int]]) -> Plan:
    """The tokens to read, chosen under our own masks."""
    constraint = compile(case.spec, vocabulary)
    rng = random.Random(1)
    seen: set[int] = set()
    plan: Plan = []

    def walk(given: list[int] | None) -> None:
        matcher = constraint.matcher()
        steps: list[tuple[int, bool]] = []
        for i in range(len(given) if given is not None else STEPS):
            allowed = matcher.allowed()
            going_on = allowed[allowed != vocabulary.eos_ids[0]]
            if not len(going_on):
                break
            token = given[i] if given is not None else int(rng.choice(going_on))
            state = matcher._state()
            steps.append((token, state not in seen))
            seen.add(state)
            assert matcher.try_advance(token), f"{case.name}: a sample does not conform"
        plan.append(steps)

    for text in case.samples:
        walk(encode(text))
    for _ in range(WALKS):
        walk(None)
    return plan


def measure(engine_name: str, case: Case, work: Path) -> dict[str, float]:
    """In the child: one engine, one constraint."""
    tokens, eos, plans = pickle.loads(work.read_bytes())  # noqa: S301
    plan: Plan = plans[case.name]
    engine = ENGINES[engine_name][1](tokens, eos)
    others = (Regex("[a-f]+-x"), JsonSchema.of({"type": "object", "properties": {"a": {"type": "string"}}}))
    for spec in others * WARM_UPS:
        engine.compile(spec)().fill()  # as in a process that has been serving
    before = reset_peak()
    start = time.perf_counter_ns()
    make_cursor = engine.compile(case.spec)
    make_cursor().fill()
    ready = time.perf_counter_ns() - start
    cold: list[int] = []
    warm: list[int] = []
    for times, only_new in ((cold, True), (warm, False)):
        for steps in plan:
            cursor = make_cursor()
            for i, (token, is_new) in enumerate(steps):
                start = time.perf_counter_ns()
                cursor.fill()
                took = time.perf_counter_ns() - start
                if not only_new or (is_new and (i or times)):
                    times.append(took)
                if not cursor.advance(token):
                    break
    cold50, cold99 = np.percentile(cold or [0], [50, 99]) / 1e6
    warm50, warm99 = np.percentile(warm, [50, 99]) / 1e3
    values = (ready / 1e6, cold50, cold99, warm50, warm99, (peak() - before) / 2**20)
    return {**dict(zip(COLUMNS, map(float, values), strict=True)), "masks": len(warm), "new": len(cold)}


def _measured(engine: str, case: Case, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    for _ in range(arguments.rounds):
        command = [sys.executable, "-m", "benchmarks.constrained", "--child", engine, case.name, str(work)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout, check=False)
        except subprocess.TimeoutExpired:
            return {"refused": f"took longer than {arguments.timeout} s"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"refused": lines[-1]}
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def _print_row(case: str, engine: str, result: dict[str, Any]) -> None:
    label = f"{case:<18}{engine:<18}"
    if "refused" in result:
        print(f"{label}{result['refused'][:90]}", flush=True)
    else:
        print(label + "".join(f"{result[c]:>11.3f}" for c in COLUMNS) + f"{result['masks']:>7.0f}", flush=True)


def _print_medians(names: list[str], results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Medians over the constraints that every engine of the comparison served, and the worst of ours."""
    print("\n" + " " * 36 + "".join(f"{c:>11}" for c in COLUMNS))
    for name in names:
        mine = [r[name] for r in results.values() if "refused" not in r[name]]
        medians = [statistics.median(m[c] for m in mine) for c in COLUMNS]
        worst = [max(m[c] for m in mine) for c in COLUMNS]
        print(f"{'median of ' + str(len(mine)):<18}{name:<18}" + "".join(f"{m:>11.3f}" for m in medians))
        print(f"{'largest':<18}{name:<18}" + "".join(f"{m:>11.3f}" for m in worst))
    for name in names[1:]:
        both = [(r[names[0]], r[name]) for r in results.values() if "refused" not in r[names[0]] | r[name]]
        if both:
            ratios = [statistics.median(b[c] / max(a[c], 1e-9) for a, b in both) for c in COLUMNS]
            label = f"{name} / {names[0]}"
            print(f"{label:<36}" + "".join(f"{r:>11.2f}" for r in ratios))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--only", nargs="*", help="parts of names of constraints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one engine and constraint")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        wanted = next(c for c in CASES if c.name == sys.argv[3])
        print(json.dumps(measure(sys.argv[2], wanted, Path(sys.argv[4]))))
    else:
        main()
