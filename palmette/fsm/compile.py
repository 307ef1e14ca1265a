"""From a specification to a Constraint: the door into `fsm` for everything that enforces.

    compile(Regex(r"\\d+"), vocabulary) -> Constraint -> .matcher() -> Matcher

Knows the kinds of specification and how they are keyed. Compiling builds the language and the first states only; the
automaton grows as matchers walk it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from palmette.errors import UnsupportedConstraint
from palmette.fsm.automaton import Automaton
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.matcher import Matcher
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Spec


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
