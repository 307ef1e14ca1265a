"""Run records and replays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import palmette as pm
from palmette.cli import app
from palmette.interpreter.backends.local import Runtime
from palmette.lang.record import first_difference, read_record, replay
from palmette.runtime.models.tiny import tiny_model

PROGRAM = """
import palmette as pm

SUFFIX = " and"

@pm.function
def story(s, start):
    s += start + pm.gen("a", max_tokens=6, ignore_eos=True)
    with s.fork(2) as branches:
        branches += SUFFIX + pm.gen("b", max_tokens=4, ignore_eos=True)
"""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(tiny_model(), kv_tokens=2048) as runtime:
        yield runtime


@pm.function
def story(s: pm.State, start: str, suffix: str = " and") -> None:
    s += start + pm.gen("a", max_tokens=6, ignore_eos=True)
    with s.fork(2) as branches:
        branches += suffix + pm.gen("b", max_tokens=4, ignore_eos=True)


def test_a_replay_gives_the_same_tokens(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    story.run(start="Once", backend=runtime, temperature=0.9, record=str(path))
    record = read_record(path)
    assert [h["name"] for h in record["holes"]] == ["a", "b", "b"]
    again = replay(record, story, runtime)
    assert again["holes"] == record["holes"]


def test_the_first_difference_is_shown(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    story.run(start="Once", backend=runtime, temperature=0.9, seed=1, record=str(path))
    record = read_record(path)
    with pytest.raises(pm.ReplayMismatch, match=r"hole 0 \('a'\), token \d"):
        replay({**record, "seed": 2}, story, runtime)
    changed = json.loads(json.dumps(record))
    changed["holes"][2]["token_ids"][1] += 1
    assert "stream [0, 1], hole 0 ('b'), token 1" in str(first_difference(record, changed))
    del changed["holes"][1]
    assert "missing" in str(first_difference(record, changed))
    assert first_difference(record, record) is None


def test_an_argument_that_is_no_json_value_cannot_be_recorded(runtime: Runtime, tmp_path: Path) -> None:
    @pm.function
    def program(s: pm.State, thing: object) -> None:
        s += "x" + pm.gen("a", max_tokens=1)

    with pytest.raises(pm.UsageError, match="no JSON value"):
        program.run(thing=object(), backend=runtime, record=str(tmp_path / "run.json"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', "\x00"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(pm.UsageError, match=r"run\.json"):
        read_record(path)


def test_the_command_replays_and_tells(tmp_path: Path) -> None:
    file, record = tmp_path / "story.py", tmp_path / "run.json"
    file.write_text(PROGRAM)
    from palmette.cli import load_program

    with Runtime(model_path="tiny") as runtime:
        load_program(f"{file}:story").run(start="Once", backend=runtime, seed=3, record=str(record))
    done = CliRunner().invoke(app, ["replay", str(record), f"{file}:story", "--model", "tiny"])
    assert done.exit_code == 0
    assert "same: 3 holes, 14 tokens" in done.output
    file.write_text(PROGRAM.replace('" and"', '" or"'))
    done = CliRunner().invoke(app, ["replay", str(record), f"{file}:story", "--model", "tiny"])
    assert done.exit_code == 1
    assert "different: stream [0, 0], hole 0 ('b')" in done.output


def test_the_command_traces(tmp_path: Path) -> None:
    file = tmp_path / "story.py"
    file.write_text(PROGRAM)
    done = CliRunner().invoke(app, ["trace", f"{file}:story"])
    assert done.exit_code == 0
    assert "fork 0 into 2" in done.output


@pytest.mark.parametrize("name", ["nowhere.py:x", "story", ":x"])
def test_a_program_that_is_not_there_is_named(name: str) -> None:
    done = CliRunner().invoke(app, ["trace", name])
    assert isinstance(done.exception, pm.UsageError)
