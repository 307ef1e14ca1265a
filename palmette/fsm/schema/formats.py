"""The formats of JSON Schema that are regular, as regexes of the package's own dialect. Sources: the RFCs named there.

`KNOWN_OPEN` are formats of the specification that are not enforced; any other name is an annotation by the standard.
"""

from __future__ import annotations

_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]{1,9})?([Zz]|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
# RFC 1123, section 2.1. Labels with -- in the third place (RFC 5890) are left out: whether they are valid depends on
# Unicode tables, and a hostname in its own letters is what they stand for.
_LABEL = (
    r"[A-Za-z0-9](?:[A-Za-z0-9]?|[A-Za-z0-9\-](?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9\-]{0,59}[A-Za-z0-9]"
    r"|-[A-Za-z0-9](?:[A-Za-z0-9\-]{0,58}[A-Za-z0-9])?))"
)
_HOST = rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+"


def _dates() -> str:
    """RFC 3339 full-date: days that their month has, the 29th of February in leap years."""
    year = "[0-9]{4}"
    short = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    long = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    february = "02-(0[1-9]|1[0-9]|2[0-8])"
    by_four = "(0[48]|[2468][048]|[13579][26])"
    leap = f"([0-9]{{2}}{by_four}|(00|{by_four[1:-1]})00)"
    return f"({year}-({short}|{long}|{february})|{leap}-02-29)"


def _ipv6() -> str:
    """RFC 4291, section 2.2: eight groups, one run of zero groups as ::, the last two perhaps as IPv4."""
    group = "[0-9A-Fa-f]{1,4}"
    last = f"({group}:{group}|{_IPV4})"
    full = f"({group}:){{6}}{last}"
    out = [full, f"::({group}:){{5}}{last}"]
    for before in range(1, 6):  # at most so many groups before ::
        out.append(f"(({group}:){{0,{before - 1}}}{group})?::({group}:){{{5 - before}}}{last}")
    out.append(f"(({group}:){{0,5}}{group})?::{group}")
    out.append(f"(({group}:){{0,6}}{group})?::")
    return "(" + "|".join(out) + ")"


def _uri_tail(*, colon_first: bool) -> str:
    """RFC 3986, appendix A: what follows the scheme's colon; the first segment of a relative path holds no colon."""
    char = r"([A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
    path_char = rf"({char}|[:@])"
    host = rf"(\[({_ipv6()}|v[0-9A-Fa-f]+\.([A-Za-z0-9\-._~!$&'()*+,;=:])+)\]|{char}*)"
    authority = rf"//(({char}|:)*@)?{host}(:[0-9]*)?(/{path_char}*)*"
    first = path_char if colon_first else rf"({char}|@)"
    path = rf"(/({path_char}+(/{path_char}*)*)?|{first}+(/{path_char}*)*)?"
    return rf"({authority}|{path})(\?({path_char}|[/?])*)?(#({path_char}|[/?])*)?"


FORMATS = {
    "date": _dates(),
    "time": _TIME,
    "date-time": rf"{_dates()}[Tt]{_TIME}",
    "duration": r"P([0-9]+W|(([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
    r"(T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S))?)"
    r"|T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S))",
    "email": rf"{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uuid": r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.\-]*:{_uri_tail(colon_first=True)}",
    "uri-reference": rf"([A-Za-z][A-Za-z0-9+.\-]*:{_uri_tail(colon_first=True)}|{_uri_tail(colon_first=False)})",
    "json-pointer": r"(/([^~/]|~[01])*)*",
    "relative-json-pointer": r"(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)",
}
KNOWN_OPEN = frozenset({"idn-email", "idn-hostname", "iri", "iri-reference", "uri-template", "regex"})
