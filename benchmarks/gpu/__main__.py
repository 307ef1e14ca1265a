"""python -m benchmarks.gpu [--only checks attention ...] [--match TEXT] [--json FILE]

Exit code 1 if a result was wrong or a row failed; a goal that is missed is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import triton

from benchmarks.gpu.machine import Machine, this_machine
from benchmarks.gpu.rows import HEAD, Row, table
from benchmarks.gpu.shares import run_apart
from benchmarks.gpu.tasks import Part, Report, Task, run_tasks

DIED = 3  # exit code of a process that can use its device no more


@dataclass(frozen=True, slots=True)
class Listed:
    """A part, by its module: imported when it is run, so that one that cannot be imported fails alone."""

    module: str
    side_by_side: bool = False  # takes no time: its tasks may run in several processes at once
    is_default: bool = True
    rehearses: bool = False  # is worth compiling in several processes before it is measured in one

    def load(self) -> Part:
        part: Part = importlib.import_module(f"benchmarks.gpu.{self.module}").tasks
        return part


PARTS = {
    "checks": Listed("checks", side_by_side=True),
    "paths": Listed("paths", side_by_side=True),
    "attention": Listed("attention"),
    "products": Listed("products"),
    "engine": Listed("engine"),
    "peers": Listed("peers"),
    "tune": Listed("tune", is_default=False, rehearses=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    default = [name for name, part in PARTS.items() if part.is_default]
    parser.add_argument("--only", "--part", nargs="+", choices=list(PARTS), default=default)
    parser.add_argument("--match", default="", help="only tasks whose name has this text in it")
    parser.add_argument("--json", type=Path, help="the rows, written after every part and every task in it")
    parser.add_argument("--seed", type=int, help="of inputs; another one in every run when left out")
    parser.add_argument("--processes", type=int, default=8, help="side by side, where no time is measured")
    parser.add_argument("--seconds", type=float, default=240.0, help="of one task at most, on a GPU")
    parser.add_argument("--list", action="store_true", help="print the names of tasks, and run none")
    parser.add_argument("--apart", action=argparse.BooleanOptionalAction, help="parts in processes; on a GPU: yes")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # only compile; of shares
    parser.add_argument("--share", nargs=4, metavar=("PART", "I", "N", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.share is not None:
        return _run_share(options)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    if options.list:
        return _list(options, this_machine(seed, ceilings=(1.0, 1.0)))
    machine = this_machine(seed)
    report = Report(_about(machine))
    print(", ".join(f"{k} {v}" for k, v in report.about.items()), flush=True)
    for name in options.only:
        print(f"\n{name}\n\n{HEAD}", flush=True)
        _run_part(name, machine, report, options)
    print("\n" + table(report.rows))
    wrong = [row for row in report.rows if not row.is_right]
    print(f"\n{len(report.rows)} rows, {len(wrong)} wrong or failed" + "".join(f"\n  {row.what}" for row in wrong))
    return int(bool(wrong))


def _about(machine: Machine) -> dict[str, str | float | int]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": machine.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy TB/s": machine.copy_bandwidth / 1e12,
        "matrix TFLOP/s": machine.matrix_rate / 1e12,
        "seed": machine.seed,
    }


def _run_part(name: str, machine: Machine, report: Report, options: argparse.Namespace) -> None:
    """Add the rows of a part to the report."""
    before = list(report.rows)

    def keep(rows: list[Row]) -> None:
        report.rows[:] = [*before, *rows]
        if options.json is not None:
            report.save(options.json)

    part = PARTS[name]
    if not (machine.measures if options.apart is None else options.apart):
        try:
            tasks = _tasks(name, machine, options.match)
        except Exception as error:  # noqa: BLE001 - a part that cannot begin leaves the others their rows
            keep([Row(name, "", None, failure=f"{type(error).__name__}: {error}"[:300])])
            print(table(report.rows[-1:]), flush=True)
            return
        run_tasks(machine, tasks, report, options.json)
        keep(report.rows[len(before) :])
        return
    if machine.measures:
        torch.cuda.empty_cache()  # the others share the device
    passed = ("--match", options.match, "--seconds", str(options.seconds))
    if part.rehearses and machine.measures and options.processes > 1:
        run_apart(name, options.processes, (*passed, "--rehearse"), report, lambda rows: None)
    keep(run_apart(name, options.processes if part.side_by_side else 1, passed, report, keep))


def _run_share(options: argparse.Namespace) -> int:
    """One of several processes of a part: behind the tasks that its report says are finished."""
    name, number, count, file = options.share[0], int(options.share[1]), int(options.share[2]), Path(options.share[3])
    report = Report.load(file)
    about = report.about
    ceilings = (about["copy TB/s"] * 1e12, about["matrix TFLOP/s"] * 1e12)
    machine = this_machine(about["seed"], ceilings=ceilings, rehearses=options.rehearse)
    try:
        tasks = _tasks(name, machine, options.match)[number::count][report.finished :]
    except Exception as error:  # noqa: BLE001 - see _run_part
        report.rows.append(Row(name, "", None, failure=f"{type(error).__name__}: {error}"[:300]))
        report.save(file)
        return 0
    return 0 if run_tasks(machine, tasks, report, file, seconds=options.seconds) else DIED


def _tasks(name: str, machine: Machine, match: str) -> Sequence[Task]:
    return [task for task in PARTS[name].load()(machine) if match in task.what]


def _list(options: argparse.Namespace, machine: Machine) -> int:
    for name in options.only:
        for task in _tasks(name, machine, options.match):
            print(f"{name}: {task.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
