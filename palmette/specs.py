"""What a hole's text must satisfy, as plain data: what the language half writes and `fsm` compiles.

Frozen and hashable, so that a specification is part of a cache's key. Nothing here is checked beyond its shape; a
backend that cannot enforce one refuses the request with UnsupportedConstraint before a token is paid for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from palmette.errors import InvalidOption, UnsupportedConstraint

MAX_WHITESPACE = 16


@dataclass(frozen=True, slots=True)
class Regex:
    """Texts that `pattern` matches whole (docs/regex-dialect.md)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choices:
    """Exactly one of these texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SchemaOptions:
    """How a schema is read and how its texts are written. Part of a JsonSchema, so of its key."""

    compact: bool = False  # {"a":1,"b":2} instead of {"a": 1, "b": 2}
    whitespace: int = 0  # further whitespace allowed at each place where JSON allows some, in characters
    strict: bool = True  # False: keywords that cannot be enforced are left out and listed as unenforced
    assert_formats: bool = True  # False: `format` is an annotation, as 2020-12's core has it, and listed as unenforced

    def __post_init__(self) -> None:
        if not 0 <= self.whitespace <= MAX_WHITESPACE:
            raise InvalidOption("whitespace", self.whitespace, f"0 to {MAX_WHITESPACE} characters")


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON texts that satisfy a schema (docs/json-schema.md). `text` is the schema as JSON; `of` takes Python data."""

    text: str
    options: SchemaOptions = SchemaOptions()

    @staticmethod
    def of(schema: Mapping[str, Any] | bool, options: SchemaOptions | None = None) -> JsonSchema:
        """The schema in Python data.

        Raises:
            UnsupportedConstraint: it is too deep, or holds what JSON cannot.
        """
        try:
            text = json.dumps(schema, ensure_ascii=False)
        except RecursionError:
            raise UnsupportedConstraint("", "schema_depth", "it is too deep to be written", "") from None
        except (TypeError, ValueError) as error:
            raise UnsupportedConstraint("", "schema", f"it is not JSON: {error}") from None
        return JsonSchema(text, options or SchemaOptions())


@dataclass(frozen=True, slots=True)
class Grammar:
    """Texts of a context-free grammar in the common subset of GBNF and Lark (docs/grammar.md)."""

    text: str


Spec: TypeAlias = Regex | Choices | JsonSchema | Grammar
