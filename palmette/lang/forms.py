"""How scalars that JSON knows only as strings are written: dates, times, durations, UUIDs and URLs, as patterns.

Each is a part of what pydantic reads: every text of a form is a value of its type. What a form leaves out (a second 60,
the year 0, a time in basic format) is never written. Patterns are anchored, for use as JSON Schema's `pattern`.
"""

from __future__ import annotations

from collections.abc import Sequence

_TWO = "[0-9]{2}"
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_CLOCK = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,6}})?"
_OFFSET = rf"(?:Z|[+\-]{_HOUR_MINUTE})"


def _day() -> str:
    """ISO 8601 calendar dates of the years 0001 to 9999: days that their month has, in leap years too."""
    year = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
    short = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    long = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    february = "02-(?:0[1-9]|1[0-9]|2[0-8])"
    by_four = "(?:0[48]|[2468][048]|[13579][26])"
    by_four_hundred = "(?:0[48]|[2468][048]|[13579][26])00"
    leap = f"(?:{_TWO}{by_four}|{by_four_hundred})"
    return f"(?:{year}-(?:{short}|{long}|{february})|{leap}-02-29)"


def _duration() -> str:
    """ISO 8601 durations of weeks, or of days, hours, minutes and seconds; small enough for a timedelta."""
    count = "[0-9]{1,6}"
    seconds = rf"{count}(?:\.[0-9]{{1,6}})?S"
    clock = f"T(?:{count}H(?:{count}M)?(?:{seconds})?|{count}M(?:{seconds})?|{seconds})"
    return f"-?P(?:{count}W|{count}D(?:{clock})?|{clock})"


def _uuid(version: str) -> str:
    """RFC 4122, section 3; `version` and the variant stand where section 4.1 has them."""
    hexa = "[0-9a-f]"
    return f"{hexa}{{8}}-{hexa}{{4}}-{version}{hexa}{{3}}-[89ab]{hexa}{{3}}-{hexa}{{12}}"


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


DATE = _whole(_day())
TIME: dict[str | None, str] = {
    None: _whole(f"{_CLOCK}{_OFFSET}?"),
    "aware": _whole(_CLOCK + _OFFSET),
    "naive": _whole(_CLOCK),
}
DATETIME: dict[str | None, str] = {
    None: _whole(f"{_day()}T{_CLOCK}{_OFFSET}?"),
    "aware": _whole(f"{_day()}T{_CLOCK}{_OFFSET}"),
    "naive": _whole(f"{_day()}T{_CLOCK}"),
}
DURATION = _whole(_duration())
FRACTION = _whole("-?[0-9]{1,9}(?:/[1-9][0-9]{0,8})?")
UUID: dict[int | None, str] = {
    None: _whole(_uuid("[1-8]")),
    **{version: _whole(_uuid(str(version))) for version in range(1, 9)},
}

BARE = frozenset({DATE, *TIME.values(), *DATETIME.values(), DURATION, *UUID.values()})  # without quotes at the top


def url(schemes: Sequence[str] | None) -> str:
    """RFC 3986 URLs of at most URL_LENGTH characters: a host name under one of `schemes` (None = any), and perhaps a
    port, a path, a query and a fragment."""
    scheme = "(?:" + "|".join(s.replace("+", "\\+") for s in schemes) + ")" if schemes else "[a-z][a-z0-9]{1,20}"
    host = r"[a-z0-9]{1,30}(?:[.\-][a-z0-9]{1,20}){0,4}\.[a-z]{2,10}"
    char = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-F]{2})"
    path = rf"(?:/(?:{char}|/){{0,200}})?"
    return _whole(rf"{scheme}://{host}(?::[1-9][0-9]{{0,3}})?{path}(?:\?{char}{{0,100}})?(?:#{char}{{0,50}})?")


URL_LENGTH = 1300
