"""Token healing: where a hole follows text that nobody generated, the seam between the two is the model's to tokenize.

    "The link is http:"   tokens  The| link| is| http|:      the model has "://" as one token
    healed                tokens  The| link| is| http        and the hole's text must begin with ":"

The last token of the pending text is taken back: more of them only where it ends inside a character. Template text and
tokens that were generated are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from palmette.interpreter.cursor import Cursor
from palmette.types import Backend, SamplingParams

_MOST = 4  # tokens: the longest character has so many bytes


@dataclass(frozen=True, slots=True)
class Seam:
    """What was taken back."""

    cursor: Cursor  # in front of it
    prefix: str  # its text, with which the hole's text must begin
    token_ids: tuple[int, ...]


def heal(before: Cursor, flushed: Cursor, backend: Backend, params: SamplingParams) -> Seam | None:
    """The seam at the end of the prompt; None where there is none to heal.

    A stop string that could match inside the prefix, or begin there, would end the hole for what the author wrote: then
    nothing is taken back. Where stop patterns are looked for nothing is either, since they see the prefix too.

    Args:
        before: where the stream stood, with its pending text.
        flushed: the same with that text tokenized.
    """
    pieces = before.pieces()
    plain = "".join(reversed([p.text for p in takewhile(lambda p: not p.special, reversed(pieces))]))
    ids, text = flushed.chain.token_ids, flushed.chain.text
    if not plain or params.stop_regex or not params.max_new_tokens:
        return None
    for count in range(1, min(_MOST, len(ids)) + 1):
        prefix = backend.decode(ids[-count:])
        if prefix and "\ufffd" not in prefix and plain.endswith(prefix):
            break
    else:
        return None
    left, taken = ids[:-count], ids[-count:]
    is_empty = not left and not before.chain.length
    if is_empty or _could_stop(prefix, params.stop) or set(taken) & set(params.stop_token_ids):
        return None
    return Seam(before.extend(left, text[: len(text) - len(prefix)]), prefix, taken)


def _could_stop(prefix: str, stops: tuple[str, ...]) -> bool:
    """Whether a stop string matches in `prefix`, or may begin there."""
    return any(stop in prefix or any(prefix.endswith(stop[:n]) for n in range(1, len(stop))) for stop in stops)
