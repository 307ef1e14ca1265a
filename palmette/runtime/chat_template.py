"""A model's own chat template, and what it writes around one message.

Knows Jinja text and messages. Does not know tokens, and makes up no template where the model brings none.

    render([m0, m1, open])  =  <--- render([m0, m1]) --->  begin  SENTINEL  end

What a stream already holds never changes, so rendering one more message must begin with the rendering of those before
it, and each message's content must stand in it as it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from palmette.errors import NoChatTemplate, TemplateError, TemplateNotIncremental
from palmette.types import Message, RolePieces, TextPiece

if TYPE_CHECKING:
    from palmette.runtime.template_sandbox import CompiledTemplate

_SENTINEL = "\ue000content\ue001"  # private-use characters: survive trimming, occur in no sane template


class ChatTemplate:
    """The Jinja source a model ships, compiled at first use; `source` is None when it ships none. Thread-safe."""

    def __init__(self, source: str | None, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source, self.bos_token, self.eos_token = source, bos_token, eos_token

    @property
    def exists(self) -> bool:
        return self.source is not None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model was trained to see it.

        Raises:
            NoChatTemplate: the model has none.
            TemplateError: the template is broken, refuses these messages, or ran out of its bounds.
        """
        return self._compiled.render(
            {
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
                "tools": None,
                "documents": None,
            }
        )

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        """The text before and after the content of a message of `role` that follows `messages`.

        A default system message of the template's comes with the first piece. It is checked that the last of
        `messages` was rendered as it was given; earlier ones were when they were last.

        Raises:
            NoChatTemplate, TemplateError: as `render`.
            TemplateNotIncremental: an earlier message is rendered differently once this one follows.
        """
        opened = self._render_open(messages, role)
        if messages:
            self._check_verbatim(messages)
        closed = self.render(messages) if messages else ""
        if not opened[0].startswith(closed):
            raise TemplateNotIncremental(
                self._first_changed(messages, opened[0]), "its rendering depends on what follows"
            )
        return RolePieces(begin=opened[0][len(closed) :], end=opened[1])

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        """The whole conversation rendered anew, for a template that is not incremental.

        Returns all text before the open message's content, contents of messages apart from the template's own text,
        and what the template writes around the open message.

        Raises:
            NoChatTemplate, TemplateError: as `render`; also if a message's content cannot be found in the rendering.
        """
        before, end = self._render_open(messages, role)
        pieces: list[TextPiece] = []
        at = 0
        for index, message in enumerate(messages):
            # Templates trim contents and drop old reasoning; what is left of it must still be told from their own text.
            answer = message.content.rpartition("</think>")[2]
            versions = (message.content, message.content.strip(), answer, answer.strip())
            found = next(((i, v) for v in versions if (i := before.find(v, at)) >= 0), None)
            if found is None:
                raise TemplateError(f"message {index}: its content is not found in the chat template's rendering")
            start, text = found
            pieces += [TextPiece(before[at:start], special=True), TextPiece(text)]
            at = start + len(text)
        pieces.append(TextPiece(before[at:], special=True))
        return tuple(p for p in pieces if p.text), RolePieces("", end)

    @cached_property
    def _compiled(self) -> CompiledTemplate:
        if self.source is None:
            raise NoChatTemplate(
                "the model brings no chat template, so roles have no text: write the prompt without roles, or use an "
                "instruct model"
            )
        # Imported here: jinja2 is a heavy import that only programs with roles need.
        from palmette.runtime.template_sandbox import CompiledTemplate

        return CompiledTemplate(self.source)

    def _render_open(self, messages: Sequence[Message], role: str) -> tuple[str, str]:
        """The rendering before and behind an open message's content."""
        try:
            parts = self.render([*messages, Message(role, _SENTINEL)]).split(_SENTINEL)
        except NoChatTemplate:
            raise
        except TemplateError as error:
            raise TemplateError(f"message {len(messages)} (role {role!r}): {error}") from error
        if len(parts) != 2:
            raise TemplateError(
                f"message {len(messages)} (role {role!r}): the chat template writes its content {len(parts) - 1} times "
                f"instead of once"
            )
        return parts[0], parts[1]

    def _check_verbatim(self, messages: Sequence[Message]) -> None:
        *before, last = messages
        begin, end = self._render_open(before, last.role)
        if self.render(messages) != begin + last.content + end:
            raise TemplateNotIncremental(len(before), "its content is not rendered as it was given")

    def _first_changed(self, messages: Sequence[Message], text: str) -> int:
        for count in range(1, len(messages)):
            try:
                if not text.startswith(self.render(messages[:count])):
                    return count - 1
            except TemplateError:
                continue  # this prefix alone is refused; it cannot tell anything
        return len(messages) - 1
