"""From a specification to a Constraint: the door into `fsm` for everything that enforces.

    compile(Regex(r"\\d+"), vocabulary) -> Constraint -> .matcher() -> Matcher

Knows the kinds of specification and how they are keyed. Compiling builds the language and the first states only; the
automaton grows as matchers walk it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Language, Words
from palmette.fsm.automaton import Automaton
from palmette.fsm.grammar import parse_grammar
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.matcher import Matcher
from palmette.fsm.parse import parse_regex
from palmette.fsm.schema import SchemaOptions, compile_schema
from palmette.fsm.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Regex:
    """Texts that `pattern` matches whole (docs/regex-dialect.md)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choices:
    """Exactly one of these texts."""

    texts: tuple[str, ...]


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


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A compiled constraint over one vocabulary. Equal and hashed by `key`; shared by any number of matchers.

    `automaton` fills itself as it is used: one thread at a time.
    """

    spec: Spec
    vocabulary: Vocabulary
    limits: Limits
    key: str
    unenforced: tuple[str, ...]  # keywords that strict=False left to a check after generation, as "pointer keyword"
    automaton: Automaton = field(repr=False)

    def matcher(self) -> Matcher:
        """A new cursor at the beginning."""
        return Matcher(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def constraint_key(spec: Spec, vocabulary: Vocabulary, limits: Limits) -> str:
    """What a cache of constraints is keyed by."""
    return hashlib.sha256(repr((spec, vocabulary.digest, limits)).encode("utf-8", "surrogatepass")).hexdigest()


def compile(
    spec: Spec, vocabulary: Vocabulary, limits: Limits | None = None, *, clock: Callable[[], float] | None = None
) -> Constraint:
    """Compile `spec`; `clock` (seconds, such as time.monotonic) makes the limit on compile time count.

    Raises:
        UnsupportedConstraint: something would not be enforced, nothing satisfies it, or a limit is crossed.
    """
    limits = limits or Limits()
    language, unenforced = to_language(spec, limits, clock)
    if not vocabulary.single_bytes:
        raise UnsupportedConstraint("", "vocabulary", "no token is a single byte, so no text can be completed")
    automaton = Automaton(language, vocabulary, limits, clock)
    return Constraint(spec, vocabulary, limits, constraint_key(spec, vocabulary, limits), unenforced, automaton)


def to_language(
    spec: Spec, limits: Limits, clock: Callable[[], float] | None = None
) -> tuple[Language, tuple[str, ...]]:
    """The language of `spec`, and what it leaves unenforced. Needs no vocabulary."""
    if isinstance(spec, Regex):
        return Language(parse_regex(spec.pattern, limits), {}), ()
    if isinstance(spec, Choices):
        return _choices(spec.texts, limits), ()
    text = spec.text
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.spec_bytes:
        raise exceeded("spec_bytes", limits.spec_bytes, "", f"{size} bytes")
    if isinstance(spec, Grammar):
        return parse_grammar(text, limits), ()
    return compile_schema(text, spec.options, limits, clock)


def _choices(texts: tuple[str, ...], limits: Limits) -> Language:
    if not texts:
        raise UnsupportedConstraint("", "choices", "there is nothing to choose from")
    if len(texts) > limits.enum_values:
        raise exceeded("enum_values", limits.enum_values, "choices", f"{len(texts)} values")
    size = sum(len(t.encode("utf-8", "surrogatepass")) for t in texts)
    if size > limits.spec_bytes:
        raise exceeded("spec_bytes", limits.spec_bytes, "choices", f"{size} bytes")
    for i, text in enumerate(texts):
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise UnsupportedConstraint(f"choice {i}", "lone surrogate", "it is not a character")
    return Language(Words(tuple(dict.fromkeys(texts))), {})
