"""From a specification to its language: the part of compiling that needs no vocabulary, and loads no numpy.

The language half calls it to refuse a constraint on the author's own line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Language
from palmette.fsm.basic import basic_language
from palmette.fsm.budget import Budget
from palmette.fsm.composite import Composer
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec


def to_language(
    spec: Spec,
    limits: Limits | None = None,
    clock: Callable[[], float] | None = None,
    *,
    special: Mapping[str, bytes | None] | None = None,
) -> tuple[Language, tuple[str, ...]]:
    """The language of `spec`, and the keywords it leaves unenforced (`strict=False`), as "pointer keyword".

    Args:
        special: `Vocabulary.template_bytes`; without a vocabulary all template text is plain.

    Raises:
        UnsupportedConstraint: something would not be enforced, or a limit is crossed.
    """
    limits = limits or Limits()
    if isinstance(spec, Regex | Choices | JsonSchema | Grammar):
        return basic_language(spec, limits, clock)
    return Composer(limits, clock, special or {}).language(spec)


def check(spec: Spec, limits: Limits | None = None, clock: Callable[[], float] | None = None) -> tuple[str, ...]:
    """What `spec` leaves unenforced, once it is known that some text satisfies it.

    Limits on states and time that are crossed in finding that out are left to `compile`, which has a vocabulary's.

    Raises:
        UnsupportedConstraint: something would not be enforced, a limit of reading it is crossed, or no text satisfies
            it.
    """
    limits = limits or Limits()
    language, unenforced = to_language(spec, limits, clock)
    try:
        Lowering(Budget(limits, clock)).language(language)
    except UnsupportedConstraint as error:
        if error.keyword == "empty language":
            raise
    return unenforced
