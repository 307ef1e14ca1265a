"""benchmarks.gpu without a GPU: its table says that nothing was measured, a wrong result is said to be wrong, and what
fails fails alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import attention, checks, exact, models
from benchmarks.gpu.machine import Machine, this_machine, worst_error
from benchmarks.gpu.rows import Row, reached
from benchmarks.gpu.shares import run_apart
from benchmarks.gpu.steps import Variant, make_step
from benchmarks.gpu.tasks import Report, Task, run_tasks
from palmette.kernels.gpu import rms_norm
from palmette.kernels.paged_attention import attend_by_definition

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter, where memory is poisoned
]


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Row], str]:
    file = tmp_path / "rows.json"
    code = command.main([*arguments, "--json", str(file), "--seed", "5"])
    return code, Report.load(file).rows, capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "match", "least"),
    [
        ("attention", "", 7),
        ("products", "", 8),
        ("checks", "fp8 pool, tries in a window", 3),
        ("checks", "all in one batch", 2),
        ("checks", "rotate", 18),
        ("checks", "experts, 1", 3),
        ("engine", "decode step, batch 1", 2),
        ("tune", "wide_cost, 1", 2),
    ],
)
def test_a_dry_run_measures_nothing_and_finds_nothing_wrong(
    part: str, match: str, least: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows, printed = run(tmp_path, capsys, "--only", part, "--match", match)
    assert code == 0
    assert len(rows) >= least
    assert all(row.value is None and row.met is None and row.is_right for row in rows)
    assert all(f"| {row.what} |" in printed for row in rows)
    lines = [line for line in printed.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert len(lines) == 2 * len(rows), "as they come, and all together"
    assert all("| not measured |" in line for line in lines)
    assert not any("WRONG" in line or "FAILED" in line for line in lines)


def test_a_wrong_kernel_is_reported_and_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm.rms_norm(x, weight, eps) * 1.03

    monkeypatch.setattr(checks, "norms", type("Wrong", (), {"rms_norm": off, "add_rms_norm": rms_norm.add_rms_norm}))
    code, rows, printed = run(tmp_path, capsys, "--only", "checks", "--match", "rms_norm")
    assert code == 1
    assert [row.what for row in rows if not row.is_right] == ["check rms_norm 3 x 96", "check rms_norm 5 x 64"]
    assert all(row.is_right for row in rows if "add" in row.what)
    assert printed.count("WRONG") == 4


def test_what_a_kernel_did_not_write_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(x: Tensor, _activation: str) -> Tensor:
        return torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype)

    monkeypatch.setattr(checks, "activation", type("Lazy", (), {"gated": staticmethod(lazy)}))
    code, rows, _ = run(tmp_path, capsys, "--only", "checks", "--match", "gated")
    assert code == 1
    assert [row.error for row in rows] == [float("inf")] * 2


def test_a_task_that_fails_leaves_the_others_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(machine: Machine) -> Iterable[Row]:
        yield Row("before", "", None)
        raise ValueError("no such | thing")

    def part(machine: Machine) -> Sequence[Task]:
        return [Task("first", partial(breaks, machine)), Task("second", lambda: [Row("after", "", None)])]

    monkeypatch.setattr(attention, "tasks", part)
    code, rows, printed = run(tmp_path, capsys, "--only", "attention", "products", "--match", "first")
    assert code == 1
    code, rows, printed = run(tmp_path, capsys, "--only", "attention")
    assert code == 1
    assert [(row.what, row.failure) for row in rows] == [
        ("before", None),
        ("first", "ValueError: no such | thing"),
        ("after", None),
    ]
    assert "| first |  | FAILED |  |  | ValueError: no such / thing |" in printed


def test_a_part_that_cannot_be_imported_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.PARTS, "peers", replace(command.PARTS["peers"], module="no_such_module"))
    code, rows, _ = run(tmp_path, capsys, "--only", "peers", "attention", "--match", "decode attention, flash")
    assert code == 1
    assert [row.failure is None for row in rows] == [False, True]
    assert "no_such_module" in str(rows[0].failure)


_DYING = """
import os, sys
from pathlib import Path
from benchmarks.gpu.machine import this_machine
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Report, Task, run_tasks
_, part, number, count, file = sys.argv[1:6]
def task(i):
    def run():
        if i == 1:
            os._exit(9)
        return [Row(f"row {i}", "", None)]
    return Task(f"task {i}", run)
report = Report.load(Path(file))
tasks = [task(i) for i in range(5)][int(number) :: int(count)][report.finished :]
run_tasks(this_machine(0, ceilings=(1.0, 1.0)), tasks, report, Path(file))
"""


def test_a_process_that_dies_is_followed_by_one_behind_the_task_it_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shares of five tasks, of which one kills its process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    seen: list[int] = []
    rows = run_apart(
        "any",
        2,
        (),
        Report({}),
        lambda rows: seen.append(len(rows)),
        command=(sys.executable, "-c", _DYING),
    )
    assert [row.what for row in rows] == ["row 0", "row 2", "row 4", "task 1", "row 3"]
    assert [row.what for row in rows if row.failure is not None] == ["task 1"]
    assert seen[-1] == 5


def test_a_process_that_cannot_begin_is_not_started_again() -> None:
    [row] = run_apart(
        "any", 1, (), Report({}), lambda rows: None, command=(sys.executable, "-c", "raise SystemExit(4)")
    )
    assert "exit code 4" in str(row.failure)


def test_reports_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Row("a", ">= 2", 3.0, True, 1e-3, 1e-2, {"ms": 4.0, "note": "x"}),
        Row("b", "", None, failure="OSError: gone"),
    ]
    report = Report({"seed": 3}, rows, 2, 1, "b")
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["detail"] == {"ms": 4.0, "note": "x"}
    assert [row.is_right for row in rows] == [True, False]


def test_the_exact_reference_is_the_definition() -> None:
    """In float32, on a step with tries, a window and a soft cap."""
    torch.manual_seed(3)
    machine = this_machine(0)
    variant = Variant("", heads=(4, 2, 16), dtype=torch.float32, window=17, soft_cap=3.0, tries=True)
    step = make_step(machine, variant)
    assert set(step.tokens) == {"split", "extend, paged", "extend, gathered"}
    options: dict[str, Any] = {"scale": step.scale, "soft_cap": 3.0}
    wanted = attend_by_definition(step.q, step.kv, step.plan, **options).view(step.q.shape)
    every = range(len(step.q))
    assert sorted(t for tokens in step.tokens.values() for t in tokens) == list(every)
    assert worst_error(wanted, exact.attention(step.q, step.kv, step.plan, every, **options)) < 1e-5


def test_a_seed_gives_the_same_inputs_alone_and_among_others() -> None:
    def drawn(tasks: Sequence[str], seed: int) -> dict[str, float]:
        found: dict[str, float] = {}

        def run_one(name: str) -> Iterable[Row]:
            found[name] = float(torch.rand(()))
            return ()

        run_tasks(this_machine(seed), [Task(name, partial(run_one, name)) for name in tasks], Report({}))
        return found

    both = drawn(["a", "b"], 1)
    assert drawn(["b"], 1)["b"] == both["b"]
    assert drawn(["b"], 2)["b"] != both["b"]


def test_experts_that_nobody_takes_are_not_read() -> None:
    config = models.tiny(models.qwen3_30b())
    weights = models.random_weights(this_machine(0), config)
    experts = config.experts
    assert experts is not None
    one = 3 * config.hidden_size * experts.intermediate_size * 4
    everything = models.weight_bytes(weights, [experts.num_experts] * config.num_layers)
    assert everything - models.weight_bytes(weights, [3, 1]) == one * (experts.num_experts * 2 - 4)


@pytest.mark.parametrize(("value", "met"), [(None, None), (0.85, True), (0.84, False)])
def test_a_goal_is_reached_or_not_where_something_was_measured(value: float | None, met: bool | None) -> None:
    assert reached(value, least=0.85) is met
