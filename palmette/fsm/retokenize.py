"""The jump-forward rule of the SGLang paper, kept so that its figures can be reproduced (`retokenize="paper"`).

Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs" (arXiv 2312.07104), section 4: the
forced bytes are appended to the text generated so far, and the whole is tokenized again. Tokens that were already
sampled may change, and the last one may be one that the model would never have written, since the text behind the jump
is not known yet. `stable` is the rule that does neither.

Knows an automaton and a tokenizer; taking tokens back and extending the sequence is the engine's.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from palmette.fsm.automaton import Automaton


def paper_jump(
    automaton: Automaton, state: int, encode: Callable[[bytes], Sequence[int] | None], emitted: Sequence[int]
) -> tuple[int, list[int]]:
    """How many of the `emitted` tokens stay, and the tokens behind them once the forced bytes are written.

    Args:
        state: where `emitted` led.
        encode: the tokenizer on text without special tokens; None = it cannot say.
        emitted: every token of this text so far, special tokens aside.

    Returns:
        (len(emitted), []) where there is nothing to jump over: no byte is forced, or `encode` cannot spell the text.
        Otherwise the kept tokens and the new ones spell the emitted text and the forced characters, byte for byte, so
        a matcher reads them after `rollback(len(emitted) - kept)`.
    """
    tokens = automaton.vocabulary.tokens
    before = b"".join(tokens[t] for t in emitted)
    text = _whole_characters(before + automaton.forced(state)[0])
    encoded = encode(text) if len(text) > len(before) else None
    if encoded is None or b"".join(tokens[t] for t in encoded) != text:
        return len(emitted), []
    kept = 0
    while kept < min(len(emitted), len(encoded)) and emitted[kept] == encoded[kept]:
        kept += 1
    return kept, list(encoded[kept:])


def _whole_characters(data: bytes) -> bytes:
    """`data` up to a character that is cut at its end; empty where it is no UTF-8 at all."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data).encode()
    except UnicodeDecodeError:
        return b""
