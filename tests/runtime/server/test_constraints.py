"""Constraints tried by real worker processes: the same verdicts as compiling here, whatever the worker goes through."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fsm_bombs import OPEN, optional_properties
from palmette.errors import EngineDied, InvalidOption, Overloaded, RequestError, UnsupportedConstraint
from palmette.fsm.limits import Limits
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.compiling import Compiler
from palmette.runtime.config import ConstraintConfig
from palmette.runtime.server import constraints
from palmette.runtime.server.constraint_worker import (
    MAX_MESSAGE,
    Accepted,
    Ready,
    Setup,
    from_worker,
    message,
    try_pattern,
    try_spec,
)
from palmette.runtime.server.constraints import ConstraintWorkers
from palmette.specs import Choices, Concat, Grammar, JsonSchema, Reasoned, Regex, SchemaOptions, Spec, Tag, Tagged

WORKER = [sys.executable, "-m", "palmette.runtime.server.constraint_worker"]
LONG = ConstraintConfig(constraint_limits=Limits(compile_seconds=100))  # so that the bomb goes off
SLOW = JsonSchema.of(optional_properties(3000))  # a good part of a second
LENIENT = SchemaOptions(strict=False)

GOOD: dict[str, Spec] = {
    "regex": Regex(r"\+49-[0-9]{3,5}"),
    "schema": JsonSchema.of({"type": "object", "properties": {"a": {"type": "string"}}}),
    "unenforced": JsonSchema.of({"type": "array", "items": {"type": "array", "uniqueItems": True}}, LENIENT),
    "grammar": Grammar('root ::= "(" [a-c]+ root? ")"'),
    "tool call": Tagged((Tag("<|im_start|>", Choices(("rhubarb", "Größe")), "</call>"),)),
    "reasoned": Reasoned("</think>", Regex("[0-9]+"), budget=16),
}
BAD: dict[str, Spec] = {
    "empty": Regex("(?=a)b"),
    "nested": Concat(("x", JsonSchema.of({"type": "object", "properties": {"a": {"uniqueItems": True}}}))),
    "no schema": JsonSchema("{"),
    "keyword": JsonSchema.of({"type": "string", "pattern": "a{200000}"}),
    "surrogate": Regex("a\ud800"),
    "over a limit": Regex("((a{0,100}){0,100}){0,100}"),
    "too long": Regex("a" * (1 << 20)),
}


def bomb(number: int = 0) -> JsonSchema:
    """Takes many seconds; another number is another specification."""
    return JsonSchema(dict(OPEN)["100 conditions"].text + " " * number)  # type: ignore[union-attr]


@asynccontextmanager
async def workers(**options: Any) -> AsyncIterator[ConstraintWorkers]:
    made = ConstraintWorkers("tiny", **options)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def run(body: Callable[[ConstraintWorkers], Any], **options: Any) -> None:
    """`body` with started workers, which leave nothing behind."""

    async def main() -> None:
        async with workers(**options) as made, asyncio.timeout(60):
            await body(made)
            pids = made.pids
        assert made.pids == ()
        assert not any(map(lives, pids))

    asyncio.run(main())


def lives(pid: int) -> bool:
    """Is there a process of this id that is more than an entry in a table?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def begun(made: ConstraintWorkers, spec: Spec) -> asyncio.Task[tuple[str, ...]]:
    """A check that a worker, warm already, has been at for a moment."""
    tried = made.num_tried
    task = asyncio.create_task(made.check(spec))
    await until(lambda: made.num_tried > tried)
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_verdicts_are_those_of_compiling_here() -> None:
    here = Compiler(ByteTokenizer())

    async def body(made: ConstraintWorkers) -> None:
        for spec in GOOD.values():
            assert await made.check(spec) == here.compile(spec).unenforced
        assert await made.check(GOOD["unenforced"]) != ()
        for name, spec in BAD.items():
            with pytest.raises(UnsupportedConstraint) as ours:
                here.compile(spec)
            for _ in range(2):  # tried, and remembered
                with pytest.raises(UnsupportedConstraint) as theirs:
                    await made.check(spec)
                assert fields(theirs.value) == fields(ours.value), name
                assert str(theirs.value) == str(ours.value)
        assert made.num_tried == len(GOOD) + len(BAD)

    run(body)


def fields(error: UnsupportedConstraint) -> tuple[str, str, str, str]:
    return error.path, error.keyword, error.reason, error.hint


def test_stop_patterns_are_judged_as_the_engine_judges_them() -> None:
    here = Compiler(ByteTokenizer())

    async def body(made: ConstraintWorkers) -> None:
        await made.check_pattern(r"\n\n+")
        for text in ("a*", "^a"):
            with pytest.raises(InvalidOption) as ours:
                here.pattern(text)
            with pytest.raises(InvalidOption) as theirs:
                await made.check_pattern(text)
            assert str(theirs.value) == str(ours.value)
            assert (theirs.value.field, theirs.value.value) == ("stop_regex", text)
        for text in ("a(", "\udfff"):
            with pytest.raises(UnsupportedConstraint) as refused:
                here.pattern(text)
            with pytest.raises(UnsupportedConstraint) as refused_there:
                await made.check_pattern(text)
            assert fields(refused_there.value) == fields(refused.value)

    run(body)


def test_the_limits_are_those_of_the_config() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a{5}"))
        with pytest.raises(UnsupportedConstraint, match=r"spec_bytes|repeat"):
            await made.check(Regex("a{6}"))

    run(body, config=ConstraintConfig(constraint_limits=Limits(repeat=5)))


def test_what_no_message_holds_is_refused_here() -> None:
    async def body(made: ConstraintWorkers) -> None:
        with pytest.raises(UnsupportedConstraint, match="bytes"):
            await made.check(Regex("a" * MAX_MESSAGE))
        assert made.num_tried == 0

    run(body)


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_the_last_verdicts_are_remembered_and_no_more() -> None:
    async def body(made: ConstraintWorkers) -> None:
        a, b, c = Regex("a"), Regex("b"), Regex("c")
        for spec in (a, b, a, c):  # b is the one not used for longest
            await made.check(spec)
        assert made.num_tried == 3
        await made.check(a)
        assert made.num_tried == 3
        await made.check(b)
        assert made.num_tried == 4

    run(body, known=2)


def test_verdicts_are_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "KNOWN_BYTES", 3000)

    async def body(made: ConstraintWorkers) -> None:
        large = [Regex(letter * 1300) for letter in "abc"]
        for spec in large:
            await made.check(spec)
        await made.check(large[2])
        assert made.num_tried == 3
        await made.check(large[0])
        assert made.num_tried == 4

    run(body)


def test_who_asks_for_what_is_being_tried_waits_for_the_same_verdict() -> None:
    async def body(made: ConstraintWorkers) -> None:
        assert (
            await asyncio.gather(*(made.check(GOOD["unenforced"]) for _ in range(5))) == [("/items uniqueItems",)] * 5
        )
        assert made.num_tried == 1

    run(body)


def test_a_text_is_not_taken_for_the_specification_that_it_would_be() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a*"))
        with pytest.raises(InvalidOption):
            await made.check_pattern("a*")

    run(body)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_what_takes_too_long_is_refused_and_the_next_is_served() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        before = made.pids
        with pytest.raises(UnsupportedConstraint, match=r"longer than 0\.4 s") as caught:
            await made.check(bomb())
        assert caught.value.hint
        assert made.num_killed == 1
        assert not any(map(lives, before))
        await made.check(Regex("b"))
        with pytest.raises(UnsupportedConstraint, match="longer"):
            await made.check(bomb())
        assert made.num_tried == 3  # the bomb only once

    run(body, config=LONG, timeout=0.4)


def test_a_second_worker_serves_the_others_meanwhile() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        slow = await begun(made, bomb())
        await made.check(Regex("b"))
        assert not slow.done()
        assert len(made.pids) == 2
        assert lives(made.pids[0])

    run(body, config=LONG, timeout=30)


def test_a_check_that_is_cancelled_before_its_turn_is_never_tried() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        slow = [await begun(made, bomb(0)), await begun(made, bomb(1))]
        waiting = [asyncio.create_task(made.check(Regex(text))) for text in "bccd"]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        results = await asyncio.gather(*slow, *waiting, return_exceptions=True)
        assert [type(r) for r in results[:4]] == [UnsupportedConstraint] * 2 + [asyncio.CancelledError] * 2
        assert results[4:] == [(), ()]  # one asked for c and went, another stayed
        assert made.num_tried == 1 + 2 + 2

    run(body, config=LONG, timeout=1)


def test_a_trial_goes_on_when_who_asked_for_it_has_gone() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        task = await begun(made, SLOW)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await made.check(SLOW) == ()
        assert made.num_tried == 2

    run(body, timeout=30)


def test_memory_is_bounded_and_the_next_is_served() -> None:
    hungry = JsonSchema.of({"type": "string", "allOf": [{"pattern": f"a.{{0,{i}}}b"} for i in range(30, 60)]})

    async def body(made: ConstraintWorkers) -> None:
        for _ in range(2):
            with pytest.raises(UnsupportedConstraint, match="more than 24 MiB"):
                await made.check(hungry)
            await made.check(Regex("a"))
        assert made.num_tried == 2

    run(body, config=LONG, timeout=30, memory_bytes=24 << 20)

    async def roomy(made: ConstraintWorkers) -> None:
        assert await made.check(hungry) == ()

    run(roomy, config=LONG, timeout=30)


def test_a_worker_that_is_killed_is_replaced_and_nobody_notices() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        task = await begun(made, SLOW)
        (first,) = made.pids
        os.kill(first, signal.SIGKILL)
        assert await task == ()
        assert first not in made.pids
        os.kill(made.pids[0], signal.SIGKILL)  # while it has nothing to do
        assert await made.check(Regex("b")) == ()

    run(body, timeout=30)


def test_what_kills_two_workers_is_refused() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        task = await begun(made, bomb())
        (first,) = made.pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: bool(made.pids) and made.pids != (first,))
        os.kill(made.pids[0], signal.SIGKILL)
        with pytest.raises(UnsupportedConstraint, match="died twice"):
            await task
        assert await made.check(Regex("b")) == ()

    run(body, config=LONG, timeout=30)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "MAX_WAITING", 2)

    async def body(made: ConstraintWorkers) -> None:
        tasks = [asyncio.create_task(made.check(Regex(text))) for text in "abc"]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:2] == [(), ()]
        assert isinstance(results[2], Overloaded)

    run(body)


def test_a_worker_that_cannot_start_says_why_in_the_log_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))

    async def main() -> None:
        made = ConstraintWorkers(str(tmp_path / "broken.gguf"))
        await made.start()
        with pytest.raises(RequestError) as caught:
            await made.check(Regex("a"))
        assert "broken" not in str(caught.value)
        await made.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "broken.gguf is corrupt" in caplog.text


def test_closing_tells_those_who_wait_and_leaves_no_process() -> None:
    async def main() -> None:
        made = ConstraintWorkers("tiny", config=LONG, timeout=30)
        await made.start()
        await made.check(Regex("a"))
        tasks = [await begun(made, bomb()), asyncio.create_task(made.check(Regex("b")))]
        await until(lambda: len(made.pids) == 1)
        pids = made.pids
        await made.close()
        for task in tasks:
            with pytest.raises(EngineDied):
                await task
        with pytest.raises(EngineDied):
            await made.check(Regex("c"))
        await made.close()
        assert not any(map(lives, pids))

    asyncio.run(main())


def test_closing_before_anything_happened_leaves_no_process() -> None:
    async def main() -> None:
        made = ConstraintWorkers("tiny")
        await made.start()
        (pid,) = made.pids
        await made.close()
        assert not lives(pid)

    asyncio.run(main())


# -- the process -------------------------------------------------------------------------------------------------------


class Spoken:
    """A worker spoken to by hand."""

    def __init__(self, *, alarm_seconds: float = 60) -> None:
        self.process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.say(message(Setup("tiny", LONG, 1 << 30, alarm_seconds)))
        assert self.hear() == Ready()

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def hear(self) -> object:
        assert self.process.stdout is not None
        return from_worker(self.process.stdout.read(int.from_bytes(self.process.stdout.read(4), "big")))

    def ended(self) -> int:
        """Its exit status; its stdin stays open."""
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.communicate()


def test_the_end_of_stdin_ends_the_worker_in_the_middle_of_a_compilation() -> None:
    worker = Spoken()
    worker.say(message(try_spec(bomb())))
    time.sleep(0.1)
    assert worker.process.poll() is None
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.process.stdin = None
    assert worker.ended() == 0


def test_its_own_alarm_ends_a_worker_that_nobody_kills() -> None:
    worker = Spoken(alarm_seconds=1.0)
    worker.say(message(try_pattern("a")))
    assert worker.hear() == Accepted()
    time.sleep(1.2)
    worker.say(message(try_pattern("b")))  # it rings for trials, not for waiting
    assert worker.hear() == Accepted()
    worker.say(message(try_spec(bomb())))
    assert worker.ended() == -signal.SIGALRM


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\x00\x00\x00\x05hello", b"\x00\x00\x00\x01\x80", message(Ready())],
    ids=["too long", "no msgpack", "no kind", "another's"],
)
def test_what_is_no_message_ends_the_worker(data: bytes) -> None:
    worker = Spoken()
    worker.say(data)
    assert worker.ended() == 2


def test_a_worker_leaves_when_its_parent_is_killed() -> None:
    code = (
        "import asyncio\n"
        "from palmette.runtime.server.constraints import ConstraintWorkers\n"
        "from tests.runtime.server.test_constraints import LONG, bomb, begun\n"
        "from palmette.specs import Regex\n"
        "async def main():\n"
        "    made = ConstraintWorkers('tiny', config=LONG, timeout=60)\n"
        "    await made.check(Regex('a'))\n"
        "    await begun(made, bomb())\n"
        "    print(*made.pids, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    try:
        (pid,) = map(int, parent.stdout.readline().split())
        assert lives(pid)
    finally:
        parent.kill()
        parent.communicate()
    asyncio.run(until(lambda: not lives(pid)))


def test_neither_side_imports_torch() -> None:
    async def body(made: ConstraintWorkers) -> None:
        await made.check(Regex("a"))
        maps = Path(f"/proc/{made.pids[0]}/maps").read_text(encoding="utf-8")
        assert "numpy" in maps
        assert "torch" not in maps

    run(body)
    for module in ("constraints", "front_process"):
        code = f"import sys, json, palmette.runtime.server.{module}; print(json.dumps(sorted(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        modules = json.loads(done.stdout)
        assert "palmette.runtime.server.constraint_worker" in modules
        assert not {"torch", "transformers"} & set(modules)
