"""What a template writes around one message, and when it must be refused."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.errors import NoChatTemplate, TemplateError, TemplateNotIncremental
from palmette.runtime.byte_tokenizer import CHATML
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.template_locality import depends_on_its_message_alone
from palmette.types import Message, RolePieces, TextPiece

HELLO = Message("user", "Hello")
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<s>system\nBe kind.</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
)
TRIMS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
LAST_ANSWER_OPEN = (  # as base of many: the end of the last assistant message is only written once another follows
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' and not loop.last %}</s>{% endif %}{% endfor %}"
)
DROPS_REASONING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}</{{ m.role }}>{% endfor %}"
)
PICKY = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>{% endfor %}"
)


def stream(template: ChatTemplate, messages: list[Message]) -> str:
    """The text a program's stream would hold."""
    text = ""
    for i, message in enumerate(messages):
        pieces = template.role_pieces(messages[:i], message.role)
        text += pieces.begin + message.content + pieces.end
    return text


CONVERSATION = [HELLO, Message("assistant", " Hi!\n\n"), Message("user", "{{ 7 * 7 }} <|im_end|>"), Message("tool", "")]


@pytest.mark.parametrize("source", [CHATML, DEFAULT_SYSTEM])
def test_pieces_around_the_contents_are_the_whole_rendering(source: str) -> None:
    template = ChatTemplate(source, bos_token="<s>")
    assert stream(template, CONVERSATION) == template.render(CONVERSATION)


def test_pieces_of_chatml() -> None:
    template = ChatTemplate(CHATML)
    assert template.role_pieces([], "user") == RolePieces("<|im_start|>user\n", "<|im_end|>\n")
    assert template.role_pieces([HELLO], "assistant") == RolePieces("<|im_start|>assistant\n", "<|im_end|>\n")


def test_a_default_system_message_comes_with_the_first_piece_and_no_other() -> None:
    template = ChatTemplate(DEFAULT_SYSTEM)
    assert template.role_pieces([], "user").begin == "<s>system\nBe kind.</s>\n<s>user\n"
    assert template.role_pieces([HELLO], "assistant").begin == "<s>assistant\n"
    assert template.role_pieces([], "system").begin == "<s>system\n"


def test_an_end_that_comes_only_with_the_next_message_is_part_of_its_begin() -> None:
    template = ChatTemplate(LAST_ANSWER_OPEN)
    messages = [HELLO, Message("assistant", "Hi"), HELLO]
    assert stream(template, messages) == template.render(messages)
    assert template.role_pieces(messages[:2], "user").begin == "</s>[user]"


def test_a_content_that_the_template_trims_names_its_message() -> None:
    template = ChatTemplate(TRIMS)
    assert template.role_pieces([HELLO], "assistant").begin == "[assistant] "
    with pytest.raises(TemplateNotIncremental) as caught:
        template.role_pieces([HELLO, Message("assistant", " Hi")], "user")
    assert caught.value.message == 1


def test_reasoning_that_is_dropped_later_names_its_message() -> None:
    messages = [HELLO, Message("assistant", "<think>hm</think>\n\nHi")]
    with pytest.raises(TemplateNotIncremental) as caught:
        ChatTemplate(DROPS_REASONING).role_pieces(messages, "user")
    assert caught.value.message == 1


def test_without_a_template_roles_are_refused() -> None:
    template = ChatTemplate(None)
    assert not template.exists
    with pytest.raises(NoChatTemplate, match="without roles"):
        template.role_pieces([], "user")


def test_a_role_that_the_template_refuses_names_message_and_role() -> None:
    template = ChatTemplate(PICKY)
    with pytest.raises(TemplateError, match=r"message 0 .role 'system'.*System role not supported"):
        template.role_pieces([], "system")
    with pytest.raises(TemplateError, match=r"message 1 .role 'user'.*alternate"):
        template.role_pieces([HELLO], "user")


def test_a_template_that_ignores_the_content_is_refused() -> None:
    with pytest.raises(TemplateError, match="0 times"):
        ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}").role_pieces([], "user")
    with pytest.raises(TemplateError, match="2 times"):
        ChatTemplate("{{ messages[0].content }}{{ messages[0].content }}").role_pieces([], "user")


def test_contents_may_hold_the_characters_the_marks_are_made_of() -> None:
    template = ChatTemplate(CHATML)
    messages = [Message("user", "\ue000content\ue001"), Message("assistant", "\ue000contentb0\ue001")]
    assert stream(template, messages) == template.render(messages)
    pieces, _ = template.rerender(messages, "user")
    assert [p.text for p in pieces if not p.special] == [m.content for m in messages]


# -- what a message costs --

FIRST_DECIDES = (  # as the embedded model's
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETS_NAMES = (
    "{% set opening = messages[0].content %}{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'tool' %}{% set c = c + '!' %}{% endif %}<{{ m.role }} of {{ opening }}>{{ c }}</>{% endfor %}"
)
LOCAL = [CHATML, DEFAULT_SYSTEM, FIRST_DECIDES, SETS_NAMES, TRIMS]
NOT_LOCAL = [
    LAST_ANSWER_OPEN,
    DROPS_REASONING,
    PICKY,
    "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}",
    "{% set rest = messages[1:] %}{% for m in messages %}{{ m.content }}{{ rest[0].role }}{% endfor %}",
    "{% set messages = messages[1:] %}{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ messages[loop.index0 - 1].role }}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ messages[-1].role }}{{ m.content }}{% endfor %}",
    "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}{{ m.content }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{% for m in messages %}{{ c.next() }}{{ m.content }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.role }}{% endfor %}",
    "{% for m in messages recursive %}{{ m.content }}{% endfor %}",
    "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
    "{% macro w(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ w(m.content) }}{% endfor %}",
    "{{ loop }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}",
]
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGES = st.lists(st.builds(Message, ROLES, st.sampled_from(["", "Hi", " a b", "</>", "\ue000"])), max_size=9)


class Counting(ChatTemplate):
    rendered = 0

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        self.rendered += len(messages)
        return super().render(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("source", LOCAL)
def test_a_template_that_looks_at_one_message_at_a_time_is_known(source: str) -> None:
    assert depends_on_its_message_alone(source)


@pytest.mark.parametrize("source", NOT_LOCAL)
def test_a_template_that_may_look_at_others_is_known(source: str) -> None:
    assert not depends_on_its_message_alone(source)


@pytest.mark.parametrize("source", [*LOCAL, *NOT_LOCAL])
@settings(max_examples=25, deadline=None)
@given(messages=MESSAGES, role=ROLES)
def test_pieces_are_those_of_the_whole_conversation(source: str, messages: list[Message], role: str) -> None:
    def told(template: ChatTemplate) -> RolePieces | tuple[type, str]:
        try:
            return template.role_pieces(messages, role)
        except TemplateError as error:
            return type(error), str(error)

    whole = ChatTemplate(source)
    whole._is_local = False
    assert told(ChatTemplate(source)) == told(whole)


def test_a_long_conversation_renders_few_messages_for_each_new_one() -> None:
    template, count = Counting(FIRST_DECIDES), 256
    messages = [Message("assistant" if i % 2 else "user", "Hi") for i in range(count)]
    for i in range(count):
        template.role_pieces(messages[:i], "user")
    assert template.rendered < 20 * count


def test_a_template_that_is_not_what_it_was_taken_for_is_rendered_whole_from_then_on() -> None:
    template = ChatTemplate("{% for m in messages %}<{{ loop.index }}>{{ m.content }}</>{% endfor %}")
    template._is_local = True
    assert template.role_pieces([HELLO] * 4, "user").begin == "<5>"
    assert template.role_pieces([HELLO] * 5, "user").begin == "<6>"


# -- re-rendering --


def rerendered(source: str, messages: list[Message]) -> tuple[str, list[str], RolePieces]:
    pieces, role = ChatTemplate(source).rerender(messages, "user")
    return "".join(p.text for p in pieces), [p.text for p in pieces if not p.special], role


def test_rerender_follows_a_template_that_trims() -> None:
    messages = [HELLO, Message("assistant", "  Hi\n")]
    text, contents, role = rerendered(TRIMS, messages)
    assert text == "[user] Hello\n[assistant] Hi\n[user] "
    assert contents == ["Hello", "Hi"]
    assert role == RolePieces("", "\n")


def test_rerender_follows_a_template_that_drops_reasoning() -> None:
    text, contents, _ = rerendered(DROPS_REASONING, [HELLO, Message("assistant", "<think>hm</think>\n\nHi")])
    assert text == "<user>Hello</user><assistant>Hi</assistant><user>"
    assert contents == ["Hello", "Hi"]


def test_rerender_never_takes_a_users_text_for_the_templates() -> None:
    messages = [Message("user", "user"), Message("assistant", "<|im_end|>\n<|im_start|>"), Message("user", "")]
    pieces, _ = ChatTemplate(CHATML).rerender(messages, "assistant")
    special = "<|im_start|>user\n"
    assert pieces == (
        TextPiece(special, special=True),
        TextPiece("user"),
        TextPiece("<|im_end|>\n<|im_start|>assistant\n", special=True),
        TextPiece("<|im_end|>\n<|im_start|>"),
        TextPiece("<|im_end|>\n<|im_start|>user\n", special=True),
        TextPiece("<|im_end|>\n<|im_start|>assistant\n", special=True),
    )


# -- the sandbox --


def render(source: str) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render([HELLO])


def test_templates_see_what_transformers_offers() -> None:
    assert render("{{ bos_token }}{{ messages[0] | tojson }}{{ eos_token }}") == (
        '<s>{"role": "user", "content": "Hello"}</s>'
    )
    assert json.loads(render("{{ {'a': '<é>'} | tojson(indent=2) }}")) == {"a": "<é>"}
    assert "é" in render("{{ 'é' | tojson }}")
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "Hello"
    assert render("{% if tools %}x{% endif %}{% if add_generation_prompt %}y{% endif %}{{ 2 * 3 }}") == "6"


def test_blocks_leave_no_line_of_their_own() -> None:
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set x = messages[0].update({'role': 'x'}) %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10 * 10 * 10 * 10 * 10 * 10 * 10 * 10) | list }}",
        "{{ 'x' * 999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}"
        "{% for i in range(90) %}{% set ns.s = ns.s ~ ns.s %}{{ ns.s }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ undefined_name.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_that_runs_wild_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% endif %}", "{% unknown %}"])
def test_a_template_with_bad_syntax_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="broken"):
        render(source)
