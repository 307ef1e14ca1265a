"""JSON values as canonical text, and the punctuation between them.

Every value is written in one way: numbers without superfluous digits, strings raw but for what JSON must escape. Only
the separators depend on the options.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from palmette.fsm.algebra import EMPTY, Chars, JsonText, Literal, Node, Seq, repeat, seq
from palmette.fsm.charset import charset
from palmette.fsm.numbers import plain_decimal
from palmette.fsm.trampoline import Call, run
from palmette.fsm.utf8 import json_text
from palmette.specs import SchemaOptions

_WHITESPACE = Chars(charset([(9, 10), (13, 13), (32, 32)]))
_LONG_EXPONENT = 40  # decimals with more zeros than this keep their exponent


class Punctuation:
    """The nodes between values."""

    def __init__(self, options: SchemaOptions) -> None:
        self.is_fixed = not options.whitespace  # one text for every value
        space = repeat(_WHITESPACE, 0, options.whitespace) if options.whitespace else EMPTY
        gap = "" if options.compact else " "
        self.comma = seq(space, Literal("," + gap), space)
        self.colon = seq(space, Literal(":" + gap), space)
        self.open_object = seq(Literal("{"), space)
        self.close_object = seq(space, Literal("}"))
        self.open_array = seq(Literal("["), space)
        self.close_array = seq(space, Literal("]"))


def string(node: Node) -> Node:
    """The JSON string whose value is a text of `node`."""
    return seq(Literal('"'), JsonText(node), Literal('"'))


def number_text(value: int | float | Decimal) -> str:
    """The one way a number is written."""
    if isinstance(value, int):
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if exact and not -_LONG_EXPONENT <= exact.adjusted() <= _LONG_EXPONENT:
        return f"{exact.normalize():e}"
    return plain_decimal(exact)


def value_node(value: Any, punctuation: Punctuation) -> Node:
    """Exactly this value; a Literal where the punctuation is fixed, so that many values become one trie."""
    if isinstance(value, str):
        return Literal(f'"{json_text(value)}"')
    node = run(_value_node(value, punctuation))
    if punctuation.is_fixed and isinstance(node, Seq):
        return Literal("".join(_written(part) for part in node.parts))
    return node


def _written(part: Node) -> str:
    if isinstance(part, JsonText):
        assert isinstance(part.part, Literal), "a value has one text"
        return json_text(part.part.text)
    assert isinstance(part, Literal), "a value has one text"
    return part.text


def _value_node(value: Any, punctuation: Punctuation) -> Call[Node]:
    if value is None or isinstance(value, bool):
        return Literal({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, int | float | Decimal):
        return Literal(number_text(value))
    if isinstance(value, str):
        return string(Literal(value))
    parts: list[Node] = []
    pairs = value.items() if isinstance(value, dict) else ((None, v) for v in value)
    for key, inner in pairs:
        if parts:
            parts.append(punctuation.comma)
        if key is not None:
            parts += [string(Literal(key)), punctuation.colon]
        parts.append((yield _value_node(inner, punctuation)))
    if isinstance(value, dict):
        return seq(punctuation.open_object, *parts, punctuation.close_object)
    return seq(punctuation.open_array, *parts, punctuation.close_array)


def kind_of(value: Any) -> str:
    """The JSON type of a value, integers being numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "number"


def same_value(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and true does not equal 1."""
    return bool(_comparable(a) == _comparable(b))


def _comparable(value: Any) -> Any:
    """Values are as deep as the document, whose nesting was limited when it was read."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, dict):
        return ("object", frozenset((k, _comparable(v)) for k, v in value.items()))
    if isinstance(value, list):
        return ("array", tuple(_comparable(v) for v in value))
    return value
