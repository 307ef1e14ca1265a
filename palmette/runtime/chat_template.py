"""A model's own chat template, and what it writes around one message.

Knows Jinja text and messages. Does not know tokens, and makes up no template where the model brings none.

    render([m0, m1, open])  =  <--- render([m0, m1]) --->  begin  SENTINEL  end

What a stream already holds never changes, so rendering one more message must begin with the rendering of those before
it, and each message's content must stand in it as it was given.

Where a template is known to write a message by that message and the first alone (template_locality.py), those between
the first and the last are left out, so that a conversation costs what it says and not its square. Whenever the number
of messages is a power of two both are rendered and must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from palmette.errors import NoChatTemplate, TemplateError, TemplateNotIncremental
from palmette.types import Message, RolePieces, TextPiece

if TYPE_CHECKING:
    from palmette.runtime.template_sandbox import CompiledTemplate

# What `render_data` gives a template itself.
OWN_VARIABLES = frozenset(("messages", "tools", "add_generation_prompt", "bos_token", "eos_token"))


@dataclass(frozen=True, slots=True)
class _Marks:
    """Private-use characters around one content: they survive trimming and occur in no template."""

    begin: str
    answer: str  # behind a reasoning segment, which templates drop from old messages
    end: str

    @staticmethod
    def of(nonce: str, index: int) -> _Marks:
        return _Marks(*(f"\ue000{nonce}{kind}{index}\ue001" for kind in "bae"))

    def around(self, content: str) -> str:
        """Marks go inside the white space, which templates trim."""
        core = content.strip()
        lead, trail = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :]
        if not core:
            return content + self.begin + self.end
        reasoning, closing, answer = core.rpartition("</think>")
        gap = answer[: len(answer) - len(answer.lstrip())]
        inner = f"{reasoning}{closing}{gap}{self.answer}{answer.lstrip()}" if closing else core
        return lead + self.begin + inner + self.end + trail


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
        return self.render_data(
            [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=add_generation_prompt
        )

    def render_data(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
        add_generation_prompt: bool = False,
    ) -> str:
        """The same for messages that are more than a role and a text, as templates with tools read them.

        Args:
            tools: in OpenAI's form, {"type": "function", "function": {...}}.
            variables: others that the template may ask for; none of its own (`OWN_VARIABLES`).
        """
        return self._compiled.render(
            {
                "documents": None,
                **variables,
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
                "tools": tools,
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
        count = len(messages)
        if count < 3 or not self._is_local:
            return self._role_pieces(messages, role)
        try:
            pieces = self._role_pieces((messages[0], messages[-1]), role)
        except TemplateError:
            return self._role_pieces(messages, role)  # which names the message by its place
        if count & (count - 1) == 0 and pieces != (whole := self._role_pieces(messages, role)):
            self._is_local = False
            return whole
        return pieces

    def _role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
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
        and what the template writes around the open message. Contents are found by marks around them, never by their
        text, so that no content can pass for the template's.

        Raises:
            NoChatTemplate, TemplateError: as `render`; also if a message's content cannot be told from the rendering.
        """
        nonce = _nonce(messages)
        marks = [_Marks.of(nonce, i) for i in range(len(messages))]
        marked = [Message(m.role, mark.around(m.content)) for m, mark in zip(messages, marks, strict=True)]
        text, end = self._render_open(marked, role)
        pieces: list[TextPiece] = []
        at = 0
        for index, mark in enumerate(marks):
            stop = text.find(mark.end, at)
            start, opening = next(
                ((i, m) for m in (mark.begin, mark.answer) if (i := text.find(m, at, max(stop, at))) >= 0), (-1, "")
            )
            if start < 0:
                raise TemplateError(f"message {index}: the chat template does not write its content in one piece")
            content = text[start + len(opening) : stop].replace(mark.answer, "")
            pieces += [TextPiece(text[at:start], special=True), TextPiece(content)]
            at = stop + len(mark.end)
        pieces.append(TextPiece(text[at:], special=True))
        if "".join(p.text for p in pieces) != self._render_open(messages, role)[0]:
            raise TemplateError("the chat template depends on contents in a way that re-rendering cannot follow")
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

    @cached_property
    def _is_local(self) -> bool:
        """Is a message behind the first written the same whatever stands between the two?"""
        from palmette.runtime.template_locality import depends_on_its_message_alone  # jinja2, as above

        return self.source is not None and depends_on_its_message_alone(self.source)

    def _render_open(self, messages: Sequence[Message], role: str) -> tuple[str, str]:
        """The rendering before and behind an open message's content."""
        sentinel = f"\ue000{_nonce(messages)}\ue001"
        try:
            parts = self.render([*messages, Message(role, sentinel)]).split(sentinel)
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


def _nonce(messages: Sequence[Message]) -> str:
    """Letters that, between private-use characters, stand in none of the messages."""
    nonce = "content"
    while any("\ue000" + nonce in m.content for m in messages):
        nonce += "x"
    return nonce
