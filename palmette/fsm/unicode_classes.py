"""Named character classes and case folding, from the `unicodedata` of the running Python.

Knows which code points a name stands for. `\\d \\w \\s` are ASCII; case folding is that of Python's `re` for text: two
characters are equal when their lower-case forms are, or when those share an upper-case form.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from palmette.fsm.charset import ANY, CharSet, charset, intersect, negate, union

DIGIT = charset([(0x30, 0x39)])
WORD = charset([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
SPACE = charset([(0x09, 0x0D), (0x20, 0x20)])
ECMA_SPACE = union(
    SPACE,
    charset([(0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F)]),
    charset([(0x3000, 0x3000), (0xFEFF, 0xFEFF)]),
)
ESCAPED_CLASSES = {
    "d": DIGIT,
    "D": negate(DIGIT),
    "w": WORD,
    "W": negate(WORD),
    "s": SPACE,
    "S": negate(SPACE),
}

# ASCII letters that also equal characters outside ASCII: dotless and dotted i, Kelvin sign, long s.
_ASCII_FOLDS = {"i": (0x130, 0x131), "k": (0x212A,), "s": (0x17F,)}
_LONG_NAMES = {
    "Letter": "L",
    "Lowercase_Letter": "Ll",
    "Uppercase_Letter": "Lu",
    "Titlecase_Letter": "Lt",
    "Modifier_Letter": "Lm",
    "Other_Letter": "Lo",
    "Mark": "M",
    "Number": "N",
    "Decimal_Number": "Nd",
    "Punctuation": "P",
    "Symbol": "S",
    "Separator": "Z",
    "Space_Separator": "Zs",
    "Other": "C",
    "Control": "Cc",
}


def unicode_property(name: str) -> CharSet | None:
    """The code points of a general category (`L`, `Lu`, `Letter`, `gc=Lu`), `Any` or `ASCII`; None when unknown."""
    if name == "Any":
        return ANY
    if name == "ASCII":
        return charset([(0, 0x7F)])
    for prefix in ("gc=", "General_Category="):
        name = name.removeprefix(prefix)
    name = _LONG_NAMES.get(name, name)
    sets = [s for category, s in _categories() if category == name or (len(name) == 1 and category[0] == name)]
    return union(*sets) if sets else None


def fold_case(s: CharSet) -> CharSet:
    """`s` and every character equal to one of its characters under `(?i)`."""
    if not s:
        return s
    if s[-1][1] < 0x80:
        extra: list[tuple[int, int]] = []
        for low, high in s:
            for c in range(max(low, 0x41), min(high, 0x7A) + 1):
                letter = chr(c).lower()
                if letter.isalpha():
                    extra += [(ord(letter), ord(letter)), (ord(letter) - 32, ord(letter) - 32)]
                    extra += [(x, x) for x in _ASCII_FOLDS.get(letter, ())]
        return charset([*s, *extra])
    folded = [s]
    for members in _fold_classes():
        if intersect(s, members):
            folded.append(members)
    return union(*folded)


@lru_cache(maxsize=1)
def _categories() -> tuple[tuple[str, CharSet], ...]:
    ranges: dict[str, list[tuple[int, int]]] = {}
    start, current = 0, unicodedata.category("\0")
    for c in range(1, 0x110000):
        category = unicodedata.category(chr(c))
        if category != current:
            ranges.setdefault(current, []).append((start, c - 1))
            start, current = c, category
    ranges.setdefault(current, []).append((start, 0x10FFFF))
    return tuple((name, charset(r)) for name, r in ranges.items())


@lru_cache(maxsize=1)
def _fold_classes() -> tuple[CharSet, ...]:
    """Classes of two or more equal characters."""
    by_lower: dict[int, set[int]] = {}
    for c in range(0x1E944):
        text = chr(c)
        lower = text.lower()
        if len(lower) > 1:  # only U+0130, whose simple lower-case form is i
            lower = lower[0]
        if lower != text:
            by_lower.setdefault(ord(lower), {ord(lower)}).add(c)
    # Lower-case characters with one upper-case form are equal too (sigma and final sigma, mu and micro).
    by_upper: dict[str, set[int]] = {}
    for c in range(0x1E944):
        text = chr(c)
        if text.lower() == text and text.upper() != text and not 0xD800 <= c <= 0xDFFF:
            by_upper.setdefault(text.upper(), set()).add(c)
    merged: dict[int, set[int]] = {k: set(v) for k, v in by_lower.items()}
    for lowers in by_upper.values():
        if len(lowers) < 2:
            continue
        joined = set(lowers)
        for c in lowers:
            joined |= merged.get(c, set())
        for c in lowers:
            merged[c] = joined
    unique = {frozenset(v) for v in merged.values() if len(v) > 1}
    return tuple(charset((c, c) for c in v) for v in unique)
