"""How a schema is read and how its texts are written."""

from __future__ import annotations

from dataclasses import dataclass

from palmette.errors import InvalidOption

MAX_WHITESPACE = 16


@dataclass(frozen=True, slots=True)
class SchemaOptions:
    """Part of a JsonSchema specification, so of its key."""

    compact: bool = False  # {"a":1,"b":2} instead of {"a": 1, "b": 2}
    whitespace: int = 0  # further whitespace allowed at each place where JSON allows some, in characters
    strict: bool = True  # False: keywords that cannot be enforced are left out and listed in Constraint.unenforced
    assert_formats: bool = (
        True  # False: `format` is an annotation, as the 2020-12 core has it, and listed as unenforced
    )

    def __post_init__(self) -> None:
        if not 0 <= self.whitespace <= MAX_WHITESPACE:
            raise InvalidOption("whitespace", self.whitespace, f"0 to {MAX_WHITESPACE} characters")
