"""From a specification to its language: the part of compiling that needs no vocabulary, and loads no numpy.

The language half calls it to refuse a constraint on the author's own line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from palmette.fsm.algebra import Language
from palmette.fsm.basic import basic_language
from palmette.fsm.composite import Composer
from palmette.fsm.limits import Limits
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
