"""A running stream: the queue an author appends to, and the loop's work on it.

Two sides meet here. The author's side (any thread) appends items and registers the names they will fill; it never
blocks. The loop's side executes the items in order and moves the cursor; a stream has a task only while it has work.
How each kind of node is executed stands in steps.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from palmette.errors import (
    BlockingRead,
    BranchEnded,
    Cancelled,
    InvalidOption,
    PalmetteError,
    ProgramError,
    UnknownHole,
)
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.hole import Hole, filled_hole
from palmette.interpreter.item import Item, SavePoint, hole_name, settle
from palmette.interpreter.names import Names
from palmette.interpreter.promise import Promise
from palmette.interpreter.run import MAX_BRANCHES, ProgramRun
from palmette.interpreter.steps import execute, tell_unused
from palmette.interpreter.support import check_supported
from palmette.interpreter.tracing import begin_hole
from palmette.interpreter.transcript import Transcript
from palmette.ir import (
    Checkpoint,
    Fork,
    Gen,
    Join,
    JoinMode,
    JoinPolicy,
    Node,
    Rollback,
    ScopeEnd,
    Select,
    SetVariable,
    SourcePos,
    StreamPath,
    author_position,
)
from palmette.types import Hints

_HOLE, _FORK, _CHECKPOINT, _ITEM = range(4)  # what a stream counts


class Stream:
    """One line of tokens being written; a fork makes more."""

    __slots__ = (
        "_children",
        "_counts",
        "_current",
        "_defined",
        "_ended",
        "_held",
        "_inherited",
        "_lock",
        "_named",
        "_names",
        "_pumping",
        "_queue",
        "_savepoints",
        "_scopes",
        "_task",
        "cancelled",
        "cursor",
        "error",
        "error_was_read",
        "fork_base",
        "hints",
        "path",
        "run",
        "scope_starts",
        "text_is_dropped",
        "transcript",
    )

    def __init__(self, run: ProgramRun, path: StreamPath = (), names: Names | None = None) -> None:
        self.run = run
        self.path = path
        self.cursor = Cursor()
        self.error: PalmetteError | None = None
        self.error_was_read = False  # or is told elsewhere, as the error of whatever aborted this stream
        self.cancelled = False
        self.text_is_dropped = False  # its join takes its names alone
        self.transcript = Transcript()
        self.scope_starts: list[tuple[str, int]] = []  # open variable scopes and the character they begin at
        self.fork_base: Cursor | None = None  # where a branch left its parent
        self.hints = Hints(program=run.program_id)  # of the next request; a branch's first one names its siblings

        self._lock = threading.Lock()
        self._queue: deque[Item] | None = None  # None = empty: a deque takes 760 bytes
        self._names = Names(names)
        self._inherited = names  # the parent's at the fork
        self._defined: dict[str, None] = {}  # names that a branch defined, in order
        self._named: dict[str, Future[Hole]] = {}  # observers waiting for a name to be appended
        self._scopes: list[str] = []
        self._savepoints: dict[int, SavePoint] = {}
        self._counts = [0, 0, 0, 0]  # of holes, forks, checkpoints, items
        self._children: list[tuple[int, Stream]] = []  # with the seq of their fork
        self._ended: str | None = None
        self._held = bool(path)  # a branch starts when its fork was executed
        self._pumping = False
        self._task: asyncio.Task[None] | None = None
        self._current: Item | None = None
        run.streams[path] = self

    # -- the author's side ------------------------------------------------------------------------------------------

    def append(self, node: Node) -> Hole | None:
        """Queue a node; returns the hole it fills, if any.

        Raises:
            UnsupportedConstraint, UnsupportedFeature: the backend cannot do it; nothing was queued.
        """
        check_supported(node, self.run.backend.capabilities, self.run.options)
        holes: dict[str, Hole] = {}
        hole: Hole | None = None
        if isinstance(node, Gen | Select):
            hole = Hole(node.name, node, self._count(_HOLE))
            holes[node.name or ""] = hole
            if isinstance(node, Gen) and node.reasoning is not None and node.name:
                name = f"{node.name}_reasoning_content"
                holes[name] = Hole(name, node, -1)
        elif isinstance(node, ScopeEnd):
            hole = holes[node.name] = Hole(node.name, node, -1)
        elif isinstance(node, SetVariable):
            hole = holes[node.name] = filled_hole(node.name, node.value)
        self._push(node, holes=holes)
        return hole

    def open_scope(self, name: str) -> None:
        self._scopes.append(name)

    def close_scope(self) -> None:
        self._scopes.pop()

    def fork(self, size: int, source: SourcePos | None) -> list[Stream]:
        """Declare `size` branches; they start where the stream stands when it gets here."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidOption("fork", size, "a number of branches >= 1").at(source=source)
        if len(self.run.streams) + size > MAX_BRANCHES:
            raise InvalidOption("fork", size, f"at most {MAX_BRANCHES} live branches in one program").at(source=source)
        self._check_open(source)
        index = self._count(_FORK)
        with self._lock:
            names = self._names.share()
        branches = [Stream(self.run, (*self.path, index, i), names) for i in range(size)]
        item = self._push(Fork(index, size, source), branches=branches)
        with self._lock:
            self._children.extend((item.seq, branch) for branch in branches)
        return branches

    def join(self, branches: Iterable[Stream], mode: JoinMode, policy: JoinPolicy, source: SourcePos | None) -> None:
        """End the branches and take over what `mode` says of them."""
        branches = tuple(branches)
        self._check_open(source)
        for branch in branches:
            branch.end("it was joined")
            branch.text_is_dropped = mode != "concate_and_append"
        names: tuple[str, ...] = ()
        if mode != "concate_and_append":
            names = tuple(dict.fromkeys(name for b in branches for name in b.own_names()))
        node = Join(branches[0].path[-2] if branches else 0, mode, policy, names, source)
        self._push(node, holes={name: Hole(name, node, -1) for name in names}, branches=branches)

    def checkpoint(self, source: SourcePos | None) -> int:
        index = self._count(_CHECKPOINT)
        with self._lock:
            save = SavePoint(self._names.share())
        save.seq = self._push(Checkpoint(index, source), save=save).seq
        self._savepoints[index] = save
        return index

    def rollback(self, index: int, source: SourcePos | None) -> None:
        """Undo what was appended since the checkpoint, also what is still being generated, here and in branches."""
        save = self._savepoints.get(index)
        if save is None:
            raise ProgramError("no such checkpoint in this stream, or it was rolled back itself", source=source)
        self._check_open(source)
        dropped: list[Item] = []
        with self._lock:
            while self._queue and self._queue[-1].seq > save.seq:
                dropped.append(self._queue.pop())
            self._names = Names(save.names)
            if self._current is not None and self._current.seq > save.seq:
                self._current.dropped = True
            branches = [branch for seq, branch in self._children if seq > save.seq]
        self._savepoints = {k: v for k, v in self._savepoints.items() if v.seq <= save.seq}
        error = Cancelled("rolled back before it was filled", source=source)
        for item in dropped:
            self.run.executor.call(settle, item, error)
        for branch in branches:
            branch.cancel(error, "it was rolled back")
        self._push(Rollback(index, source), save=save)
        self.run.executor.call(self._interrupt_dropped)

    def end(self, why: str) -> None:
        """Accept nothing more; `why` completes the sentence of BranchEnded."""
        self._ended = self._ended or why

    def barrier(self) -> Future[None]:
        """Done when everything appended so far was executed, or failed; an ended stream has barriers too."""
        done: Promise[None] = Promise()
        self._push(None, done=done)
        return done

    def own_names(self) -> list[str]:
        """Names that the parent did not have at the fork."""
        with self._lock:
            inherited = self._inherited or Names()
            return [name for name in self._defined if name in self._names and name not in inherited]

    def read(self, name: str) -> Any:
        """The value of a hole; blocks until that hole is filled, and no longer.

        Raises:
            UnknownHole, BlockingRead, or whatever the hole failed with.
        """
        hole = self.hole(name)
        if not hole.is_done and runs_event_loop():
            raise BlockingRead(name)
        return self.value(hole)

    def value(self, hole: Hole) -> Any:
        """The value of a filled hole, or its error, which counts as read from now on."""
        try:
            return hole.future.result().value
        except PalmetteError:
            self.error_was_read = True
            raise

    def read_last(self) -> Any:
        raise UnknownHole("a hole without a name is read where it is appended: value = s.gen(...)")

    def host_step(self, name: str, source: SourcePos | None) -> None:
        """Python decides: nothing to execute."""

    @property
    def is_idle(self) -> bool:
        """Everything appended so far was executed; true as soon as the last hole is filled."""
        with self._lock:
            current = self._current
            return not self._queue and (
                current is None or (bool(current.holes) and all(hole.is_done for hole in current.holes.values()))
            )

    @property
    def is_last_use(self) -> bool:
        """Nothing will extend the tokens of the hole that is being filled."""
        if not self.text_is_dropped or self._ended is None:
            return False
        with self._lock:
            return not any(isinstance(item.node, Gen | Select | Fork | Rollback) for item in self._queue or ())

    def names(self) -> list[str]:
        with self._lock:
            return list(self._names)

    def find(self, name: str) -> Hole | None:
        return self._names.get(name)

    def hole(self, name: str) -> Hole:
        """Raises UnknownHole for a name that nothing appended so far defines."""
        hole = self._names.get(name)
        if hole is None:
            raise self._unknown(name, author_position())
        return hole

    def when_named(self, name: str) -> Future[Hole]:
        """The hole of that name as soon as the program appends it; if it ends without, what it failed with, or
        UnknownHole."""
        with self._lock:
            hole = self._names.get(name)
            if hole is not None:
                found: Promise[Hole] = Promise()
                found.set_result(hole)
                return found
            if not self.run.is_over:
                return self._named.setdefault(name, Promise())
        failed: Promise[Hole] = Promise()
        failed.set_exception(self.run.failure or self._unknown(name))
        return failed

    def give_up_names(self) -> None:
        """The body is over: nobody will append what observers still wait for."""
        with self._lock:
            waiting, self._named = self._named, {}
        for name, future in waiting.items():
            future.set_exception(self.run.failure or self._unknown(name))

    def cancel(self, error: PalmetteError, why: str = "it was cancelled") -> None:
        """Accept nothing more and abort what is unfinished, here and in every branch below."""
        for stream in self._family():
            stream.end(why)
        self.run.executor.call(self.abort, error)

    def _unknown(self, name: str, source: SourcePos | None = None) -> UnknownHole:
        if name in self._scopes:
            what = f"variable scope {name!r} is still open: its text is complete behind the `with` block"
        else:
            known = ", ".join(repr(n) for n in self.names()) or "none"
            what = f"no expression appended so far defines {name!r}; defined are: {known}"
        return UnknownHole(what, source=source)

    def _check_open(self, source: SourcePos | None) -> None:
        if self._ended is not None:
            raise BranchEnded(f"nothing can be appended to this stream: {self._ended}", source=source)

    def _family(self) -> list[Stream]:
        """This stream and every branch below."""
        family = [self]
        for stream in family:
            with stream._lock:
                family.extend(branch for _, branch in stream._children)
        return family

    def _push(
        self,
        node: Node | None,
        *,
        holes: dict[str, Hole] | None = None,
        branches: Iterable[Stream] = (),
        save: SavePoint | None = None,
        done: Future[None] | None = None,
    ) -> Item:
        if node is not None:
            self._check_open(node.source)
        item = Item(self._count(_ITEM), node, holes or {}, tuple(branches), save, done)
        with self._lock:
            if self._queue is None:
                self._queue = deque()
            self._queue.append(item)
            for name, hole in item.holes.items():
                if name:
                    self._names[name] = hole
                    if self.path:
                        self._defined[name] = None
            found = [(f, item.holes[n]) for n, f in self._named.items() if n in item.holes]
            for name in item.holes:
                self._named.pop(name, None)
            start = not self._pumping and not self._held
            self._pumping = self._pumping or start
        for future, hole in found:
            future.set_result(hole)
        if start:
            self.run.executor.call(self._start)
        return item

    def _count(self, what: int) -> int:
        with self._lock:
            number = self._counts[what]
            self._counts[what] = number + 1
        return number

    # -- the loop's side --------------------------------------------------------------------------------------------

    def release(self, base: Cursor, hints: Hints) -> None:
        """A branch starts: its fork was executed."""
        self.cursor = self.fork_base = base
        self.hints = hints
        self.transcript.begin(base)
        self._unhold()

    def abort(self, error: PalmetteError) -> None:
        """Fail what is unfinished, here and in every branch below, and tell the backend who will not come."""
        for stream in self._family():
            stream.fail(error)
            tell_unused(self.run, [stream])

    def fail(self, error: PalmetteError) -> None:
        """Fail what is unfinished in this stream, and whatever is still appended to it."""
        self.cancelled = True
        if self.error is None:
            self.error, self.error_was_read = error, True
        if self._task is not None and self._current is not None:
            self._task.cancel()
        self._unhold()

    def watch(self, *, to_end: bool) -> Hole:
        """The whole text: what is there now, then what comes until the program's end, or until everything appended so
        far was executed."""
        watcher = self.transcript.watch(self.cursor.text_from(0))
        if not to_end:
            self.barrier().add_done_callback(lambda _: self.transcript.dismiss(watcher, self.error))
        elif self.run.is_over:
            self.transcript.dismiss(watcher, self.run.failure)
        return watcher

    def forget_children(self, branches: Iterable[Stream]) -> None:
        """Joined branches are settled; the run need not hold them. Branches below them that nobody joined stay."""
        gone = set(branches)
        with self._lock:
            left = [(seq, branch) for seq, branch in self._children if branch not in gone]
            joined = [(seq, branch) for seq, branch in self._children if branch in gone]
            self._children = left + [(seq, below) for seq, branch in joined for _, below in branch._children]
        for branch in gone:
            self.run.streams.pop(branch.path, None)

    def _unhold(self) -> None:
        with self._lock:
            self._held = False
            start = not self._pumping and bool(self._queue)
            self._pumping = self._pumping or start
        if start:
            self._start()

    def _start(self) -> None:
        self._task = self.run.executor.loop.create_task(self._pump())

    async def _pump(self) -> None:
        """Execute items until the queue is empty."""
        while True:
            with self._lock:
                if not self._queue:
                    self._pumping = False
                    self._task = None
                    return
                item = self._current = self._queue.popleft()
                if not self._queue:
                    self._queue = None
            span = None
            try:
                if self.error is None or isinstance(item.node, Rollback):
                    span = begin_hole(self.run, item) if self.run.span is not None else None
                    rest = execute(self, item)
                    if rest is not None:
                        await rest
                error = self.error
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
                error = self.error or Cancelled("cancelled before it was filled", hole=hole_name(item))
                if not item.dropped:
                    self.error = error
            except PalmetteError as caught:
                error = caught.at(hole=hole_name(item), source=item.node.source if item.node else None)
                self.error = None if item.dropped else error
            except BaseException as caught:  # noqa: BLE001 - every wait must end; the cause is chained
                error = ProgramError(f"{type(caught).__name__}: {caught}", hole=hole_name(item))
                error.__cause__ = caught
                error.at(source=item.node.source if item.node else None)
                self.error = None if item.dropped else error
            self.transcript.settled()
            with self._lock:
                self._current = None
            settle(item, error)
            if span is not None:
                span.end()

    def _interrupt_dropped(self) -> None:
        if self._task is not None and self._current is not None and self._current.dropped:
            self._task.cancel()


def runs_event_loop() -> bool:
    """Whether blocking this thread would stop an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
