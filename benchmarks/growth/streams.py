"""A stream's length: linear in total. Nothing should be tokenized, computed, matched or copied twice.

One thing is not: text that a chat template renders which looks at all messages, such as one that counts turns. What it
writes around a message may depend on any other, so each message renders the whole conversation, and all together cost
its square; only templates that are proven to be local (runtime/template_locality.py) are rendered in pieces.

The stream is a program that writes a constant and lets a hole be filled, again and again; on a backend without a
model, on the tiny model, and as the requests it becomes, on the scheduler alone. A conversation with roles asks the
model's chat template for the text around each message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial

import palmette as pm
from benchmarks.growth.law import Row, geometric
from benchmarks.growth.measure import cpu_micros, sized
from benchmarks.growth.stand_ins import TOKEN, BareScheduler, PromptBackend
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.models.tiny import tiny_model
from palmette.types import Message, TextPiece, TokenPath

LAW = "a stream's length"
TEXT = "What comes next?"
CONTEXT = 16_384  # tokens of the tiny model's context
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COUNTING_TEMPLATE = TEMPLATE.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}")


def rows(*, quick: bool = False) -> list[Row]:
    return [
        *scripted(geometric(32, 128 if quick else 2048)),
        *tiny(geometric(8, 32 if quick else 256)),
        *scheduled(geometric(32, 128 if quick else 1024)),
        *one_hole(geometric(256, 1024 if quick else 65_536, 4)),
        *conversation(geometric(8, 32 if quick else 256)),
    ]


@pm.function
def turns(s: pm.State, count: int) -> None:
    for i in range(count):
        s += TEXT + pm.gen(f"answer {i}", max_tokens=4, ignore_eos=True)


@pm.function
def talk(s: pm.State) -> None:
    s += TEXT + pm.gen("answer")


def scripted(sizes: Sequence[int]) -> list[Row]:
    """The language half alone."""
    backends = [PromptBackend() for _ in sizes]
    for size, backend in zip(sizes, backends, strict=True):
        turns.run(count=size, backend=backend, seed=0)
    encoded = tuple(backend.encoded for backend in backends)
    handed = tuple(backend.handed for backend in backends)
    micros = sized(sizes, lambda n: cpu_micros(lambda: turns.run(count=n, backend=PromptBackend(), seed=0)), 3)
    row = partial(Row, LAW, over="holes of a stream", claimed=1.0, sizes=tuple(sizes))
    return [
        row(what="text tokenized, in total", unit="tokens", costs=encoded),
        row(what="prompts handed over, in total", unit="tokens", costs=handed),
        row(what="a stream without a model", unit="CPU us", costs=micros),
    ]


def tiny(sizes: Sequence[int]) -> list[Row]:
    """The whole system on the tiny model, whose attention is part of its time."""
    loaded = tiny_model(context_len=CONTEXT)
    with closing(_CountingRuntime(loaded, kv_tokens=CONTEXT)) as runtime:
        turns.run(count=2, backend=runtime, seed=0)  # what the first use of anything costs
    encoded, computed, passes, micros = [], [], [], []
    for size in sizes:
        with closing(_CountingRuntime(loaded, kv_tokens=CONTEXT)) as runtime:
            micros.append(cpu_micros(partial(turns.run, count=size, backend=runtime, seed=0, temperature=0)))
            stats = runtime.stats()
        encoded.append(runtime.encoded)
        computed.append(stats.computed_prompt_tokens)
        passes.append(stats.steps)
    row = partial(Row, LAW, over="holes, tiny model", claimed=1.0, sizes=tuple(sizes))
    return [
        row(what="text tokenized, in total", unit="tokens", costs=tuple(encoded)),
        row(what="prompts computed, in total", unit="tokens", costs=tuple(computed)),
        row(what="forward passes, in total", unit="passes", costs=tuple(passes)),
        row(what="a stream on the tiny model", unit="CPU us", costs=tuple(micros)),
    ]


def scheduled(sizes: Sequence[int]) -> list[Row]:
    """The requests of such a stream, on the scheduler without a model."""

    def run(size: int) -> int:
        """Returns how many tokens of the prompts were read, to be matched or computed."""
        case = BareScheduler(24 * size + 64)
        path, read = TokenPath(None, ()), 0
        for _ in range(size):
            path = TokenPath(path, case.tokens(len(TEXT)))
            job = case.add(path, 4)
            case.run()
            read += job.prompt_len - job.tokens.num_unread
            path = TokenPath(path, [TOKEN] * 4)
        return read

    matched = tuple(run(size) for size in sizes)
    micros = sized(sizes, lambda size: cpu_micros(lambda: run(size)), 3)
    row = partial(Row, LAW, over="holes of a stream", claimed=1.0, sizes=tuple(sizes))
    return [
        row(what="prompts read and matched, in total", unit="tokens", costs=matched),
        row(what="a stream's requests, without a model", unit="CPU us", costs=micros),
    ]


def one_hole(sizes: Sequence[int]) -> list[Row]:
    """One hole whose text comes in many pieces."""

    def run(size: int) -> float:
        backend = PromptBackend("x" * size, pieces=size)
        return cpu_micros(lambda: talk.run(backend=backend, seed=0))

    return [Row(LAW, "one hole", "pieces of its text", "CPU us", 1.0, tuple(sizes), sized(sizes, run, 3))]


def conversation(sizes: Sequence[int]) -> list[Row]:
    """The text around each message of a conversation, by a template of the usual kind and by one that counts turns."""
    usual, counts = (tuple(_rendered(source, size) for size in sizes) for source in (TEMPLATE, COUNTING_TEMPLATE))
    template = ChatTemplate(TEMPLATE)
    _converse(template, 4)  # compiled at first use
    micros = sized(sizes, lambda size: cpu_micros(lambda: _converse(template, size)), 3)
    row = partial(Row, LAW, over="messages of a chat", sizes=tuple(sizes))
    return [
        row(what="text rendered by the template", unit="characters", claimed=1.0, costs=usual),
        row(what="the chat template", unit="CPU us", claimed=1.0, costs=micros),
        row(what="text rendered, template counts turns", unit="characters", claimed=2.0, costs=counts),
    ]


def _rendered(source: str, size: int) -> int:
    template = _CountingTemplate(source)
    _converse(template, size)
    return template.rendered


def _converse(template: ChatTemplate, size: int) -> None:
    messages: tuple[Message, ...] = ()
    for i in range(size):
        role = "assistant" if i % 2 else "user"
        template.role_pieces(messages, role)
        messages = (*messages, Message(role, TEXT))


class _CountingTemplate(ChatTemplate):
    """Counts the characters that it renders."""

    rendered = 0

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        text = super().render(messages, add_generation_prompt=add_generation_prompt)
        self.rendered += len(text)
        return text


class _CountingRuntime(Runtime):
    """Counts the tokens that come out of text."""

    encoded = 0

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        ids = super().encode(pieces)
        self.encoded += len(ids)
        return ids
