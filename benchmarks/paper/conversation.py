"""A conversation of several turns. Replies are short or long: what a turn shares is all that was said before it."""

from __future__ import annotations

from collections.abc import Sequence

import palmette as pm


@pm.function
def chat(s: pm.State, turns: Sequence[str], length: int) -> None:
    for i, turn in enumerate(turns):
        s += pm.user(turn)
        s += pm.assistant(pm.gen(f"reply{i}", max_tokens=length))
