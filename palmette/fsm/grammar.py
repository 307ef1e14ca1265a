"""Context-free grammars as text: the common subset of GBNF and Lark described in docs/grammar.md.

    root  ::= item ("," item)*      GBNF: ::= and rules that go on while brackets are open; the start is `root`
    start: item ("," item)*         Lark: a colon, | on the next line; the start is `start`
    item: "a".."z"+ | /[0-9]{2,3}/ | [^"\\] | other?

One pass of a scanner and one of a parser with an explicit stack. Whitespace means nothing to the language: what is not
written in the grammar is not allowed in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Language, Literal, Node, Ref, alt, repeat, seq
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.parse import parse_regex

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*|//[^\n]*)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\\n]|\\.)*"i?)
      | (?P<regex>/(?:[^/\\\n]|\\.)+/[imsx]*)
      | (?P<class>\[(?:[^\]\\\n]|\\.)*\])
      | (?P<name>[A-Za-z_][A-Za-z0-9_-]*)
      | (?P<define>::=|:)
      | (?P<range>\.\.)
      | (?P<count>\{[ ]*\d*[ ]*(?:,[ ]*\d*)?[ ]*\})
      | (?P<op>[|()*+?!])
      | (?P<directive>%[a-z]+)""",
    re.VERBOSE,
)
_PREFIXES = ("?", "!")  # Lark's marks on a rule's name: they shape a parse tree, not a language
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "/": "/", "f": "\f", "b": "\b", "[": "[", "]": "]"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    offset: int


@dataclass(slots=True)
class _Open:
    """An open bracket: its finished alternatives and the sequence being read."""

    offset: int
    alternatives: list[Node] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)

    def close(self) -> Node:
        return alt([*self.alternatives, seq(*self.parts)])


def parse_grammar(text: str, limits: Limits) -> Language:
    """The language of a grammar.

    Raises:
        UnsupportedConstraint: `path` is "offset N" or a rule's name.
    """
    tokens = _scan(text)
    starts = [i for i, token in enumerate(tokens) if token.kind == "define" and i and tokens[i - 1].kind == "name"]
    if not starts or any(t.kind != "newline" and t.text not in _PREFIXES for t in tokens[: starts[0] - 1]):
        raise _refuse(0, "grammar", "it must begin with a rule, such as root ::= ...")
    rules: dict[str, Node] = {}
    names: set[str] = set()
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        end = len(tokens) if following is None else following - 1
        while following is not None and tokens[end - 1].text in _PREFIXES:
            end -= 1
        if following is not None and tokens[end - 1].kind != "newline":
            raise _refuse(tokens[following].offset, "rule", "a rule must begin on a line of its own")
        name = tokens[start - 1].text
        if name in rules:
            raise _refuse(tokens[start].offset, name, "this rule is defined twice", "join the definitions with |")
        rules[name] = _rule(tokens[start + 1 : end], limits, names)
    for name in sorted(names):
        if name not in rules:
            raise UnsupportedConstraint(name, "rule", "no rule has this name", "define it, or quote it for the text")
    first = next((n for n in ("root", "start") if n in rules), next(iter(rules)))
    return Language(Ref(first), rules)


def _scan(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _refuse(at, text[at], "this character means nothing here")
        kind = found.lastgroup or ""
        if kind == "directive":
            raise _refuse(at, found[0], "directives are not in the subset", "write terminals out; nothing is ignored")
        if kind != "space":
            tokens.append(_Token(kind, found[0], at))
        at = found.end()
    return tokens


def _rule(tokens: list[_Token], limits: Limits, names: set[str]) -> Node:
    stack = [_Open(tokens[0].offset if tokens else 0)]
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        if token.kind == "newline":
            continue
        if token.text == "|":
            stack[-1].alternatives.append(seq(*stack[-1].parts))
            stack[-1].parts = []
            continue
        if token.text == "(" and token.kind == "op":
            if len(stack) > limits.regex_nesting:
                raise exceeded("regex_nesting", limits.regex_nesting, f"offset {token.offset}", "deeper brackets")
            stack.append(_Open(token.offset))
            continue
        if token.text == ")" and token.kind == "op":
            if len(stack) == 1:
                raise _refuse(token.offset, ")", "no bracket is open here")
            node = stack.pop().close()
        elif token.kind == "string" and i + 1 < len(tokens) and tokens[i].kind == "range":
            node = _span(token, tokens[i + 1])
            i += 2
        else:
            node = _atom(token, limits, names)
        while i < len(tokens) and (tokens[i].kind == "count" or tokens[i].text in ("*", "+", "?")):
            node = _repeated(node, tokens[i], limits)
            i += 1
        stack[-1].parts.append(node)
    if len(stack) > 1:
        raise _refuse(stack[-1].offset, "(", "the bracket is never closed")
    return stack[0].close()


def _atom(token: _Token, limits: Limits, names: set[str]) -> Node:
    if token.kind == "name":
        names.add(token.text)
        return Ref(token.text)
    if token.kind == "string":
        if token.text.endswith("i"):
            return _regex(f"(?i:{re.escape(_unquoted(token))})", token, limits)
        return Literal(_unquoted(token))
    if token.kind == "class":
        return _regex(token.text, token, limits)
    if token.kind == "regex":
        body, _, flags = token.text[1:].rpartition("/")
        body = body.replace("\\/", "/")
        return _regex(f"(?{flags}:{body})" if flags else body, token, limits)
    raise _refuse(token.offset, token.text, "a name, a text, a class or a regex was expected here")


def _regex(pattern: str, token: _Token, limits: Limits) -> Node:
    try:
        return parse_regex(pattern, limits)
    except UnsupportedConstraint as error:
        reason = f"in its regex, at {error.path}: {error.reason}"
        raise UnsupportedConstraint(f"offset {token.offset}", error.keyword, reason, error.hint) from None


def _repeated(node: Node, token: _Token, limits: Limits) -> Node:
    if token.kind != "count":
        return repeat(node, 1 if token.text == "+" else 0, 1 if token.text == "?" else None)
    low, comma, high = token.text[1:-1].replace(" ", "").partition(",")
    least, most = int(low or 0), int(high) if high else None if comma else int(low or 0)
    if max(least, most or 0) > limits.repeat:
        raise exceeded("repeat", limits.repeat, f"offset {token.offset}", f"{max(least, most or 0)} repetitions")
    if most is not None and most < least:
        raise _refuse(token.offset, token.text, "the lower bound is above the upper one")
    return repeat(node, least, most)


def _span(first: _Token, last: _Token) -> Node:
    a, b = _unquoted(first), _unquoted(last) if last.kind == "string" else ""
    if len(a) != 1 or len(b) != 1 or a > b:
        raise _refuse(first.offset, "..", "a span needs one character on both sides, in order")
    return parse_regex(f"[\\U{ord(a):08x}-\\U{ord(b):08x}]")


def _unquoted(token: _Token) -> str:
    body = token.text[1:].removesuffix("i").removesuffix('"') if token.text.endswith('"i') else token.text[1:-1]
    out: list[str] = []
    at = 0
    while at < len(body):
        if body[at] != "\\":
            out.append(body[at])
            at += 1
            continue
        char = body[at + 1]
        length = {"x": 2, "u": 4, "U": 8}.get(char)
        if length is not None and re.fullmatch(f"[0-9A-Fa-f]{{{length}}}", body[at + 2 : at + 2 + length]):
            code = int(body[at + 2 : at + 2 + length], 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise _refuse(token.offset, "\\" + char, "it is not a character")
            out.append(chr(code))
            at += 2 + length
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
            at += 2
        else:
            raise _refuse(token.offset, "\\" + char, "this escape is not in the subset")
    text = "".join(out)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise _refuse(token.offset, "lone surrogate", "it is not a character")
    return text


def _refuse(offset: int, keyword: str, reason: str, hint: str = "") -> UnsupportedConstraint:
    return UnsupportedConstraint(f"offset {offset}", keyword, reason, hint)
