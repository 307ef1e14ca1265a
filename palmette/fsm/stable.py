"""Which tokens are certain: the prefix of the tokenization of forced text that nothing behind it can change.

Let F be the forced bytes and `tail` what was emitted before them. A later token may begin inside tail+F, at any offset
q from which a token of the vocabulary spells the rest of F and goes on as the automaton allows. In BPE the encoding of
a text splits at its own token boundaries, so the final encoding begins with enc((tail+F)[:q]) for one of those q, and
the tokens common to all of them are certain. Whitespace at the end is held back: pre-tokenizers decide about a run of
it by what follows. A single blank stays where only visible ASCII can follow, since then there is no run: it is a token
of its own unless one token spells it together with what follows, and that offset is among those q.

Nothing merges across a special token, so text before a forced one is certain as it stands, and so is the token itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from palmette.fsm.automaton import Automaton
from palmette.fsm.vocabulary import SPECIAL_LEN, first_special, is_special

_WHITESPACE = b" \t\n\r\x0b\x0c"


def stable_prefix(
    automaton: Automaton, state: int, encode: Callable[[bytes], Sequence[int] | None], tail: Sequence[int]
) -> list[int]:
    """Certain tokens behind `tail`; empty where the encoding would rather have written `tail` another way."""
    tokens = automaton.vocabulary.tokens
    run: list[int] = []  # the tail behind its last special token
    for token in tail:
        run = [] if is_special(tokens[token]) else [*run, token]
    certain: list[int] = []
    while True:
        forced, _ = automaton.forced(state)
        at = first_special(forced)
        if at == len(forced):
            return certain + _stable_text(automaton, state, encode, run)
        if at:
            text = b"".join(tokens[t] for t in run) + forced[:at]
            encoded = encode(text)
            if encoded is None or list(encoded[: len(run)]) != run:
                return certain
            certain += encoded[len(run) :]
        mark = forced[at : at + SPECIAL_LEN]
        if len(mark) < SPECIAL_LEN:  # a special token, but which one is open
            return certain
        certain.append(int.from_bytes(mark[1:], "big"))
        state, run = automaton.read(state, forced[: at + SPECIAL_LEN]), []


def _stable_text(
    automaton: Automaton, state: int, encode: Callable[[bytes], Sequence[int] | None], tail: Sequence[int]
) -> list[int]:
    """The same where neither `tail` nor the forced bytes hold a special token."""
    tokens = automaton.vocabulary.tokens
    before = b"".join(tokens[t] for t in tail)
    forced = _without_open_end(automaton, state, before)
    if not forced:
        return []
    text = before + forced
    common: list[int] | None = None
    for q in _token_starts(automaton, automaton.read(state, forced), text, len(before)):
        encoded = encode(text[:q])
        if encoded is None:
            return []
        common = list(encoded) if common is None else _common(common, encoded)
        if len(common) <= len(tail):
            return []
    if common is None or common[: len(tail)] != list(tail):
        return []
    if b"".join(tokens[t] for t in common) == text:
        return common[len(tail) :]
    certain = common[len(tail) :]
    while certain and not tokens[certain[-1]].rstrip(_WHITESPACE):
        certain.pop()
    return certain


def _without_open_end(automaton: Automaton, state: int, before: bytes) -> bytes:
    """The forced bytes up to where a pre-tokenizer may still look at what follows, or a character is cut."""
    forced, end = automaton.forced(state)
    bare = forced.rstrip(_WHITESPACE)
    if (
        forced.endswith(b" ")
        and b"!" <= (before + forced)[-2:-1] <= b"~"
        and _is_followed_by_visible_ascii(automaton, end)
    ):
        return forced
    return _whole_characters(bare)


def _is_followed_by_visible_ascii(automaton: Automaton, state: int) -> bool:
    if automaton.machine.accepts(state):
        return False
    return all(low > 0x20 and high < 0x7F for low, high, _ in automaton.machine.segments(state))


def _token_starts(automaton: Automaton, end_state: int, text: bytes, first: int) -> list[int]:
    """len(text), and every q at which a token can begin that spells text[q:] and goes on from `end_state`."""
    vocabulary = automaton.vocabulary
    children = vocabulary.children
    out = [len(text)]
    for q in range(len(text) - 1, max(-1, len(text) - vocabulary.max_token_len), -1):
        node: int | None = 0
        for byte in text[q:]:
            assert node is not None
            node = children.get(node * 256 + byte)
            if node is None:
                break
        if node is not None and _goes_on(automaton, node, end_state):
            out.append(q)
    return out


def _goes_on(automaton: Automaton, node: int, state: int) -> bool:
    """Whether a token below trie node `node` can be read from `state`."""
    vocabulary, machine = automaton.vocabulary, automaton.machine
    stack = [(node, state)]
    while stack:
        at, s = stack.pop()
        for low, high, to in machine.segments(s):
            for byte in range(low, high + 1):
                child = vocabulary.children.get(at * 256 + byte)
                if child is not None:
                    if vocabulary.ids_at(child):
                        return True
                    stack.append((child, to))
    return False


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    n = 0
    while n < len(a) and n < len(b) and a[n] == b[n]:
        n += 1
    return list(a[:n])


def _whole_characters(data: bytes) -> bytes:
    """`data` without a character that is cut at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data if back == length else data[:-back]
        if byte < 0x80:
            break
    return data
