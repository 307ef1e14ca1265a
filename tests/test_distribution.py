"""Tests beside each other: what may not run at the same time does not, and the lists name files that exist."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest
from tests.distribution import APART, FIRST, MAX_WORKERS, TOGETHER, UnitScheduling, rank, unit_of

ROOT = Path(__file__).parent.parent
SERVERS = [place for place in TOGETHER["processes"] if place.endswith(".py")]
LONG = next(unit for unit in FIRST if unit not in (*TOGETHER, *APART))


def test_whatever_is_named_exists_and_is_in_one_unit() -> None:
    together = [place for places in TOGETHER.values() for place in places]
    others = [unit for unit in {*FIRST, *APART} if unit not in TOGETHER]
    assert len({*together, *others}) == len(together) + len(others), "a file's unit begins when the unit does"
    assert not [place for place in (*together, *others) if not (ROOT / place).exists()]
    assert not [place for place in together if (ROOT / place).is_dir() != place.endswith("/")]


def test_whoever_starts_a_server_does_so_alone() -> None:
    def spawns(file: Path) -> bool:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        return any(
            isinstance(node, ast.ImportFrom)
            and node.module == "tests.runtime.server.processes"
            and any(name.name == "spawned" for name in node.names)
            for node in nodes
        )

    found = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py") if spawns(file)}
    assert len(found) >= 3
    assert {unit_of(file) for file in found} == {"processes"}


def test_a_unit_is_a_file_or_files_that_are_named_together_or_a_test() -> None:
    assert unit_of("tests/ir/test_graph.py::test_one[a::b]") == "tests/ir/test_graph.py"
    assert {unit_of(f"{file}::TestIt::test_it") for file in SERVERS} == {"processes"}
    assert unit_of("tests/runtime/parallel/deep/test_ends.py::test_it") == "processes"
    assert unit_of(f"{APART[0]}::test_it[a]") == f"{APART[0]}::test_it[a]"
    units = ["tests/ir/test_graph.py", f"{APART[0]}::test_it[a]", "processes"]
    assert sorted(units, key=rank) == units[::-1]


class Worker:
    """What it was sent."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.sent: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def test_what_takes_long_begins_first_and_a_unit_is_one_workers() -> None:
    files = ["tests/a.py"] * 9 + [LONG] * 4 + [SERVERS[1]] * 2 + ["tests/b.py"] * 12 + [SERVERS[0]] * 3
    tests = [f"{file}::test_{number}" for number, file in enumerate(files)]
    options = SimpleNamespace(loadscopereorder=True)
    scheduler = UnitScheduling(SimpleNamespace(option=options, getvalue=lambda _: ["popen", "popen"]))
    workers = Worker("gw0"), Worker("gw1")
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    assert [unit_of(tests[index]) for index in workers[0].sent] == ["processes"] * 5
    assert [files[index] for index in workers[1].sent] == [LONG] * 4
    while working := next((worker for worker in workers if scheduler.assigned_work[worker] and worker.sent), None):
        scheduler.mark_test_complete(working, working.sent.pop(0))
    assert scheduler.tests_finished
    units = [{unit: set(done) for unit, done in scheduler.assigned_work[worker].items()} for worker in workers]
    assert [list(each) for each in units] == [["processes", "tests/b.py", "tests/a.py"], [LONG]]
    assert set().union(*(done for each in units for done in each.values())) == set(tests)


def test_each_worker_has_its_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "_num_processors", lambda: 16)
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    assert conftest.pytest_xdist_auto_num_workers() == MAX_WORKERS == 4
    for workers, threads in ((4, "4"), (3, "5"), (99, "1")):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        conftest.pytest_configure(configured(workers, full=False))
        assert os.environ["OMP_NUM_THREADS"] == "7", "somebody's own choice"
        del os.environ["OMP_NUM_THREADS"]
        conftest.pytest_configure(configured(workers, full=False))
        assert os.environ["OMP_NUM_THREADS"] == threads


def test_figures_are_collected_in_one_process() -> None:
    with pytest.raises(pytest.UsageError, match="leave -n out"):
        conftest.pytest_configure(configured(2, full=True))
    conftest.pytest_configure(configured(None, full=True))


def configured(workers: int | None, *, full: bool) -> Any:
    return SimpleNamespace(stash={}, option=SimpleNamespace(numprocesses=workers), getoption={"--full": full}.get)
