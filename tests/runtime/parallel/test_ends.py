"""One for all: whatever happens to a rank, the others end with an error that says so, soon, and nothing is left."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from palmette.errors import EngineDied, InvalidOption
from palmette.runtime.driver import EngineThread
from palmette.runtime.models.tiny import tiny_config
from palmette.runtime.parallel.group import LostRanks
from palmette.runtime.parallel.in_one import InOneRunner
from palmette.runtime.parallel.orders import Forward, RandomModel
from palmette.runtime.parallel.rank import LEFT
from palmette.runtime.parallel.runner import ParallelRunner
from palmette.runtime.parallel.start import load_parallel, start_parallel
from palmette.runtime.parallel.team import Team
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from palmette.types import Event, TokenEvent
from tests.runtime.driving import generate
from tests.runtime.parallel.split_models import NUM_ROWS, NUM_SLOTS, engine_on, random_model

SOON = 20.0  # seconds; what takes longer hangs
STEP = ScheduledBatch((ScheduledRow(0, (1, 2, 3), 0, (0, 1, 2), logits_from=2),))


@pytest.fixture
def start() -> Iterator[Callable[..., ParallelRunner]]:
    """start(size): a runner of the tiny model on a team of its own."""
    runners: list[ParallelRunner] = []

    def make(size: int = 2, **options: float) -> ParallelRunner:
        shape = "no groups" if size == 4 else "llama"
        model = load_parallel(random_model(shape), Team(size, **options))  # type: ignore[arg-type]
        runners.append(ParallelRunner(model, num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def step_on(runner: ParallelRunner) -> None:
    """Until it raises."""
    began = time.monotonic()
    while time.monotonic() < began + SOON:
        runner.forward(STEP)


def assert_over(runner: ParallelRunner, pids: Sequence[int]) -> None:
    """Everybody is gone, and stays so."""
    assert not any(map(is_running, pids))
    assert not any(t.name.startswith("palmette-rank") and t.is_alive() for t in threading.enumerate())
    for call in (lambda: runner.forward(STEP), lambda: runner.embed((1,), (0,), 0), runner.check):
        with pytest.raises(EngineDied):
            call()


def test_a_rank_killed_while_idle_is_named_by_the_next_step(start: Callable[..., ParallelRunner]) -> None:
    runner = start(4)
    pids = runner.team.pids
    runner.forward(STEP)
    os.kill(pids[2], signal.SIGKILL)
    with pytest.raises(EngineDied, match=r"rank 3 of 4 failed: it ended: SIGKILL; start a new runtime"):
        step_on(runner)
    runner.close()
    assert_over(runner, pids)


def test_a_rank_killed_in_the_middle_of_a_request_ends_the_request(
    start: Callable[..., ParallelRunner], caplog: pytest.LogCaptureFixture
) -> None:
    runner = start(2)
    pids = runner.team.pids
    engine = EngineThread(engine_on(runner, "llama"))
    events: list[Event] = []
    began, ended = threading.Event(), threading.Event()

    def deliver(new: Sequence[Event]) -> None:
        events.extend(new)
        began.set()
        if any(isinstance(event, TokenEvent) and event.finish is not None for event in new):
            ended.set()

    with caplog.at_level(logging.CRITICAL):
        engine.submit(generate("long", "to be continued", 900), deliver)
        assert began.wait(SOON)
        os.kill(pids[0], signal.SIGKILL)
        assert ended.wait(SOON), "the request hangs"
    last = events[-1]
    assert isinstance(last, TokenEvent)
    assert last.finish is not None
    assert isinstance(last.finish.error, EngineDied)
    assert "rank 1 of 2 failed: it ended: SIGKILL" in str(last.finish.error)
    engine.close()
    assert_over(runner, pids)


def test_a_rank_that_raises_says_why(start: Callable[..., ParallelRunner], capfd: pytest.CaptureFixture[str]) -> None:
    runner = start(2)
    pids = runner.team.pids
    # Only the other rank gets it; no such row is in its page table.
    runner.team.tell(Forward(ScheduledBatch((ScheduledRow(NUM_ROWS, (1,), 0, (0,)),))))
    with pytest.raises(EngineDied, match=r"rank 1 of 2 failed: IndexError: .*out of bounds.*; start a new runtime"):
        step_on(runner)
    runner.close()
    assert_over(runner, pids)
    assert "IndexError" in capfd.readouterr().err  # its traceback is in its log


def test_a_rank_that_hangs_and_takes_no_orders_is_given_up(start: Callable[..., ParallelRunner]) -> None:
    runner = start(2, timeout=0.3)
    pids = runner.team.pids
    os.kill(pids[0], signal.SIGSTOP)
    row = ScheduledRow(0, (1,), 0, (0,), prefix=(0, tuple(range(100_000))))  # more than a pipe holds
    with pytest.raises(EngineDied, match=r"rank 1 took no order for 0.3 seconds"):
        runner.team.tell(Forward(ScheduledBatch((row,))))
    assert_over(runner, pids)


def test_where_rank_0_fails_the_others_do_not_stay_behind(start: Callable[..., ParallelRunner]) -> None:
    runner = start(2)
    pids = runner.team.pids
    with pytest.raises(EngineDied, match=r"rank 0 of 2 failed: IndexError: index out of range"):
        runner.forward(ScheduledBatch((ScheduledRow(0, (1 << 40,), 0, (0,)),)))  # no such token
    assert_over(runner, pids)


def test_a_refused_size_leaves_the_team_as_it_was(team: Callable[[int], Team]) -> None:
    model = load_parallel(random_model("llama"), team(2))
    runner = ParallelRunner(model, num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS)
    with pytest.raises(InvalidOption, match="num_slots"):
        ParallelRunner(model, num_slots=0, max_running_rows=1)
    with pytest.raises(InvalidOption, match="tensor_parallel"):
        load_parallel(RandomModel(replace(tiny_config(), num_kv_heads=1)), team(2))
    assert runner.forward(STEP).shape == (1, 260)


def test_what_cannot_be_started_is_refused_before_anything_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    model = random_model("llama")
    with pytest.raises(InvalidOption, match="tensor_parallel=3 is not allowed: 1, 2"):
        start_parallel(model, 3)
    with pytest.raises(InvalidOption, match="tensor_parallel=1 is not allowed: at least 2"):
        start_parallel(model, 1)
    with pytest.raises(InvalidOption, match=r"device='cuda:1' is not allowed: 'auto', 'cpu' or 'cuda'"):
        start_parallel(model, 2, device="cuda:1")
    with pytest.raises(InvalidOption, match="dtype='int8' is not allowed: auto, float32, bfloat16 or float16"):
        start_parallel(random_model("llama", "int8"), 2)


def test_a_rank_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("palmette.runtime.parallel.team.RANK_MODULE", "palmette.runtime.parallel.no_such_module")
    with pytest.raises(EngineDied, match=r"rank \d of 3 failed: it ended: exit code 1; start a new runtime"):
        Team(3)
    assert "no_such_module" in capfd.readouterr().err


def test_a_forgotten_team_ends() -> None:
    team = Team(2)
    pids = team.pids
    assert all(map(is_running, pids))
    del team
    gc.collect()
    assert not any(map(is_running, pids))


SCRIPT = """
import sys, time
from palmette.runtime.parallel.team import Team
team = Team(2)
print(*team.pids, flush=True)
time.sleep(60)
"""


def test_ranks_do_not_outlive_rank_0(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 1
        assert all(map(is_running, pids))
        assert list(tmp_path.iterdir())
        parent.kill()
    last = time.monotonic() + SOON
    while any(map(is_running, pids)) and time.monotonic() < last:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
    assert list(tmp_path.iterdir()) == []


def test_in_one_process_the_failing_rank_is_heard_and_the_others_do_not_wait() -> None:
    runner = InOneRunner(random_model("llama"), 2, num_slots=NUM_SLOTS, max_running_rows=NUM_ROWS)
    try:
        assert runner.forward(STEP).shape == (1, 260)
        with pytest.raises(IndexError):
            runner.forward(ScheduledBatch((ScheduledRow(0, (1 << 40,), 0, (0,)),)))
        with pytest.raises(LostRanks):
            runner.forward(STEP)
    finally:
        runner.close()


BUSY = """
import sys, threading, time
from pathlib import Path
from palmette.runtime.parallel.rank import watch_stdin
threading.Thread(target=watch_stdin, args=(Path(sys.argv[1]),), daemon=True).start()
print(flush=True)
time.sleep(60)
"""


def test_a_rank_that_is_busy_ends_too(tmp_path: Path) -> None:
    pipe, folder = subprocess.PIPE, tmp_path / "meeting"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", BUSY, str(folder)], stdin=pipe, stdout=pipe) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        rank.stdin.write(b"an order that nobody reads")
        rank.stdin.flush()
        rank.stdout.readline()
        assert rank.poll() is None
        rank.stdin.close()
        assert rank.wait(SOON) == LEFT
    assert not folder.exists()
