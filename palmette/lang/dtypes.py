"""`dtype=`: SGLang's regular expressions behind int, float, bool and str, and the stop strings that come with them.

The value of such a hole is its text, as in SGLang. A number may go on as long as there are digits, so a space or a line
break behind it ends the hole.
"""

from __future__ import annotations

from typing import Any

from palmette.errors import InvalidOption

REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""

_NUMBER_ENDS = (" ", "\n")
_DTYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int": (REGEX_INT, _NUMBER_ENDS),
    "float": (REGEX_FLOAT, _NUMBER_ENDS),
    "bool": (REGEX_BOOL, ()),
    "str": (REGEX_STR, ()),
}


def dtype_regex(dtype: Any) -> tuple[str, tuple[str, ...]]:
    """The regex of a dtype, given as a type or by its name, and the stop strings it adds.

    Raises:
        InvalidOption: another type; `type=` takes those.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", repr(dtype))
    if name not in _DTYPES or not isinstance(dtype, str | type):
        raise InvalidOption("dtype", dtype, f"one of {', '.join(_DTYPES)}; other types are for type=")
    pattern, ends = _DTYPES[name]
    return pattern.replace("[ \\n]*", "[ \\n]?"), ends  # the first of them ends the hole
