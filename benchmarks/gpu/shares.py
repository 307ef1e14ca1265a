"""A part in processes of its own: several side by side where no time is measured, and a new one for one that dies.

parent    part "checks"   [ share 0 of 8 | share 1 of 8 | ... ]    each a process: python -m benchmarks.gpu --share
          part "engine"   [ share 0 of 1 ]
                             task, task, X   -> died: the next process begins behind X
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Report


@dataclass(slots=True)
class _Share:
    file: Path
    command: Sequence[str]
    what: str
    process: subprocess.Popen[bytes] | None = None
    is_done: bool = False

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)

    def look(self) -> None:
        """Restart it behind the task that it died of."""
        if self.process is None or self.process.poll() is None:
            return
        code, report = self.process.returncode, Report.load(self.file)
        if code == 0 or not report.task:  # no task was begun, so the next process would end like this one
            self.is_done = True
            if code:
                report.rows.append(_death(f"{self.what}, before its first task", code))
                report.save(self.file)
            return
        if report.finished < report.started:
            report.rows.append(_death(report.task, code))
            report.finished = report.started
        report.task = ""
        report.save(self.file)
        self.start()


def run_apart(
    part: str,
    count: int,
    options: Sequence[str],
    report: Report,
    on_change: Callable[[list[Row]], None],
    *,
    command: Sequence[str] = (sys.executable, "-m", "benchmarks.gpu"),
) -> list[Row]:
    """The rows of a part.

    Args:
        count: processes side by side.
        options: of all of them.
        report: what they are told of the run.
        on_change: told all rows so far, when there are more.
        command: what is run for a share.
    """
    with tempfile.TemporaryDirectory() as folder:
        shares = []
        for i in range(count):
            file = Path(folder) / f"{i}.json"
            Report(report.about).save(file)
            share = ("--share", part, str(i), str(count), str(file))
            shares.append(_Share(file, (*command, *share, *options), f"{part}, share {i}"))
        for each in shares:
            each.start()
        rows: list[Row] = []
        try:
            while not all(each.is_done for each in shares):
                time.sleep(0.2)
                for each in shares:
                    each.look()
                found = [row for each in shares for row in Report.load(each.file).rows]
                if len(found) != len(rows):
                    rows = found
                    on_change(rows)
        finally:
            for each in shares:
                if each.process is not None and each.process.poll() is None:
                    each.process.kill()
        return rows


def _death(what: str, code: int) -> Row:
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Row(what, "", None, failure=f"its process ended with {reason}: see what it printed, or it took too long")
