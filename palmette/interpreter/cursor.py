"""Where a stream stands: its tokens, the text not tokenized yet, and its messages. Immutable.

A checkpoint keeps a cursor, a fork hands it to the branches, a rollback puts it back; each is one reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from palmette.interpreter.chain import EMPTY, TokenChain
from palmette.types import Backend, Message, RolePieces, TextPiece

# Pending pieces, newest first: adding one is O(1) and shares the rest.
_Pending: TypeAlias = "tuple[TextPiece, _Pending] | None"


@dataclass(frozen=True, slots=True)
class OpenRole:
    """The message being written: its content is the text from character `content_start` on."""

    role: str
    content_start: int
    end: str  # what the template writes behind it
    asked: str  # the role that the author named, where the template lacks it


@dataclass(frozen=True, slots=True)
class Cursor:
    chain: TokenChain = EMPTY
    pending: _Pending = None
    pending_len: int = 0  # characters
    messages: tuple[Message, ...] = ()  # closed ones
    role: OpenRole | None = None
    generated: int = 0  # tokens of the chain that a model wrote

    @property
    def text_len(self) -> int:
        return self.chain.text_len + self.pending_len

    def pieces(self) -> list[TextPiece]:
        """The pending pieces, oldest first."""
        pieces: list[TextPiece] = []
        node = self.pending
        while node is not None:
            piece, node = node
            pieces.append(piece)
        return pieces[::-1]

    def text_from(self, start: int) -> str:
        tail = "".join(piece.text for piece in self.pieces())
        return self.chain.text_from(start) + tail[max(0, start - self.chain.text_len) :]

    def add(self, text: str, *, special: bool = False) -> Cursor:
        if not text:
            return self
        piece = TextPiece(text, special)
        return replace(self, pending=(piece, self.pending), pending_len=self.pending_len + len(text))

    def flush(self, backend: Backend) -> Cursor:
        """Tokenize what is pending, alone; the first text of a plain stream gets the model's own beginning."""
        pieces = self.pieces()
        ids = backend.encode(pieces) if pieces else []
        if self.chain.length == 0 and pieces and not pieces[0].special:
            ids = [*backend.begin_ids(), *ids]
        return self.extend(ids, "".join(piece.text for piece in pieces))

    def extend(self, token_ids: list[int] | tuple[int, ...], text: str, *, generated: int = 0) -> Cursor:
        """Put tokens behind the chain; whatever was pending must be among them."""
        chain = self.chain.extend(token_ids, text)
        return replace(self, chain=chain, pending=None, pending_len=0, generated=self.generated + generated)

    def open_role(self, role: str, pieces: RolePieces, *, asked: str | None = None) -> Cursor:
        cursor = self.add(pieces.begin, special=True)
        return replace(cursor, role=OpenRole(role, cursor.text_len, pieces.end, asked or role))

    def close_role(self, role: OpenRole) -> Cursor:
        message = Message(role.role, self.text_from(role.content_start))
        cursor = self.add(role.end, special=True)
        return replace(cursor, messages=(*self.messages, message), role=None)

    def with_messages(self, messages: tuple[Message, ...]) -> Cursor:
        """The same place, after messages whose text is already in the chain."""
        return replace(self, messages=(*self.messages, *messages))

    def all_messages(self) -> tuple[Message, ...]:
        """Closed messages and the open one as far as it is written."""
        if self.role is None:
            return self.messages
        return (*self.messages, Message(self.role.role, self.text_from(self.role.content_start)))
