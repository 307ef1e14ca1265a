"""The rows of the table as data: seeded prompts as token ids, the texts to extract from, and what is asked of each.

Made once with the embedded model's tokenizer and written as JSON, so that a peer's process needs nothing of ours.
Knows what is to be done; does not know who does it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Measure = Literal["decode", "prefill", "seconds"]


class Encoder(Protocol):
    """The part of a tokenizer that is used here."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Row:
    """Greedy continuation of token ids, a fixed number of tokens each, whatever end-of-sequence says.

    decode: tokens per second once every request has its first token. prefill: prompt tokens per second up to the
    first new token. seconds: from the first request to the last token.
    """

    name: str
    title: str
    measure: Measure
    prompts: tuple[tuple[int, ...], ...]  # token ids
    num_new: int  # tokens each
    shared_len: int = 0  # so many first tokens are the same in every prompt
    texts: tuple[str, ...] = ()  # the same prompts, for who takes nothing but text
    shared_text: str = ""  # what shared_len tokens say


@dataclass(frozen=True, slots=True)
class Extraction:
    """Records as JSON from short texts behind one instruction, all asked for at once."""

    name: str
    title: str
    instructions: str  # the same beginning of every prompt
    texts: tuple[str, ...]  # the rest of each
    expected: tuple[dict[str, Any], ...]
    schema: dict[str, Any]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """From a file to a model that answers; imports do not count."""

    name: str = "load"
    title: str = "load, s"


AnyRow = Row | Extraction | Load

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"type": "string", "maxLength": 24},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}

INSTRUCTIONS = """Read each text and write down the person's name, age and city as JSON.

Text: Rosa is a baker in Madrid. She opened her shop at thirty and is 52 years old today.
JSON:
{"name": "Rosa", "age": 52, "city": "Madrid"}

Text: In Helsinki everybody knows Mikko, the bus driver. He turned 45 in June.
JSON:
{"name": "Mikko", "age": 45, "city": "Helsinki"}

Text: At 19, Amina moved from a village to Cairo, where she studies medicine.
JSON:
{"name": "Amina", "age": 19, "city": "Cairo"}

"""

_TEXTS = (
    "{name} is {age} and has lived in {city} all her life.",
    "Our neighbour {name}, who teaches music in {city}, turned {age} last week.",
    "In {city} we met {name}. He is {age} years old and repairs clocks.",
    "{name} works for the railway. At {age} she still cycles through {city} every morning.",
)
_PEOPLE = (
    ("Ada", 36, "Lisbon"),
    ("Bruno", 41, "Oslo"),
    ("Carlos", 29, "Quito"),
    ("Diana", 63, "Hanoi"),
    ("Elena", 24, "Prague"),
    ("Farid", 57, "Tunis"),
    ("George", 38, "Dublin"),
    ("Hanna", 71, "Vienna"),
    ("Irene", 33, "Athens"),
    ("Jonas", 48, "Berlin"),
    ("Kevin", 22, "Boston"),
    ("Laura", 54, "Rome"),
    ("Maria", 67, "Lima"),
    ("Nadia", 31, "Paris"),
    ("Oscar", 45, "Sydney"),
    ("Paula", 28, "Toronto"),
)


def work(encoder: Encoder, *, shrink: int = 1, seed: int = 7) -> list[AnyRow]:
    """All rows.

    Args:
        shrink: divides contexts, batches and new tokens, for tests.
    """
    draw = random.Random(seed)

    def prompts(count: int, length: int, shared: int = 0) -> tuple[tuple[int, ...], ...]:
        begin = _tokens(encoder, draw, shared)
        return tuple((*begin, *_tokens(encoder, draw, length - shared)) for _ in range(count))

    def texts(given: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        return tuple(map(encoder.decode, given))

    def decode(batch: int, context: int, num_new: int) -> Row:
        count, length = max(1, batch // shrink), max(2, context // shrink)
        title = f"decode, batch {count}, context {length}, tok/s"
        given = prompts(count, length)
        num_new = max(3, num_new // shrink)
        return Row(f"decode_{batch}_{context}", title, "decode", given, num_new, texts=texts(given))

    count, shared, own, new = max(2, 32 // shrink), 768 // shrink, max(2, 64 // shrink), max(2, 32 // shrink)
    length = 1024 // shrink
    records = [_TEXTS[i % len(_TEXTS)].format(name=n, age=a, city=c) for i, (n, a, c) in enumerate(_PEOPLE)]
    decodes = [decode(1, 64, 48), decode(1, 1024, 48), decode(4, 64, 48), decode(16, 64, 32), decode(64, 64, 24)]
    prefill, siblings = prompts(1, length), prompts(count, shared + own, shared)
    return [
        *decodes,
        Row("prefill_1024", f"prefill, {length} tokens, tok/s", "prefill", prefill, 1, texts=texts(prefill)),
        Row(
            "shared_32",
            f"{count} x ({shared} shared + {own} own), {new} new, s",
            "seconds",
            siblings,
            new,
            shared,
            texts(siblings),
            encoder.decode(siblings[0][:shared]),
        ),
        Extraction(
            "extraction",
            "16 JSON extractions, s",
            INSTRUCTIONS,
            tuple(f"Text: {text}\nJSON:\n" for text in records),
            tuple({"name": n, "age": a, "city": c} for n, a, c in _PEOPLE),
            SCHEMA,
            48,
        ),
        Load(),
    ]


def write(
    path: Path, rows: Sequence[AnyRow], *, model: dict[str, str], threads: int, serve: Sequence[str] = ()
) -> None:
    """The work file that every peer reads. `model` names the files of the one model, by format; `serve`: a command."""
    named = {row.name: asdict(row) for row in rows}
    data = {"model": model, "threads": threads, "serve": list(serve), "rows": named}
    path.write_text(json.dumps(data), encoding="utf-8")


# -- prose without end -------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WHO = _words("teacher sailor gardener doctor painter farmer baker driver writer judge smith nurse pilot miller tailor")
_HOW = _words("old young tired cheerful patient careless famous quiet stubborn honest curious clumsy proud gentle")
_DID = _words("found sold repaired painted lost carried described counted borrowed measured cleaned forgot bought hid")
_WHAT = _words("boats letters clocks bridges maps lamps apples chairs stones songs ladders mirrors barrels wheels")
_WHERE = _words("harbour market station forest library kitchen village river castle garden museum valley school")


def _sentence(draw: random.Random) -> str:
    pick = draw.choice
    return (
        f"{pick(_HOW).capitalize()} {pick(_WHO)}s {pick(_DID)} {draw.randint(2, 99)} {pick(_WHAT)} near the "
        f"{pick(_HOW)} {pick(_WHO)}'s {pick(_WHERE)}."
    )


def _tokens(encoder: Encoder, draw: random.Random, length: int) -> tuple[int, ...]:
    """So many tokens of prose."""
    if not length:
        return ()
    text = " ".join(_sentence(draw) for _ in range(1 + length // 8))
    ids = encoder.encode(text)
    assert len(ids) >= length, "a sentence has at least eight tokens"
    return tuple(ids[:length])
