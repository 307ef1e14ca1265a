"""Thousands of histories of the server's core, each checked; a failing seed names itself and can be replayed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palmette.runtime.server.flights import Flights
from palmette.types import FinishReason, GenerateRequest, SamplingParams
from tests.runtime.server import sim_golden
from tests.runtime.server.sim_world import FAULTS
from tests.runtime.server.simulation import Simulation, main, run_seeds
from tests.runtime.server.virtual_loop import Stuck, VirtualLoop

ROOT = Path(__file__).parents[3]

# What must have been seen among 2,000 histories: a simulation in which nothing happens promises nothing.
SEEN = {
    "answered": 5000,
    "ended by stop": 1000,
    "ended by length": 2000,
    "left": 1000,
    "Overloaded": 1000,
    "HoleTimeout": 500,
    "EngineDied": 100,
    "UnsupportedConstraint": 100,
    "PromptTooLong": 100,
    "NumericalError": 50,
    "engine died": 300,
    "front died": 50,
    "survived a crash": 300,
    "stream lost to a crash": 50,
    "poisoned": 200,
    "slow reader ended": 20,
    "retracted": 20,
}


@pytest.mark.parametrize("first", range(0, 10_000, 2000))
def test_no_history_breaks_a_promise(first: int) -> None:
    happened = run_seeds(range(first, first + 2000))
    missing = {what: happened[what] for what, least in SEEN.items() if happened[what] < least}
    assert not missing, "the histories have become too quiet"


def test_no_history_over_http_breaks_a_promise(full: bool) -> None:
    """The same, asked for at the application's door: statuses, server-sent events, [DONE], disconnects."""
    scale = 5 if full or "PALMETTE_ACCEPTANCE" in os.environ else 1
    happened = run_seeds(range(400 * scale), over_http=True)
    missing = {what: happened[what] for what, least in SEEN.items() if happened[what] < least * scale // 10}
    assert not missing, "the histories have become too quiet"


def test_every_fault_is_in_some_history_and_some_have_none() -> None:
    worlds = [Simulation(seed).world for seed in range(200)]
    assert set().union(*(world.faults for world in worlds)) == set(FAULTS)
    assert any(not world.faults for world in worlds)


def test_a_seed_is_the_same_history_in_every_python() -> None:
    """Not even the order in which a set of strings is read makes a difference."""
    seeds = [str(seed) for seed in (3, 12)]  # the second with a front that dies
    told = []
    for seed in seeds:
        trace: list[str] = []
        Simulation(int(seed), trace=trace).run()
        told.append(trace)
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    code = "import sys\nfrom tests.runtime.server.simulation import main\n"
    code += "for seed in sys.argv[1:]: main(['--seed', seed, '--trace'])"
    command = [sys.executable, "-c", code, *seeds]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if " seeds, " not in line]
    assert lines == [line for trace in told for line in trace]
    assert len(lines) > 100


def test_a_failing_seed_names_itself_and_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Flights, "forget", lambda flights, flight: None)
    assert main(["--seeds", "0", "2"]) == 1
    said = capsys.readouterr().out
    assert "seed 0: " in said
    assert "replay: python -m tests.runtime.server.simulation --seed 0 --trace" in said
    assert "2 seeds, 2 failed" in said
    assert main(["--seed", "0", "--trace"]) == 1
    said = capsys.readouterr().out
    assert "faults:" in said
    assert "VIOLATION seed 0: " in said
    monkeypatch.undo()
    assert main(["--seed", "0"]) == 0


def test_the_golden_text_has_whole_characters_and_ends_before_the_stop_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """a, é, half of an é that nothing completes, a, half of an é."""
    script = [0, 1, 2, 1, 0, 1]
    monkeypatch.setattr(sim_golden, "drawn_behind", lambda tokens: script[len(tokens) - 2])

    def say(**options: Any) -> tuple[list[int], str, str, FinishReason]:
        said = sim_golden.golden(GenerateRequest("r", (3, 3), SamplingParams(max_new_tokens=6, **options)), 128)
        return list(said.tokens), said.text, said.uncut, said.reason

    assert say() == (script, "aé\ufffda", "aé\ufffda", FinishReason.LENGTH)
    assert say(stop=("é",)) == ([0, 1, 2], "a", "aé", FinishReason.STOP)
    assert say(stop=("a\ufffd", "\ufffda")) == ([0, 1, 2, 1, 0], "aé", "aé\ufffda", FinishReason.STOP)
    assert say(stop_token_ids=(2,)) == ([0, 1, 2], "a", "a", FinishReason.STOP)
    short = sim_golden.golden(GenerateRequest("r", (3, 3), SamplingParams(max_new_tokens=6)), 4)
    assert (short.tokens, short.text) == ((0, 1), "a")


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_time_jumps_and_timeouts_come_when_they_are_due() -> None:
    loop = VirtualLoop()

    async def wait() -> float:
        await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Future()
        return asyncio.get_running_loop().time()

    assert loop.run(wait()) == pytest.approx(3605)
    loop.close()


def test_who_waits_for_nothing_is_told() -> None:
    loop = VirtualLoop()
    with pytest.raises(Stuck):
        loop.run(asyncio.Future(loop=loop))
    loop.close()
