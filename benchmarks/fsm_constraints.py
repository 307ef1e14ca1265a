"""The constraints of the benchmarks, each with a few texts that satisfy it.

Digits are written [0-9], because `\\d` is Unicode's in some engines. JSON texts have the separators `, ` and `: `.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from palmette.specs import Choices, JsonSchema, Regex, Spec


@dataclass(frozen=True)
class Case:
    """One constraint. `samples` may be empty where random walks cover it."""

    name: str
    spec: Spec
    samples: tuple[str, ...]


SMALL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "maxLength": 80},
        "city": {"type": "string", "maxLength": 40},
        "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        "country": {"enum": ["DE", "FR", "IT", "US", "UK"]},
    },
    "required": ["street", "city"],
    "additionalProperties": False,
}
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "created": {"type": "string", "format": "date-time"},
        "email": {"type": "string", "format": "email"},
        "status": {"enum": ["open", "paid", "shipped", "cancelled"]},
        "total": {"type": "number", "minimum": 0},
        "quantity": {"type": "integer", "minimum": 1, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 10},
        "billing": {"$ref": "#/$defs/address"},
        "shipping": {"anyOf": [{"$ref": "#/$defs/address"}, {"type": "null"}]},
        "items": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                    "title": {"type": "string"},
                    "price": {"type": "number", "exclusiveMinimum": 0},
                    "discount": {"type": ["number", "null"]},
                },
                "required": ["sku", "price"],
                "additionalProperties": False,
            },
        },
        "notes": {"type": "string", "maxLength": 500},
    },
    "required": ["id", "created", "status", "items"],
    "additionalProperties": False,
}
MEDIUM = {"$defs": {"address": ADDRESS}, **ORDER}
LARGE = {
    "$defs": {"address": ADDRESS},
    "type": "object",
    "properties": {f"section_{i}": ORDER for i in range(20)},
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}
MATRICES = {
    "type": "array",
    "maxItems": 8,
    "items": {"type": "array", "maxItems": 8, "items": {"type": "array", "maxItems": 8, "items": {"type": "number"}}},
}
TEXTS = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "pattern": "^[^<>]{3,200}$"},
        "body": {"type": "string", "minLength": 20, "maxLength": 2000},
        "slug": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 60},
    },
    "required": ["title", "body", "slug"],
    "additionalProperties": False,
}
# The structure of the character descriptions in the paper on SGLang (Zheng et al., 2024), figure on regex decoding.
CHARACTER = (
    r'\{\n    "name": "[\w\d\s]{1,16}",\n    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n    "occupation": "(student|teacher|auror|ministry '
    r'of magic|death eater|order of the phoenix)",\n    "wand": \{\n        "wood": "[\w\d\s]{1,16}",\n        "core": '
    r'"[\w\d\s]{1,16}",\n        "length": [0-9]{1,2}\.[0-9]{0,2}\n    \},\n    "alive": "(Alive|Deceased)",\n'
    r'    "patronus": "[\w\d\s]{1,16}",\n    "bogart": "[\w\d\s]{1,16}"\n\}'
)
CHARACTER_TEXT = """{
    "name": "Hermione Granger",
    "house": "Gryffindor",
    "blood status": "Muggle-born",
    "occupation": "student",
    "wand": {
        "wood": "vine",
        "core": "dragon string",
        "length": 10.75
    },
    "alive": "Alive",
    "patronus": "otter",
    "bogart": "failure"
}"""
ORDER_VALUE = {
    "id": "123e4567-e89b-12d3-a456-426614174000",
    "created": "2024-05-17T09:30:00Z",
    "email": "ada@example.org",
    "status": "paid",
    "total": 310.5,
    "quantity": 12,
    "tags": ["new", "gift wrap"],
    "billing": {"street": "12 Long Lane", "city": "Bath", "country": "UK"},
    "items": [{"sku": "ABC-1234", "title": "Folding chair", "price": 155.25, "discount": None}],
    "notes": "Please ring the bell twice.",
}
PROSE = "The river runs east of the old town, and a path follows it as far as the mill."
TREE_VALUE = {"value": 1, "children": [{"value": -20}, {"value": 3, "children": [{"value": 45, "children": []}]}]}
ENUM = tuple(f"{a}-{b}-{n * 7919 % 100003}" for n, (a, b) in enumerate(
    (a, b) for a in ("amber", "basalt", "cedar", "dune", "ember") for b in range(1000)
))  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


CASES = [
    Case("integer", Regex("-?(0|[1-9][0-9]*)"), ("0", "-48151", "1623420")),
    Case("float", Regex(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"), ("3.14159", "-6.02e23", "12")),
    Case("date", Regex("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"), ("2024-02-29", "1969-07-20")),
    Case(
        "date and time",
        Regex(
            "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
            r"(\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
        ),
        ("2024-05-17T09:30:00Z", "1999-12-31T23:59:59.25+01:00"),
    ),
    Case("e-mail", Regex(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"), ("ada.byron+notes@mail.example.org",)),
    Case(
        "IPv4",
        Regex(r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"),
        ("192.168.0.1", "8.8.8.8"),
    ),
    Case("words", Regex(r"([a-zA-Z]+,? )*[a-zA-Z]+\."), (PROSE,)),
    Case(".{0,500}", Regex(".{0,500}"), (PROSE, "Äpfel und Öl, 日本語 too.")),
    Case("CJK", Regex("[一-龥ぁ-んァ-ヶ]{1,40}。"), ("東京は日本の首都である。", "ねこがすき。")),
    Case("quoted string", Regex(r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'), (f'"{PROSE}\\n"',)),
    Case("character", Regex(CHARACTER), (CHARACTER_TEXT,)),
    Case("200 choices", Choices(tuple(f"choice number {i * 7919} of many" for i in range(200))), ()),
    Case("enum of 5,000", JsonSchema.of({"enum": list(ENUM)}), tuple(_json(v) for v in ENUM[::1500])),
    Case("small schema", JsonSchema.of(SMALL), (_json({"name": "Ada Byron", "age": 36, "city": "London"}),)),
    Case("medium schema", JsonSchema.of(MEDIUM), (_json(ORDER_VALUE),)),
    Case("large schema", JsonSchema.of(LARGE), (_json({"section_0": ORDER_VALUE, "section_7": ORDER_VALUE}),)),
    Case("recursive schema", JsonSchema.of(TREE), (_json(TREE_VALUE),)),
    Case("nested arrays", JsonSchema.of(MATRICES), (_json([[[1, 2.5], [-3]], [[], [4e5]]]),)),
    Case(
        "long strings",
        JsonSchema.of(TEXTS),
        (_json({"title": "On rivers", "body": PROSE + " " + PROSE, "slug": "on-rivers-2"}),),
    ),
    Case(
        "3,000 properties",
        JsonSchema.of(
            {
                "type": "object",
                "properties": {f"property{i}": {"type": "integer"} for i in range(3000)},
                "additionalProperties": False,
            }
        ),
        (_json({"property2": 5, "property77": -1, "property1500": 17, "property2999": 0}),),
    ),
    Case("any JSON", JsonSchema.of(True), (_json(ORDER_VALUE), _json(TREE_VALUE))),
]  # fmt: skip
