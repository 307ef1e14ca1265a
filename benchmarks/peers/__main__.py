"""The table: `python -m benchmarks.peers [--rows ...] [--rounds 3] [--peers ...] [--python NAME=PATH] [--json OUT]`.

    python -m benchmarks.peers.environments        installs the peers, once; one that is missing is left out
    python -m benchmarks.peers                     everything, in turn: round by round, row by row, engine by engine

SmolLM2-135M on two threads, greedy, the same token ids for everybody. Each engine has a process of its own, loaded once
and stopped except while it is asked; so engines take turns within seconds, and a drift of the machine meets all alike.
Constraints are compiled in the time that is measured, by an engine that keeps them in the first round only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import ENGINES, ROOT, Engine, EngineFailed, EngineProcess, chosen, find_python
from benchmarks.peers.environments import DEFAULT_ROOT
from benchmarks.peers.report import Samples, best_only, outputs_table, table
from benchmarks.peers.work import AnyRow, work, write
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.load import find_model
from palmette.runtime.models.tiny import tiny_model


def prepare(root: Path, model: str, threads: int) -> tuple[list[AnyRow], Path]:
    """The rows and the file that tells the peers of them. With model "tiny" everything is small, and ours alone."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"work-{model}.json"
    if model == "tiny":
        rows = work(tiny_model().tokenizer, shrink=16)
        write(file, rows, model={"palmette": model}, threads=threads, serve=_serve(model))
        return rows, file
    path, _ = find_model(model)
    rows = work(gguf_tokenizer(GGUFFile(path)))
    files = {"palmette": model, "gguf": str(path), "q4_0": str(root / f"{model}-q4_0.gguf"), "fp32": str(root / model)}
    write(file, rows, model=files, threads=threads, serve=_serve(model))
    return rows, file


def _serve(model: str) -> list[str]:
    """The command of our server, for who is a client of it."""
    return [sys.executable, "-m", "palmette", "serve", "--model", model, "--port", "0"]


def start(
    engines: Sequence[Engine], given: dict[str, str], root: Path, file: Path, threads: int
) -> list[EngineProcess]:
    """The processes that came up, one after the other; a line for each that did not."""
    processes: list[EngineProcess] = []
    for engine in engines:
        python = find_python(engine, root, given)
        if python is None:
            how = f"python -m benchmarks.peers.environments {engine.environment}"
            print(f"{engine.name}: not installed: {how}", flush=True)
            continue
        if engine.reads_checkpoint and (why := _checkpoint(file)):
            print(f"{engine.name}: left out: no fp32 checkpoint: {why}", flush=True)
            continue
        process = EngineProcess(engine, python, file, root, threads=threads)
        try:
            began = time.monotonic()
            process.wait_until_loaded()
        except EngineFailed as error:
            print(f"{engine.name}: left out: {error}", flush=True)
            process.close()
            continue
        told = ", ".join(f"{name} {version}" for name, version in process.versions.items() if name != "python")
        print(f"{engine.name}: ready after {time.monotonic() - began:.1f} s with imports ({told})", flush=True)
        processes.append(process)
    return processes


def _checkpoint(file: Path) -> str:
    """Make sure that who reads a checkpoint has one; why not, or ""."""
    files = json.loads(file.read_text(encoding="utf-8"))["model"]
    if Path(files["fp32"]).is_dir():
        return ""
    missing = [name for name in ("transformers", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed here"
    command = [sys.executable, "-m", "benchmarks.peers.export", files["gguf"], files["fp32"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def measure(
    processes: Sequence[EngineProcess], rows: Sequence[AnyRow], rounds: int, *, seconds: float = math.inf
) -> Samples:
    """Every row `rounds` times by every engine in turn. An engine that dies is left out from there on.

    Args:
        seconds: no further round begins that would not end within them, going by the longest so far.
    """
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {p.engine.name: {} for p in processes}
    live, told = list(processes), set()
    began, longest = time.monotonic(), 0.0
    for number in range(rounds):
        round_began = time.monotonic()
        if number and round_began - began + longest > seconds:
            print(f"no time is left for round {number + 1}", flush=True)
            break
        for row in rows:
            words = []
            for process in list(live):
                engine = process.engine
                if engine.rows and row.name not in engine.rows:
                    continue
                try:
                    answer = process.ask(row.name)
                except EngineFailed as error:
                    answer = {"error": str(error)}
                    process.close()
                    live.remove(process)
                samples[engine.name].setdefault(row.name, []).append(answer)
                if "value" in answer:
                    words.append(f"{engine.title} {answer['value']:.3g}")
                if "error" in answer and (engine.name, row.name) not in told:
                    told.add((engine.name, row.name))
                    print(f"{engine.name}, {row.name}: {answer['error']}", flush=True)
            print(f"  {number + 1}/{rounds} {row.name}: {', '.join(words)}", flush=True)
        longest = max(longest, time.monotonic() - round_began)
    return samples


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="names of rows, such as decode_1_64; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=11.0, help="the whole run; fewer rounds then")
    parser.add_argument("--peers", nargs="*", default=[], help=f"of {', '.join(e.name for e in ENGINES)}; all")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="an environment's own python"
    )
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where environments and made files are kept")
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "tiny"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--best", action="store_true", help="also the table of everybody's best rounds")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    args = parser.parse_args(argv)
    engines, given = list(chosen(args.peers)), dict(item.split("=", 1) for item in args.python)
    if args.model == "tiny":
        engines = [engine for engine in engines if engine.is_ours]
    root = args.root.expanduser().resolve()
    rows, file = prepare(root, args.model, args.threads)
    unknown = set(args.rows) - {row.name for row in rows} | set(args.peers) - {
        x for e in ENGINES for x in (e.name, e.environment)
    }
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; rows are {', '.join(row.name for row in rows)}")
    rows = [row for row in rows if not args.rows or row.name in args.rows]
    began = time.monotonic()
    with ExitStack() as stack:
        processes = start(engines, given, root, file, args.threads)
        for process in processes:
            stack.callback(process.close)
        left = args.minutes * 60 - (time.monotonic() - began)
        samples = measure(processes, rows, args.rounds, seconds=left)
    print(f"\n{platform.machine()}, {args.threads} threads, median of at most {args.rounds} ± half the range\n")
    print(table(rows, samples))
    if args.best:
        print(f"\nbest of at most {args.rounds}\n\n{table(rows, best_only(rows, samples))}")
    print("\nours/best: times as fast as the best peer. q: our quantised path against llama.cpp's; 32: our fp32 path")
    print("against the best fp32 peer; srv/sgl: our programs on our server against SGLang's on it.")
    print(f"\n{outputs_table(rows, samples)}\n\n{time.monotonic() - began:.0f} s in all")
    if args.json:
        told = {p.engine.name: p.versions for p in processes}
        args.json.write_text(json.dumps({"versions": told, "samples": samples}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
