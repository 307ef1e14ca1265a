"""What a chat template asks for: variables, keys of messages, texts that it looks for in contents.

Read from the template's words, without running it. Knows nothing of conversations; a name that a template only mentions
counts as read, so that whoever relies on one must see what was rendered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import Environment, TemplateError

# Methods of a text whose first argument is looked for in it.
_LOOKS = {
    "split", "rsplit", "partition", "rpartition", "startswith", "endswith", "replace", "find", "rfind", "index",
    "rindex", "count", "removeprefix", "removesuffix",
}  # fmt: skip
_MIN_LOOKED_FOR = 2  # characters that are no white space; a single one tells no mark from a text


@dataclass(frozen=True, slots=True)
class Reading:
    variables: frozenset[str]  # names that stand for themselves
    keys: frozenset[str]  # attributes, and all literals
    looked_for: tuple[str, ...]  # longest first


@lru_cache(maxsize=16)
def read_template(source: str) -> Reading:
    """Of a template that cannot be read at all everything is empty: rendering it will say why."""
    try:
        tokens = list(_tokens(source))
    except (TemplateError, RecursionError):
        tokens = []
    variables: set[str] = set()
    keys: set[str] = set()
    looked_for: set[str] = set()
    for i, (kind, value) in enumerate(tokens):
        before = [v for _, v in tokens[max(i - 3, 0) : i]]
        after = [v for _, v in tokens[i + 1 : i + 3]]
        if kind == "string":
            keys.add(value)
            is_method = len(before) == 3 and before[0] == "." and before[1] in _LOOKS and before[2] == "("
            if (is_method or after[:1] == ["in"] or after == ["not", "in"]) and len(value.strip()) >= _MIN_LOOKED_FOR:
                looked_for.add(value)
        elif before[-1:] == ["."]:
            keys.add(value)
        elif kind == "name" and after[:1] != ["="]:
            variables.add(value)
    return Reading(frozenset(variables), frozenset(keys), tuple(sorted(looked_for, key=lambda t: (-len(t), t))))


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    """Names, operators and texts of the template's code, in order."""
    for _, kind, value in Environment(autoescape=False).lex(source):
        if kind == "string":
            yield kind, _literal(value)
        elif kind in ("name", "operator"):
            yield kind, value


def _literal(quoted: str) -> str:
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[1]), quoted[1:-1], flags=re.S)
