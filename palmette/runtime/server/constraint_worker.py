"""The process that tries a constraint, so that whatever it costs is paid where nobody else waits.

    python -m palmette.runtime.server.constraint_worker

    stdin    a Setup, then one TrySpec or TryPattern after the other
    stdout   Ready, or Failed, for the setup; then one answer for each

A message is its length (4 bytes, big-endian) and that many bytes of msgpack, one of the closed structs below. A
specification travels as JSON text, whose escapes hold any string that Python does. What compiles here compiles in the
engine: the same `Compiler`, the first mask included; nothing that was compiled is kept.

stdin is the lease: its end ends the process, in the middle of a compilation too. Memory is bounded by RLIMIT_AS, in
addition to what the vocabulary takes; time by whoever asked, who kills, and by an alarm of this process's own, which
needs neither the asker nor the interpreter's lock. Knows nothing of requests, queues or clients.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Final, Never, TypeAlias

import msgspec

from palmette.errors import InvalidOption, UnsupportedConstraint, UnsupportedFeature
from palmette.ir.spec_data import spec_data, spec_of
from palmette.runtime.compiling import Compiler
from palmette.runtime.config import ConstraintConfig
from palmette.runtime.models.tokenizer_of import tokenizer_of
from palmette.specs import Spec

if sys.platform != "win32":
    import resource

MAX_MESSAGE: Final = 8 << 20  # bytes, in either direction
HEADER_BYTES: Final = 4
_MAX_TEXT: Final = 4000  # characters of one field of a refusal


class Setup(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    model_path: str
    config: ConstraintConfig
    memory_bytes: int  # beside what the vocabulary takes
    alarm_seconds: float  # after which one trial ends the process


class TrySpec(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    spec: str  # `spec_data` as JSON


class TryPattern(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    text: str  # as JSON


class Ready(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The vocabulary is there."""


class Accepted(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    unenforced: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An UnsupportedConstraint."""

    path: str
    keyword: str
    reason: str
    hint: str


class NotAllowed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An InvalidOption."""

    field: str
    value: str | int | float | bool | None
    allowed: str


class NotSupported(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An UnsupportedFeature."""

    feature: str
    reason: str


class OutOfMemory(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The limit on memory was met; the process leaves behind this."""


class Failed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Anything else; `message` is for the log."""

    message: str


ToWorker: TypeAlias = Setup | TrySpec | TryPattern
Verdict: TypeAlias = Accepted | Refused | NotAllowed | NotSupported
FromWorker: TypeAlias = Ready | Verdict | OutOfMemory | Failed

_TO_WORKER: Final[msgspec.msgpack.Decoder[ToWorker]] = msgspec.msgpack.Decoder(ToWorker)
_FROM_WORKER: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)


def try_spec(spec: Spec) -> TrySpec:
    return TrySpec(json.dumps(spec_data(spec)))


def try_pattern(text: str) -> TryPattern:
    return TryPattern(json.dumps(text))


def message(struct: ToWorker | FromWorker) -> bytes:
    """A struct with its length before it. `MAX_MESSAGE` is the sender's to respect."""
    body = msgspec.msgpack.encode(struct)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def from_worker(body: bytes) -> FromWorker:
    """
    Raises:
        msgspec.DecodeError: it is none of the structs.
    """
    return _FROM_WORKER.decode(body)


# -- the process -------------------------------------------------------------------------------------------------------


def main() -> Never:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    out = open(os.dup(1), "wb", buffering=0)  # noqa: SIM115 - as long as the process
    os.dup2(2, 1)  # whatever some library prints is no message
    inbox: SimpleQueue[ToWorker] = SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    setup = inbox.get()
    if not isinstance(setup, Setup):
        _leave(2)
    try:
        compiler = _compiler(setup)
        _limit_memory(setup.memory_bytes)
    except Exception as error:  # noqa: BLE001 - the parent is to know, whatever it is
        _send(out, Failed(_text(f"{type(error).__name__}: {error}")))
        _leave(1)
    _send(out, Ready())
    out_of_memory = message(OutOfMemory())  # made while there is some
    while True:
        order = inbox.get()
        _alarm(setup.alarm_seconds)
        try:
            answer = _answer(compiler, order)
        except MemoryError:
            out.write(out_of_memory)
            _leave(3)
        _alarm(0)
        _send(out, answer)


def _compiler(setup: Setup) -> Compiler:
    """With its vocabulary built, and keeping no more than what it compiled last."""
    tokenizer, _ = tokenizer_of(setup.model_path)
    limits = replace(setup.config.constraint_limits, cached_constraints=1)
    compiler = Compiler(tokenizer, replace(setup.config, constraint_limits=limits))
    _ = compiler.vocabulary
    return compiler


def _answer(compiler: Compiler, order: ToWorker) -> FromWorker:
    """
    Raises:
        MemoryError: the limit was met.
    """
    try:
        if isinstance(order, TrySpec):
            return Accepted(tuple(map(_text, compiler.compile(spec_of(json.loads(order.spec))).unenforced)))
        if isinstance(order, TryPattern):
            compiler.pattern(json.loads(order.text))
            return Accepted()
        return Failed("a second setup")
    except UnsupportedConstraint as error:
        return Refused(_text(error.path), _text(error.keyword), _text(error.reason), _text(error.hint))
    except InvalidOption as error:
        value = error.value if isinstance(error.value, int | float | None) else _text(str(error.value))
        return NotAllowed(_text(error.field), value, _text(error.allowed))
    except UnsupportedFeature as error:
        return NotSupported(_text(error.feature), _text(error.reason))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - one specification is one request's failure
        return Failed(f"{type(error).__name__} at {_place(error)}")


def _place(error: BaseException) -> str:
    """Where in the code it was raised: a log may say that, but not the text it was raised about."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _text(text: str) -> str:
    """A text that UTF-8 can write, and not a book."""
    text = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def _send(out: BinaryIO, answer: FromWorker) -> None:
    data = message(answer)
    if len(data) - HEADER_BYTES > MAX_MESSAGE:
        data = message(Refused("", "specification", "the list of what it leaves unenforced is too long", "shorten it"))
    try:
        while data:
            data = data[out.write(data) :]
    except OSError:
        _leave(0)  # nobody listens any more


def _listen(inbox: SimpleQueue[ToWorker]) -> None:
    """Read messages. The end of stdin, like anything that is no message, ends the process at once."""
    code = 2
    try:
        with open(0, "rb", closefd=False) as stream:
            while header := stream.read(HEADER_BYTES):
                size = int.from_bytes(header, "big")
                if len(header) < HEADER_BYTES or size > MAX_MESSAGE:
                    break
                body = stream.read(size)
                if len(body) < size:
                    break
                inbox.put(_TO_WORKER.decode(body))
            else:
                code = 0
    finally:
        _leave(code)


def _leave(code: int) -> Never:
    """Without waiting for the other thread."""
    os._exit(code)


def _limit_memory(num_bytes: int) -> None:
    """From here on the address space may grow by `num_bytes`; and a crash writes no core file with somebody's text."""
    if sys.platform == "win32":
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return  # where a process's address space says nothing of its memory
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _alarm(seconds: float) -> None:
    """The kernel ends this process after `seconds`; 0 = not any more."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
