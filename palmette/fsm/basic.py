"""The languages of the specifications that hold no others: regex, choices, schema and grammar.

Loads no numpy: the language half calls it to refuse a constraint on the author's own line.
"""

from __future__ import annotations

from collections.abc import Callable

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Language, Words
from palmette.fsm.grammar import parse_grammar
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.parse import parse_regex
from palmette.fsm.schema import compile_schema
from palmette.specs import Choices, Grammar, JsonSchema, Regex


def basic_language(
    spec: Regex | Choices | JsonSchema | Grammar, limits: Limits, clock: Callable[[], float] | None
) -> tuple[Language, tuple[str, ...]]:
    """The language of `spec`, and the keywords it leaves unenforced (`strict=False`), as "pointer keyword".

    Raises:
        UnsupportedConstraint: something would not be enforced, or a limit is crossed.
    """
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
