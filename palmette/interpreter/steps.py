"""How each kind of node is executed, on the loop, against the stream's cursor and the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any

from palmette.errors import (
    BranchError,
    Cancelled,
    NoChatTemplate,
    ProgramError,
    TemplateError,
    TemplateNotIncremental,
    UnsupportedFeature,
)
from palmette.interpreter.choose import choose
from palmette.interpreter.complete import complete
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.hole import Filled, awaited
from palmette.ir import (
    Checkpoint,
    Fork,
    Gen,
    Join,
    RoleBegin,
    RoleEnd,
    Rollback,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVariable,
    Text,
    Tool,
)
from palmette.types import BranchesEnded, ForkDeclared, Hints, RolePieces, Usage

if TYPE_CHECKING:  # stream.py calls execute: types only
    from palmette.interpreter.item import Item
    from palmette.interpreter.run import ProgramRun
    from palmette.interpreter.stream import Stream


def execute(stream: Stream, item: Item) -> Awaitable[None] | None:
    """Execute one item, or return what is to be awaited for it; what it raises fails the item's holes and the stream.

    No coroutine of its own: it would be held by every hole that is being filled.
    """
    match item.node:
        case None | SetVariable():
            pass
        case Text(text=text) | Tool(signature=text):
            stream.cursor = stream.cursor.add(text)
            stream.transcript.emit(text)
        case Gen():
            return complete(stream, item.node, item.holes)
        case Select():
            return choose(stream, item.node, item.holes[item.node.name or ""])
        case RoleBegin(role=role):
            _begin_role(stream, role)
        case RoleEnd(role=role):
            _end_role(stream, role)
        case ScopeBegin(name=name):
            stream.scope_starts.append((name, stream.cursor.text_len))
        case ScopeEnd(name=name):
            if not stream.scope_starts:
                raise ProgramError(f"variable scope {name!r} ends, but a rollback went back to before it began")
            _, start = stream.scope_starts.pop()
            text = stream.cursor.text_from(start)
            item.holes[name].push(text)
            item.holes[name].fill(Filled(value=text, text=text))
        case Fork():
            _fork(stream, item)
        case Join():
            return _join(stream, item)
        case Checkpoint():
            _checkpoint(stream, item)
        case Rollback():
            _rollback(stream, item)
        case other:
            raise UnsupportedFeature(type(other).__name__, "this node cannot be run")
    return None


# -- roles ---------------------------------------------------------------------------------------------------------


def _begin_role(stream: Stream, role: str) -> None:
    cursor, backend = stream.cursor, stream.run.backend
    if cursor.role is not None:
        raise ProgramError(f"role {role!r} begins inside role {cursor.role.asked!r}: end that one first")
    written = role
    try:
        pieces = backend.role_pieces(cursor.messages, role)
    except TemplateNotIncremental:
        if stream.run.roles != "rerender":
            raise
        cursor, pieces = _rerendered(stream, role)
    except NoChatTemplate:
        raise
    except TemplateError:
        if role != "tool":
            raise
        written = "user"  # a template that knows no tools: their results come from the user
        pieces = backend.role_pieces(cursor.messages, written)
    stream.cursor = cursor.open_role(written, pieces, asked=role)
    stream.transcript.emit(pieces.begin)


def _end_role(stream: Stream, role: str) -> None:
    opened = stream.cursor.role
    if opened is None or opened.asked != role:
        what = f"{opened.asked!r} is open" if opened else "no role is open"
        raise ProgramError(f"role {role!r} ends, but {what}")
    stream.cursor = stream.cursor.close_role(opened)
    stream.transcript.emit(opened.end)


def _rerendered(stream: Stream, role: str) -> tuple[Cursor, RolePieces]:
    """Start over with the whole conversation rendered anew, as constants; the tokens lost are counted."""
    old, backend = stream.cursor, stream.run.backend
    before, pieces = backend.rerender(old.messages, role)
    cursor = Cursor(messages=old.messages, generated=old.generated)
    for piece in before:
        cursor = cursor.add(piece.text, special=piece.special)
    kept = backend.encode(cursor.pieces())
    had = old.chain.all_ids()
    same = next((i for i, (a, b) in enumerate(zip(had, kept, strict=False)) if a != b), min(len(had), len(kept)))
    stream.run.count(Usage(retokenized_tokens=len(had) - same))
    return cursor, pieces


# -- forks ---------------------------------------------------------------------------------------------------------


def _fork(stream: Stream, item: Item) -> None:
    run = stream.run
    stream.cursor = base = stream.cursor.flush(run.backend)
    size = sum(not branch.cancelled for branch in item.branches)
    if size > 1 and base.chain.length:
        run.backend.notify(ForkDeclared(run.program_id, base.chain, size, run.namespace))
    hints = Hints(program=run.program_id, shared_len=base.chain.length, siblings=size if size > 1 else 0)
    for branch in item.branches:
        branch.release(base, hints)


async def _join(stream: Stream, item: Item) -> None:
    assert isinstance(item.node, Join)
    node, branches = item.node, item.branches
    barriers = [asyncio.ensure_future(awaited(branch.barrier())) for branch in branches]
    if node.policy == "first_error":
        for waiter in asyncio.as_completed(barriers):
            await waiter
            if any(branch.error is not None for branch in branches):
                for branch in branches:
                    branch.abort(Cancelled("another branch of the fork failed first"))
    await asyncio.gather(*barriers)
    tell_unused(stream.run, branches)
    errors = [(i, branch.error) for i, branch in enumerate(branches) if branch.error is not None]
    if node.policy == "first_error":
        errors = [(i, e) for i, e in errors if not isinstance(e, Cancelled)] or errors
    for branch in branches:
        branch.error_was_read = True
    stream.forget_children(branches)
    if errors and node.policy != "collect":
        index, cause = errors[0]
        raise BranchError(index, cause, source=node.source) from cause
    if node.mode == "concate_and_append":
        _concatenate(stream, [branch for branch in branches if branch.error is None])
    else:
        _gather(item, branches, single=node.mode == "copy")


def _gather(item: Item, branches: tuple[Stream, ...], *, single: bool) -> None:
    for name, hole in item.holes.items():
        values = [_value_of(branch, name) for branch in branches]
        hole.fill(Filled(value=values[0] if single else values))


def _value_of(branch: Stream, name: str) -> Any:
    """The value, None where the branch has no such name, the error where the branch failed ("collect")."""
    hole = branch.find(name)
    if hole is None:
        return branch.error
    error = hole.future.exception()
    return error if error is not None else hole.future.result().value


def _concatenate(stream: Stream, branches: list[Stream]) -> None:
    """Each branch's tokens since the fork, behind the parent's, in fork order."""
    backend = stream.run.backend
    stream.cursor = stream.cursor.flush(backend)
    for branch in branches:
        branch.cursor = branch.cursor.flush(backend)
        base, cursor = branch.fork_base, branch.cursor
        assert base is not None, "a branch is released before it is joined"
        if cursor.role != base.role:
            error = ProgramError(
                f"the branch ends inside another role ({cursor.role and cursor.role.role}) than it began in"
            )
            raise BranchError(branch.path[-1], error)
        if not cursor.chain.extends(base.chain):
            error = ProgramError("the branch rendered the conversation anew: its tokens cannot follow its parent's")
            raise BranchError(branch.path[-1], error)
        text = cursor.text_from(base.text_len)
        ids = cursor.chain.ids_since(base.chain)
        begin = backend.begin_ids()
        if not base.chain.length and stream.cursor.chain.length and begin and ids[: len(begin)] == begin:
            ids = ids[len(begin) :]  # the branches began from nothing; only the first text of a stream has a beginning
        stream.cursor = stream.cursor.extend(ids, text, generated=cursor.generated - base.generated)
        if len(cursor.messages) > len(base.messages):
            stream.cursor = stream.cursor.with_messages(cursor.messages[len(base.messages) :])
        stream.transcript.emit(text)


def tell_unused(run: ProgramRun, branches: Iterable[Stream]) -> None:
    """Branches of one fork that never asked for anything will not use the prefix that is kept for them."""
    unused = [branch for branch in branches if branch.fork_base is not None and branch.hints.siblings]
    for branch in unused:
        branch.hints = Hints(program=run.program_id)
    if unused and (base := unused[0].fork_base) is not None and base.chain.length:
        run.backend.notify(BranchesEnded(run.program_id, base.chain, len(unused), run.namespace))


# -- checkpoints ---------------------------------------------------------------------------------------------------


def _checkpoint(stream: Stream, item: Item) -> None:
    assert item.save is not None, "a checkpoint comes with a place to keep what it saves"
    stream.cursor = stream.cursor.flush(stream.run.backend)
    item.save.cursor, item.save.scope_starts = stream.cursor, tuple(stream.scope_starts)


def _rollback(stream: Stream, item: Item) -> None:
    """Put the cursor back; an error that happened since the checkpoint is undone with the rest."""
    save = item.save
    if save is None or save.cursor is None or stream.cancelled:
        return  # it failed before the checkpoint, or was cancelled for good: it stays failed
    stream.error = None
    stream.error_was_read = False
    stream.run.count(Usage(wasted_tokens=stream.cursor.generated - save.cursor.generated))
    stream.cursor = save.cursor
    stream.scope_starts = list(save.scope_starts)
