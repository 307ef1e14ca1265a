"""From a specification to a Constraint: the door into `fsm` for everything that enforces.

    compile(Regex(r"\\d+"), vocabulary) -> Constraint -> .matcher() -> Matcher

Knows the kinds of specification and how they are keyed. Compiling builds the language and the first states only; the
automaton grows as matchers walk it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from palmette.errors import UnsupportedConstraint
from palmette.fsm.automaton import Automaton
from palmette.fsm.composite import Composer
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.matcher import Matcher
from palmette.fsm.reasoned import ReasonedMatcher
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Spec

_logger = logging.getLogger(__name__)


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
    reasoning: Constraint | None = None  # with a thinking budget: the reasoning up to its end, then anything
    thinking_budget: int = 0  # tokens

    @property
    def nbytes(self) -> int:
        """About what it has grown to; may be asked by any thread."""
        return self.automaton.nbytes + (0 if self.reasoning is None else self.reasoning.nbytes)

    def matcher(self) -> Matcher:
        """A new cursor at the beginning."""
        if self.reasoning is not None:
            return ReasonedMatcher(self, self.reasoning, self.thinking_budget)
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
    started = clock() if clock is not None else None
    special = vocabulary.template_bytes
    language, unenforced = to_language(spec, limits, clock, special=special)
    if not vocabulary.single_bytes:
        raise UnsupportedConstraint("", "vocabulary", "no token is a single byte, so no text can be completed")
    automaton = Automaton(language, vocabulary, limits, clock, started)
    if clock is not None and started is not None and clock() - started > limits.slow_compile_seconds:
        _logger.warning("compiling a constraint took %.1f s: it may delay others", clock() - started)
    key = constraint_key(spec, vocabulary, limits)
    bounded = Composer(limits, clock, special).reasoning(spec)
    if bounded is None:
        return Constraint(spec, vocabulary, limits, key, unenforced, automaton)
    thinking = Automaton(bounded.language, vocabulary, limits, clock, started)
    reasoning = Constraint(spec, vocabulary, limits, f"{key} reasoning", (), thinking)
    return Constraint(spec, vocabulary, limits, key, unenforced, automaton, reasoning, bounded.budget)
