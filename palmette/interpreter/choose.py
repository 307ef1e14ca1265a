"""Filling a `select` hole: tokenize the choices at the seam, score their trie in one pass, decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from palmette.errors import ProgramError
from palmette.interpreter.choices import ChoicesSamplingMethod, build_trie, pick_by_temperature, score_choices
from palmette.interpreter.complete import next_hints, with_prompt
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.hole import Filled, Hole
from palmette.interpreter.meta import usage_info
from palmette.interpreter.run import HoleRecord
from palmette.interpreter.seeds import draw_key
from palmette.ir import Select
from palmette.types import Backend, FinishReason, ScoreRequest, TextPiece

if TYPE_CHECKING:  # stream.py reaches this through steps.py: types only
    from palmette.interpreter.stream import Stream

_TAIL = 256  # characters of pending text that are tokenized together with each choice


async def choose(stream: Stream, node: Select, hole: Hole) -> None:
    """Score every choice in one forward pass and go on with the one its rule picks."""
    run, rule = stream.run, node.rule
    if not isinstance(rule, ChoicesSamplingMethod):
        raise ProgramError(f"choices_method {rule!r} has no decide(scored) method")
    await run.purse.reserve(0, 1)
    cursor, tails = _at_the_seam(stream.cursor, node.choices, run.backend)
    trie, paths = build_trie(tails)
    request = ScoreRequest(
        request_id=run.executor.next_request_id(),
        token_ids=cursor.chain,
        trie=trie,
        unconditional=rule.needs_unconditional,
        hints=next_hints(stream),
        namespace=run.namespace,
        timeout=run.options.timeout,
    )
    event = await run.executor.score(run.backend, request)
    scored = score_choices(node.choices, trie, paths, event.logprobs, event.unconditional)
    decision = rule.decide(scored)
    uniform = (draw_key(run.seed, stream.path, hole.index, 0) >> 11) / 2.0**53
    decision = pick_by_temperature(decision, scored, node.temperature, uniform)

    choice, ids = decision.decision, tails[decision.index]
    stream.cursor = cursor.extend(ids, choice)
    stream.transcript.emit(choice)
    run.count(event.usage)
    run.records.append(HoleRecord(stream.path, hole.index, node.name, 0, tuple(ids), choice, FinishReason.STOP.value))
    hole.push(choice)
    meta = {"id": request.request_id, **usage_info(event.usage), **decision.meta_info}
    hole.fill(Filled(value=choice, text=choice, token_ids=tuple(ids), usage=event.usage, meta=meta))


def _at_the_seam(cursor: Cursor, choices: tuple[str, ...], backend: Backend) -> tuple[Cursor, list[list[int]]]:
    """Tokenize pending text and choices as if each choice had been written in one go with the text before it.

    Returns a cursor behind the tokens that no choice changes, and each choice's tokens from there on: where a choice
    merges with the end of the pending text, the merged tokens are the choice's. Text that was generated is not touched.
    """
    pieces = cursor.pieces()
    if not pieces:
        return with_prompt(cursor, backend), [backend.encode([TextPiece(choice)]) for choice in choices]
    whole = backend.encode(pieces)
    fixed, tail = _tail(pieces, whole, backend)
    alone = whole[fixed:]
    full = [backend.encode([*tail, TextPiece(choice)]) for choice in choices]
    keep = min(_common_len(alone, ids) for ids in full)
    begin = () if cursor.chain.length or pieces[0].special else backend.begin_ids()
    if not cursor.chain.length and not begin and fixed + keep == 0:  # nothing would be left to stand before the choices
        return with_prompt(cursor, backend), [backend.encode([TextPiece(choice)]) for choice in choices]
    text = "".join(piece.text for piece in pieces)
    return cursor.extend([*begin, *whole[: fixed + keep]], text), [ids[keep:] for ids in full]


def _tail(pieces: list[TextPiece], whole: list[int], backend: Backend) -> tuple[int, list[TextPiece]]:
    """The end of the pending text that has to be tokenized with every choice, and how many tokens stand before it.

    Long text is cut before a word, if the two parts tokenize as the whole does; else all of it is the tail.
    """
    last = pieces[-1]
    cut = last.text.rfind(" ", 0, max(0, len(last.text) - _TAIL))
    if cut <= 0:
        return 0, pieces
    left = backend.encode([*pieces[:-1], TextPiece(last.text[:cut], last.special)])
    right = [TextPiece(last.text[cut:], last.special)]
    return (len(left), right) if left + backend.encode(right) == whole else (0, pieces)


def _common_len(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
