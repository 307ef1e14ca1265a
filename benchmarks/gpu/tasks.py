"""What a part of the benchmark consists of, and how its tasks are run: each fails alone, and all that is known is
written after each.

A report is a file, so that a process that dies leaves what it had found: another one goes on behind the task that
killed it. That happens on a GPU: one bad address, and its process can use the device no more.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import Row, line


@dataclass(frozen=True, slots=True)
class Task:
    """One or several rows that are found together."""

    what: str
    run: Callable[[], Iterable[Row]]


Part = Callable[[Machine], Sequence[Task]]  # cheap: what costs time is done in tasks


@dataclass(slots=True)
class Report:
    """What was found so far."""

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    started: int = 0  # tasks
    finished: int = 0
    task: str = ""  # started last

    def save(self, file: Path) -> None:
        beside = file.with_name(file.name + ".new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        beside.replace(file)  # so that whoever reads it finds all of it

    @classmethod
    def load(cls, file: Path) -> Report:
        data = json.loads(file.read_text())
        return cls(**{**data, "rows": [Row(**row) for row in data["rows"]]})


def run_tasks(
    machine: Machine,
    tasks: Sequence[Task],
    report: Report,
    file: Path | None = None,
    *,
    seconds: float | None = None,
) -> bool:
    """Run them, print their rows, and write the report after each.

    Args:
        file: the report's.
        seconds: of a task at most; one that takes longer ends the process.

    Returns:
        Whether the device can still be used; if not, the tasks behind the last that was started are not run.
    """
    for task in tasks:
        report.started, report.task = report.started + 1, task.what
        _save(report, file)
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True)
        for row in _rows(machine, task):
            report.rows.append(row)
            if not machine.rehearses:
                print(line(row), flush=True)
        if seconds is not None:
            faulthandler.cancel_dump_traceback_later()
        report.finished += 1
        _save(report, file)
        if not _clean(machine):
            return False
    return True


def _rows(machine: Machine, task: Task) -> Iterable[Row]:
    torch.manual_seed(machine.seed + zlib.crc32(task.what.encode()))  # the same alone as among others
    try:
        yield from task.run()
        if machine.measures:
            torch.cuda.synchronize()  # an error of the device belongs to this task
    except Exception as error:  # noqa: BLE001 - a task that fails leaves the others their rows
        print(f"{task.what} failed:", file=sys.stderr)
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".strip()
        yield Row(task.what, "", None, failure=reason[:300])


def _clean(machine: Machine) -> bool:
    """Give back the memory of a task; False if the device has died of it."""
    gc.collect()
    if not machine.measures:
        return True
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return True
    return False


def _save(report: Report, file: Path | None) -> None:
    if file is not None:
        report.save(file)
