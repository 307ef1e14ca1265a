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


# -- specifications made of others ------------------------------------------------------------------------------------
#
# A `str` among their fields is template text: where the model has a special token of that text, such as <tool_call>,
# it stands for that token, and otherwise for its characters. The specifications inside never hold special tokens.


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts one after the other; a `str` is template text."""

    parts: tuple[Spec | str, ...]

    def __post_init__(self) -> None:
        _check_depth(self)


@dataclass(frozen=True, slots=True)
class OneOf:
    """What satisfies one of the parts; a `str` is template text."""

    parts: tuple[Spec | str, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidOption("parts", self.parts, "at least one")
        _check_depth(self)


@dataclass(frozen=True, slots=True)
class Repeated:
    """`part` from `low` to `high` times (None = any number), with `separator`, template text, in between."""

    part: Spec
    low: int = 0
    high: int | None = None
    separator: str = ""

    def __post_init__(self) -> None:
        if self.low < 0:
            raise InvalidOption("low", self.low, "0 or more")
        if self.high is not None and self.high < max(self.low, 1):
            raise InvalidOption("high", self.high, f"at least {max(self.low, 1)}, or None for any number")
        _check_depth(self)


@dataclass(frozen=True, slots=True)
class Tag:
    """`begin`, template text, then `content` (None = any text up to `end`), then `end`, template text."""

    begin: str
    content: Spec | None
    end: str = ""


@dataclass(frozen=True, slots=True)
class Tagged:
    """Free text with tags in it: as soon as a trigger is written, one of the tags that begin with it must follow.

    `triggers` are beginnings of the tags' `begin`; none means every `begin` itself. The free text holds no trigger and
    may end anywhere, once there was a tag if `at_least_one`. With `stop_after_first` the text ends with its first tag.
    """

    tags: tuple[Tag, ...]
    triggers: tuple[str, ...] = ()
    at_least_one: bool = False
    stop_after_first: bool = False

    def __post_init__(self) -> None:
        if not self.tags:
            raise InvalidOption("tags", self.tags, "at least one")
        for tag in self.tags:
            if not tag.begin:
                raise InvalidOption("begin", tag.begin, "a text: without one nothing would start the tag")
            if self.triggers and not any(tag.begin.startswith(t) for t in self.triggers):
                raise InvalidOption("begin", tag.begin, f"a text that begins with a trigger: {self.triggers}")
        for trigger in self.triggers:
            if not trigger or not any(tag.begin.startswith(trigger) for tag in self.tags):
                raise InvalidOption("triggers", trigger, "the beginning of at least one tag")
        _check_depth(self)


@dataclass(frozen=True, slots=True)
class Reasoned:
    """`begin`, then reasoning as free text up to the first `end`, then `content` (None = free text).

    `begin` is empty where the prompt already wrote the opening mark. `budget` is the number of tokens the reasoning may
    take before the mask forces the shortest way to `end`; None = no bound. With a budget it stands alone or right
    behind the prefix of a Healed, never inside another specification.
    """

    end: str
    content: Spec | None = None
    budget: int | None = None
    begin: str = ""

    def __post_init__(self) -> None:
        if not self.end:
            raise InvalidOption("end", self.end, "a text: without one the reasoning would never end")
        if self.budget is not None and self.budget < 0:
            raise InvalidOption("budget", self.budget, "0 or more tokens")
        _check_depth(self)


@dataclass(frozen=True, slots=True)
class Healed:
    """`prefix`, the text of prompt tokens that were taken back, then `content` (None = free text).

    `prefix` is plain text: no special token is ever taken back.
    """

    prefix: str
    content: Spec | None = None

    def __post_init__(self) -> None:
        _check_depth(self)


Spec: TypeAlias = Regex | Choices | JsonSchema | Grammar | Concat | OneOf | Repeated | Tagged | Reasoned | Healed

MAX_SPEC_DEPTH = 64  # specifications inside specifications


def _check_depth(spec: Spec) -> None:
    """Each specification is checked when it is made, so those inside have at most MAX_SPEC_DEPTH levels."""
    level: list[Spec] = [spec]
    for _ in range(MAX_SPEC_DEPTH):
        level = list({id(inner): inner for outer in level for inner in inner_specs(outer)}.values())
        if not level:
            return
    raise UnsupportedConstraint("", "specification", f"it is nested deeper than {MAX_SPEC_DEPTH} levels")


def inner_specs(spec: Spec) -> tuple[Spec, ...]:
    """The specifications directly inside `spec`."""
    if isinstance(spec, Concat | OneOf):
        return tuple(p for p in spec.parts if not isinstance(p, str))
    if isinstance(spec, Repeated):
        return (spec.part,)
    if isinstance(spec, Tagged):
        return tuple(tag.content for tag in spec.tags if tag.content is not None)
    if isinstance(spec, Reasoned | Healed):
        return () if spec.content is None else (spec.content,)
    return ()
