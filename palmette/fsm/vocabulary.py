"""A tokenizer's vocabulary as byte strings, with the trie and the slices that masks are computed on.

Knows bytes and ids; nothing of automata, texts or merges. Built once per tokenizer and shared by all constraints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from palmette.errors import InvalidOption
from palmette.fsm.native import Library, NativeVocabulary, library
from palmette.fsm.slices import Slice, build_slices
from palmette.fsm.trie import Trie

_MARK = b"\xff"
SPECIAL_LEN = 4  # bytes that stand for one special token


def special_bytes(token: int) -> bytes:
    """The bytes that stand for a special token: a mark that is in no UTF-8, then its id. All have SPECIAL_LEN."""
    return _MARK + token.to_bytes(SPECIAL_LEN - 1, "big")


def is_special(token_bytes: bytes) -> bool:
    """Whether these bytes of one token stand for a special token."""
    return token_bytes[:1] == _MARK


def first_special(data: bytes) -> int:
    """Where the first special token in `data` begins; len(data) if there is none."""
    at = data.find(_MARK)
    return len(data) if at < 0 else at


class Vocabulary:
    """Token id -> bytes.

    A special token that a template may name gets bytes of its own, which no text holds (`special_bytes`): 0xFF is in no
    UTF-8. For the same reason a token that holds 0xFF and is not special counts as one without bytes.

    Args:
        tokens: the bytes of each id; empty for special tokens.
        eos_ids: ids that end a sequence: allowed exactly where the constraint is satisfied.
        special: texts of the special tokens by their ids. A constraint allows one only where its template text names
            it; special tokens that are not here, never.
    """

    def __init__(
        self, tokens: Sequence[bytes], *, eos_ids: Iterable[int], special: Mapping[int, str] | None = None
    ) -> None:
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self.special = {text: token for token, text in sorted((special or {}).items())}  # text -> id
        for name, ids in (("eos_ids", self.eos_ids), ("special", tuple(self.special.values()))):
            for token in ids:
                if not 0 <= token < len(tokens):
                    raise InvalidOption(name, token, f"a token id below {len(tokens)}")
        own = list(tokens) if _MARK not in b"".join(tokens) else [t if _MARK not in t else b"" for t in tokens]
        for token in self.special.values():
            own[token] = special_bytes(token)
        self.tokens = tuple(own)
        ends = set(self.eos_ids)
        self.plain = [(t, i) for i, t in enumerate(self.tokens) if t and i not in ends]
        self.trie = Trie.build(self.plain)
        self.single_bytes = frozenset(t[0] for t, _ in self.plain if len(t) == 1)
        self.max_token_len = max((len(t) for t, _ in self.plain), default=0)
        lengths = [len(t) for t in self.tokens]
        digest = hashlib.sha256(repr((self.eos_ids, self.special, lengths)).encode("utf-8", "surrogatepass"))
        digest.update(b"".join(self.tokens))
        self.digest = digest.hexdigest()
        self._children: dict[int, int] | None = None
        self._greedy: dict[bytes, int] | None = None
        self._slices: tuple[Slice, ...] | None = None
        self._is_token: bytes | None = None
        self._run_lengths: dict[int, tuple[int, ...]] | None = None
        self._native: NativeVocabulary | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def template_bytes(self) -> dict[str, bytes | None]:
        """Special tokens by their texts: what stands for each in an automaton; None for those that end a sequence."""
        return {t: None if i in self.eos_ids else special_bytes(i) for t, i in self.special.items()}

    def warm_up(self) -> None:
        """Build now what is otherwise built at first use, so that no step has to wait for it."""
        _ = self.children, self.slices, self.is_token, self.run_lengths
        compiled = library()
        if compiled is not None:
            self.native(compiled)

    @property
    def mask_words(self) -> int:
        """uint32 words of a mask: bit `id % 32` of word `id // 32` belongs to token `id`."""
        return (len(self.tokens) + 31) // 32

    @property
    def children(self) -> dict[int, int]:
        """node * 256 + byte -> child node, over whole-trie node numbers."""
        if self._children is None:
            self._children = {}
            for above, level in pairwise(self.trie.levels):
                keys = (above.offset + level.parents) * 256 + level.bytes
                self._children.update(zip(keys.tolist(), range(level.offset, level.offset + len(keys)), strict=True))
        return self._children

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Precomputed masks of common classes of characters."""
        if self._slices is None:
            self._slices = build_slices(self.plain, self.trie, self.mask_words)
        return self._slices

    def native(self, library: Library) -> NativeVocabulary:
        """What compiled automata read of it."""
        if self._native is None:
            self._native = NativeVocabulary(
                library,
                self.trie,
                self.slices,
                eos_ids=self.eos_ids,
                mask_words=self.mask_words,
                max_token_len=self.max_token_len,
            )
        return self._native

    @property
    def is_token(self) -> bytes:
        """Per node of the whole trie: 1 where a token ends, else 0."""
        if self._is_token is None:
            starts = self.trie.token_start
            self._is_token = (starts[1:] != starts[:-1]).tobytes()
        return self._is_token

    @property
    def run_lengths(self) -> dict[int, tuple[int, ...]]:
        """Byte -> lengths of the tokens that are nothing but repetitions of it, ascending."""
        if self._run_lengths is None:
            lengths: dict[int, set[int]] = {}
            for token, _ in self.plain:
                if token == token[:1] * len(token):
                    lengths.setdefault(token[0], set()).add(len(token))
            self._run_lengths = {byte: tuple(sorted(found)) for byte, found in lengths.items()}
        return self._run_lengths

    def ids_at(self, node: int) -> list[int]:
        """Tokens whose bytes end at `node`."""
        trie = self.trie
        ids: list[int] = trie.token_ids[trie.token_start[node] : trie.token_start[node + 1]].tolist()
        return ids

    def greedy(self, data: bytes) -> list[int]:
        """`data` as the longest token from the left, and so on. Needs a token for every byte in `data`.

        Raises:
            KeyError: a byte of `data` begins no token.
        """
        if self._greedy is None:
            self._greedy = dict(reversed(self.plain))  # the lowest id of equal tokens
        out: list[int] = []
        at = 0
        while at < len(data):
            end = min(len(data), at + self.max_token_len)
            while data[at:end] not in self._greedy and end > at + 1:
                end -= 1
            out.append(self._greedy[data[at:end]])
            at = end
        return out
