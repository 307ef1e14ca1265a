"""The regex dialect of `docs/regex-dialect.md`: from a pattern to nodes of the algebra, or a refusal that says where.

Pure Python without numpy, so that the language half can check a pattern on the author's line. One pass with an explicit
stack: the nesting of groups costs no Python recursion. What Python and ECMA-262 read differently is refused, or named
on that page with the reading taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from palmette.fsm.algebra import (
    ANY_CHAR,
    NOT_NEWLINE,
    Anchor,
    Chars,
    Literal,
    Look,
    Node,
    alt,
    is_empty_word,
    repeat,
    seq,
)
from palmette.fsm.anchors import resolve
from palmette.fsm.charset import ANY, CharSet, charset, single, subtract
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.regex_reader import NOT_REGULAR, Reader
from palmette.fsm.unicode_classes import fold_case

_ECMA_LINE_ENDS = charset([(10, 10), (13, 13), (0x2028, 0x2029)])
_PLAIN = re.compile(r"[^\\.^$|()\[{*+?\ud800-\udfff]+")


def parse_regex(pattern: str, limits: Limits | None = None, *, search: bool = False, ecma: bool = False) -> Node:
    """The language of `pattern`: texts it matches whole, or with `search` texts in which it is found.

    With `ecma`, `\\s` and `.` are those of ECMA-262, as JSON Schema has them: more kinds of spaces and line ends.
    The result holds no Look, and Anchors only inside an Anchored.

    Raises:
        UnsupportedConstraint: not in the dialect, or over a limit; `path` is "offset N".
    """
    limits = limits or Limits()
    size = len(pattern.encode("utf-8", "surrogatepass"))
    if size > limits.spec_bytes:
        raise exceeded("spec_bytes", limits.spec_bytes, "offset 0", f"{size} bytes")
    return resolve(_Parser(pattern, limits, ecma=ecma).parse(), search=search)


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    multiline: bool = False
    verbose: bool = False


@dataclass(slots=True)
class _Group:
    """An open group: finished alternatives, the sequence being read, and what to do when it closes."""

    offset: int
    flags: _Flags  # in force inside
    kind: str = "group"  # group | look | neglook
    alternatives: list[Node] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)
    products: list[int] = field(default_factory=list)  # of the counted repeats inside each part
    product: int = 1  # largest in the finished alternatives

    def close(self) -> tuple[Node, int]:
        node = alt([*self.alternatives, seq(*self.parts)]) if self.alternatives else seq(*self.parts)
        return node, max([self.product, *self.products])


class _Parser(Reader):
    def __init__(self, pattern: str, limits: Limits, *, ecma: bool) -> None:
        super().__init__(pattern, ecma=ecma)
        self.not_line_end = Chars(subtract(ANY, _ECMA_LINE_ENDS)) if ecma else NOT_NEWLINE
        self.limits = limits
        self.stack = [_Group(0, _Flags())]

    def parse(self) -> Node:
        while self.pos < len(self.text):
            self._item()
        if len(self.stack) > 1:
            raise self.refuse(self.stack[-1].offset, "(", "the group is never closed", "add ) or write \\(")
        return self.stack[0].close()[0]

    def _item(self) -> None:
        start, char = self.pos, self.text[self.pos]
        group = self.stack[-1]
        self.pos += 1
        if group.flags.verbose and (char.isspace() or char == "#"):
            if char == "#":
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) if end < 0 else end + 1
        elif char == "|":
            node = seq(*group.parts)
            group.alternatives.append(node)
            group.product = max([group.product, *group.products])
            group.parts, group.products = [], []
        elif char == "(":
            self._open(start)
        elif char == ")":
            self._close(start)
        elif char in "*+?" or (char == "{" and self._counted(start) is not None):
            raise self.refuse(start, char, "there is nothing to repeat", f"write \\{char} for the character")
        elif not group.flags.ignore_case and not group.flags.verbose and (run := _PLAIN.match(self.text, start)):
            # All but the last letter are one literal; the last one may be repeated.
            if len(run[0]) > 1:
                group.parts.append(Literal(run[0][:-1]))
                group.products.append(1)
            self.pos = run.end()
            self._quantify(Literal(run[0][-1]), 1, assertion=False)
        else:
            self._atom(start, char)

    def _atom(self, start: int, char: str) -> None:
        flags = self.stack[-1].flags
        if char == ".":
            node: Node = ANY_CHAR if flags.dot_all else self.not_line_end
        elif char == "^":
            node = Anchor(end=False, multiline=flags.multiline)
        elif char == "$":
            node = Anchor(end=True, multiline=flags.multiline)
        elif char == "[":
            node = Chars(self.bracket(start, ignore_case=flags.ignore_case))
        elif char == "\\":
            escaped = self.escape(start, in_class=False)
            node = escaped if isinstance(escaped, Anchor) else self._characters(escaped, flags)
        else:
            if 0xD800 <= ord(char) <= 0xDFFF:
                raise self.refuse(start, "lone surrogate", "it is not a character", "write the whole character")
            node = self._characters(single(ord(char)), flags)
        self._quantify(node, 1, assertion=isinstance(node, Anchor))

    def _characters(self, chars: CharSet, flags: _Flags) -> Node:
        if flags.ignore_case:
            chars = fold_case(chars)
        if len(chars) == 1 and chars[0][0] == chars[0][1]:
            return Literal(chr(chars[0][0]))
        return Chars(chars)

    # -- groups ----------------------------------------------------------------------------------------------------

    def _open(self, start: int) -> None:
        flags = self.stack[-1].flags
        if len(self.stack) > self.limits.regex_nesting:
            raise exceeded("regex_nesting", self.limits.regex_nesting, f"offset {start}", "deeper groups")
        kind = "group"
        if self.take("?"):
            if self.take(":"):
                pass
            elif self.take("P<") or (self.peek() == "<" and self.text[self.pos + 1 : self.pos + 2] not in ("=", "!")):
                self.take("<")
                end = self.text.find(">", self.pos)
                if end < 0 or not self.text[self.pos : end].isidentifier():
                    raise self.refuse(start, "(?<", "the group's name is not an identifier followed by >")
                self.pos = end + 1
            elif self.take("="):
                kind = "look"
            elif self.take("!"):
                kind = "neglook"
            elif self.take("<=") or self.take("<!"):
                raise self.refuse(start, "lookbehind", "only lookaheads are supported", "state it from the left")
            elif self.take(">"):
                raise self.refuse(
                    start, "atomic group", "it depends on the matcher's order, not on the language", "(?:"
                )
            elif self.take("P="):
                raise self.refuse(start, "back-reference", NOT_REGULAR, "repeat the group's own pattern")
            elif self.take("("):
                raise self.refuse(start, "conditional group", NOT_REGULAR, "write the two cases as alternatives")
            elif self.take("#"):
                end = self.text.find(")", self.pos)
                if end < 0:
                    raise self.refuse(start, "(?#", "the comment is never closed")
                self.pos = end + 1
                return
            else:
                inner = self._flag_group(start, flags)
                if inner is None:
                    return
                flags = inner
        self.stack.append(_Group(start, flags, kind))

    def _flag_group(self, start: int, flags: _Flags) -> _Flags | None:
        """`(?i)` changes the enclosing group and returns None; `(?i-s:` returns the new group's flags."""
        values = {
            "i": flags.ignore_case,
            "s": flags.dot_all,
            "m": flags.multiline,
            "x": flags.verbose,
            "u": True,  # text is Unicode anyway
        }
        value = True
        while self.pos < len(self.text):
            char = self.text[self.pos]
            self.pos += 1
            if char in values:
                values[char] = value
            elif char == "-" and value:
                value = False
            elif char in ":)":
                new = _Flags(values["i"], values["s"], values["m"], values["x"])
                if char == ":":
                    return new
                if start != 0:
                    raise self.refuse(start, "inline flags", "they stand behind the start of the pattern", "(?i:...)")
                self.stack[-1].flags = new
                return None
            else:
                what = "flag" if char.isalpha() else "group"
                raise self.refuse(start, f"(?{char}", f"this kind of {what} is not in the dialect")
        raise self.refuse(start, "(?", "the group is never closed")

    def _close(self, start: int) -> None:
        if len(self.stack) == 1:
            raise self.refuse(start, ")", "no group is open here", "write \\) for the character")
        group = self.stack.pop()
        node, product = group.close()
        if group.kind != "group":
            node = Look(node, group.kind == "neglook", group.offset)
        self._quantify(node, product, assertion=group.kind != "group")

    # -- quantifiers -----------------------------------------------------------------------------------------------

    def _quantify(self, node: Node, product: int, *, assertion: bool) -> None:
        """Read the quantifier behind `node`, if there is one, and append the result to the open group."""
        group = self.stack[-1]
        if group.flags.verbose:
            self._skip_verbose()
        here = self.pos
        bounds = self._bounds(here)
        if bounds is not None:
            low, high, text = bounds
            if assertion:
                raise self.refuse(here, text, "it repeats an assertion, which dialects read differently", "remove it")
            for bound in (low, high or 0):
                if bound > self.limits.repeat:
                    raise exceeded("repeat", self.limits.repeat, f"offset {here}", f"{bound} repetitions")
            if high is not None and high < low:
                raise self.refuse(here, text, "the lower bound is above the upper one")
            product *= max(high if high is not None else low, 1)
            if product > self.limits.repeat_product:
                limit = self.limits.repeat_product
                raise exceeded("repeat_product", limit, f"offset {here}", f"{product} nested repetitions")
            node = repeat(node, low, high)
            self.take("?")  # lazy: another order of search, the same language
            if self.peek() == "+":
                raise self.refuse(
                    self.pos, text + "+", "a possessive quantifier depends on the matcher's order", "drop +"
                )
            if group.flags.verbose:
                self._skip_verbose()
            again = self._bounds(self.pos)
            if again is not None:
                raise self.refuse(
                    here, text + again[2], "a quantifier follows a quantifier", "group the first one: (?:)"
                )
        if not is_empty_word(node):
            group.parts.append(node)
            group.products.append(product)

    def _bounds(self, start: int) -> tuple[int, int | None, str] | None:
        char = self.peek()
        if char in ("*", "+", "?"):
            self.pos += 1
            return (1 if char == "+" else 0), (1 if char == "?" else None), char
        if char == "{":
            self.pos += 1
            counted = self._counted(start)
            if counted is None:
                self.pos -= 1
            return counted
        return None

    def _counted(self, start: int) -> tuple[int, int | None, str] | None:
        """`{m}`, `{m,}` or `{m,n}` at `start`; None where the brace is a literal. Moves behind it."""
        end = self.text.find("}", start, start + 24)
        inside = self.text[start + 1 : end] if end > 0 else ""
        low, comma, high = inside.partition(",")
        if comma and not low and (not high or (high.isdecimal() and high.isascii())):
            raise self.refuse(
                start, "{" + inside + "}", "dialects read a missing lower bound differently", "write {0,n}"
            )
        if not (low.isdecimal() and low.isascii()) or (high and not (high.isdecimal() and high.isascii())):
            return None
        self.pos = end + 1
        return int(low), (int(high) if high else None) if comma else int(low), "{" + inside + "}"

    def _skip_verbose(self) -> None:
        while self.pos < len(self.text) and (self.text[self.pos].isspace() or self.text[self.pos] == "#"):
            if self.text[self.pos] == "#":
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) - 1 if end < 0 else end
            self.pos += 1
