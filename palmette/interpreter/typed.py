"""From the text of a constrained hole to its value, or to the error that says why there is none."""

from __future__ import annotations

from typing import Any

from palmette.errors import InvalidValue, Truncated
from palmette.interpreter.partial import PartialJson
from palmette.ir import Binding
from palmette.types import Finish, FinishReason


def value_of(binding: Binding | None, text: str, finish: Finish, *, close: bool) -> Any:
    """The value of a finished hole; its text where it has no type.

    Args:
        close: take what the end of the token budget closed for the value.

    Raises:
        Truncated: the hole did not come to its own end.
        InvalidValue: a validator of its type refused the text.
    """
    if binding is None or binding.parse is None:
        return text
    if not close and (finish.steered or finish.reason is FinishReason.LENGTH):
        raise Truncated(
            "the token budget ended before the value did: raise max_tokens, or take what was closed in time with "
            'on_budget="close"',
            text=text,
            partial=closed_part(binding, text),
        )
    try:
        return binding.parse(text)
    except ValueError as error:
        if isinstance(finish.matched, str):
            message = f"the stop string {finish.matched!r} cut the value: drop it, the type knows its own end"
            raise Truncated(message, text=text, partial=closed_part(binding, text)) from error
        raise InvalidValue(text, str(error)) from error


def closed_part(binding: Binding, text: str) -> Any:
    """What of a text is complete, as plain data; None if nothing is."""
    if not binding.is_json:
        return None
    reader = PartialJson()
    reader.feed(text)
    reader.finish()
    return reader.snapshot()
