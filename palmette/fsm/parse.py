"""The regex dialect of `docs/regex-dialect.md`: from a pattern to nodes of the algebra, or a refusal that says where.

Pure Python without numpy, so that the language half can check a pattern on the author's line. One pass with an explicit
stack: the nesting of groups costs no Python recursion. What Python and ECMA-262 read differently is refused, or named on that page with the reading taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from palmette.errors import UnsupportedConstraint
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
from palmette.fsm.charset import NONE, CharSet, charset, negate, single, union
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.unicode_classes import ESCAPED_CLASSES, fold_case, unicode_property

_CONTROL_ESCAPES = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "a": 7}
_PLAIN = re.compile(r"[^\\.^$|()\[{*+?\ud800-\udfff]+")
_NOT_REGULAR = "a finite automaton cannot remember what a group matched"


def parse_regex(pattern: str, limits: Limits | None = None, *, search: bool = False) -> Node:
    """The language of `pattern`: texts it matches whole, or with `search` texts in which it is found.

    The result holds no Look, and Anchors only inside an Anchored.

    Raises:
        UnsupportedConstraint: not in the dialect, or over a limit; `path` is "offset N".
    """
    limits = limits or Limits()
    size = len(pattern.encode("utf-8", "surrogatepass"))
    if size > limits.spec_bytes:
        raise exceeded("spec_bytes", limits.spec_bytes, "offset 0", f"{size} bytes")
    return resolve(_Parser(pattern, limits).parse(), search=search)


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


class _Parser:
    def __init__(self, pattern: str, limits: Limits) -> None:
        self.text = pattern
        self.limits = limits
        self.pos = 0
        self.stack = [_Group(0, _Flags())]

    def parse(self) -> Node:
        while self.pos < len(self.text):
            self._item()
        if len(self.stack) > 1:
            raise self._refuse(self.stack[-1].offset, "(", "the group is never closed", "add ) or write \\(")
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
            raise self._refuse(start, char, "there is nothing to repeat", f"write \\{char} for the character")
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
            node: Node = ANY_CHAR if flags.dot_all else NOT_NEWLINE
        elif char == "^":
            node = Anchor(end=False, multiline=flags.multiline)
        elif char == "$":
            node = Anchor(end=True, multiline=flags.multiline)
        elif char == "[":
            node = Chars(self._bracket(start, flags))
        elif char == "\\":
            escaped = self._escape(start, in_class=False)
            node = escaped if isinstance(escaped, Anchor) else self._characters(escaped, flags)
        else:
            if 0xD800 <= ord(char) <= 0xDFFF:
                raise self._refuse(start, "lone surrogate", "it is not a character", "write the whole character")
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
        if self._take("?"):
            if self._take(":"):
                pass
            elif self._take("P<") or (self._peek() == "<" and self.text[self.pos + 1 : self.pos + 2] not in ("=", "!")):
                self._take("<")
                end = self.text.find(">", self.pos)
                if end < 0 or not self.text[self.pos : end].isidentifier():
                    raise self._refuse(start, "(?<", "the group's name is not an identifier followed by >")
                self.pos = end + 1
            elif self._take("="):
                kind = "look"
            elif self._take("!"):
                kind = "neglook"
            elif self._take("<=") or self._take("<!"):
                raise self._refuse(start, "lookbehind", "only lookaheads are supported", "state it from the left")
            elif self._take(">"):
                raise self._refuse(
                    start, "atomic group", "it depends on the matcher's order, not on the language", "(?:"
                )
            elif self._take("P="):
                raise self._refuse(start, "back-reference", _NOT_REGULAR, "repeat the group's own pattern")
            elif self._take("("):
                raise self._refuse(start, "conditional group", _NOT_REGULAR, "write the two cases as alternatives")
            elif self._take("#"):
                end = self.text.find(")", self.pos)
                if end < 0:
                    raise self._refuse(start, "(?#", "the comment is never closed")
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
                    raise self._refuse(start, "inline flags", "they stand behind the start of the pattern", "(?i:...)")
                self.stack[-1].flags = new
                return None
            else:
                what = "flag" if char.isalpha() else "group"
                raise self._refuse(start, f"(?{char}", f"this kind of {what} is not in the dialect")
        raise self._refuse(start, "(?", "the group is never closed")

    def _close(self, start: int) -> None:
        if len(self.stack) == 1:
            raise self._refuse(start, ")", "no group is open here", "write \\) for the character")
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
                raise self._refuse(here, text, "it repeats an assertion, which dialects read differently", "remove it")
            for bound in (low, high or 0):
                if bound > self.limits.repeat:
                    raise exceeded("repeat", self.limits.repeat, f"offset {here}", f"{bound} repetitions")
            if high is not None and high < low:
                raise self._refuse(here, text, "the lower bound is above the upper one")
            product *= max(high if high is not None else low, 1)
            if product > self.limits.repeat_product:
                limit = self.limits.repeat_product
                raise exceeded("repeat_product", limit, f"offset {here}", f"{product} nested repetitions")
            node = repeat(node, low, high)
            self._take("?")  # lazy: another order of search, the same language
            if self._peek() == "+":
                raise self._refuse(
                    self.pos, text + "+", "a possessive quantifier depends on the matcher's order", "drop +"
                )
            if group.flags.verbose:
                self._skip_verbose()
            again = self._bounds(self.pos)
            if again is not None:
                raise self._refuse(
                    here, text + again[2], "a quantifier follows a quantifier", "group the first one: (?:)"
                )
        if not is_empty_word(node):
            group.parts.append(node)
            group.products.append(product)

    def _bounds(self, start: int) -> tuple[int, int | None, str] | None:
        char = self._peek()
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
            raise self._refuse(
                start, "{" + inside + "}", "dialects read a missing lower bound differently", "write {0,n}"
            )
        if not (low.isdecimal() and low.isascii()) or (high and not (high.isdecimal() and high.isascii())):
            return None
        self.pos = end + 1
        return int(low), (int(high) if high else None) if comma else int(low), "{" + inside + "}"

    # -- escapes and classes ---------------------------------------------------------------------------------------

    def _escape(self, start: int, *, in_class: bool) -> CharSet | Anchor:
        """What follows a backslash."""
        if self.pos >= len(self.text):
            raise self._refuse(start, "\\", "the pattern ends inside an escape", "write \\\\ for a backslash")
        char = self.text[self.pos]
        self.pos += 1
        if char in ESCAPED_CLASSES:
            return ESCAPED_CLASSES[char]
        if char in _CONTROL_ESCAPES:
            return single(_CONTROL_ESCAPES[char])
        if char in "xuU":
            return self._hex(start, char)
        if char in "pP":
            return self._property(start, negative=char == "P")
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            self.pos += 1
            return single(ord(self.text[self.pos - 1]) % 32)
        if char.isdigit():
            return self._octal(start, char, in_class)
        if char in "bB":
            if in_class and char == "b":
                return single(8)
            raise self._refuse(start, "\\" + char, "word boundaries are not in the dialect", "name what stands there")
        if char in "AZz" and not in_class:
            return Anchor(end=char != "A")
        if char == "k":
            raise self._refuse(start, "back-reference", _NOT_REGULAR, "repeat the group's own pattern")
        if char.isascii() and char.isalpha():
            raise self._refuse(start, "\\" + char, "this escape is not in the dialect", f"write {char} for the letter")
        return single(ord(char))

    def _hex(self, start: int, char: str) -> CharSet:
        if char == "u" and self._take("{"):
            end = self.text.find("}", self.pos)
            digits = self.text[self.pos : end] if end > 0 else ""
            self.pos = end + 1
        else:
            length = {"x": 2, "u": 4, "U": 8}[char]
            digits = self.text[self.pos : self.pos + length]
            self.pos += length
            if len(digits) != length:
                digits = ""
        try:
            value = int(digits, 16) if digits.isalnum() else -1
        except ValueError:
            value = -1
        if char == "u" and 0xD800 <= value <= 0xDBFF and self.text[self.pos : self.pos + 2] == "\\u":
            low = self.text[self.pos + 2 : self.pos + 6]  # ECMA-262 without the u flag writes two halves
            if len(low) == 4 and low[0] in "dD" and low[1] in "cdefCDEF" and low.isalnum():
                self.pos += 6
                return single(0x10000 + ((value - 0xD800) << 10) + (int(low, 16) - 0xDC00))
        if not 0 <= value <= 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise self._refuse(start, "\\" + char, "the code of a character must follow, in hexadecimal digits")
        return single(value)

    def _octal(self, start: int, char: str, in_class: bool) -> CharSet:
        """`\\0`, `\\012`, `\\101`: octal as Python reads it. Everything else is a back-reference."""
        digits = char
        while len(digits) < 3 and self._peek() in tuple("01234567"):
            digits += self._peek()
            self.pos += 1
        if char == "0" or (len(digits) == 3 and digits <= "377" and digits.isdigit() and "8" not in digits):
            return single(int(digits, 8))
        if in_class:
            raise self._refuse(start, "\\" + char, "dialects read this escape in a class differently", "write \\xHH")
        raise self._refuse(start, "back-reference", _NOT_REGULAR, "repeat the group's own pattern")

    def _property(self, start: int, *, negative: bool) -> CharSet:
        if self._take("{"):
            end = self.text.find("}", self.pos)
            name = self.text[self.pos : end] if end > 0 else ""
            self.pos = end + 1 if end > 0 else self.pos
        else:
            name = self._peek()
            self.pos += 1
        if name.startswith("^"):
            name, negative = name[1:], not negative
        found = unicode_property(name)
        if found is None:
            hint = "general categories such as L, Lu, Nd, P are known"
            raise self._refuse(start, f"\\p{{{name}}}", "this property is not known here", hint)
        return negate(found) if negative else found

    def _bracket(self, start: int, flags: _Flags) -> CharSet:
        negative = self._take("^")
        sets: list[CharSet] = []
        first = True
        while True:
            if self.pos >= len(self.text):
                hint = "add ] or write \\["
                if self.text[start : start + 2] == "[]" or self.text[start : start + 3] == "[^]":
                    hint = "a ] that comes first is read as a character; write \\] to say so"
                raise self._refuse(start, "[", "the class is never closed", hint)
            here = self.pos
            char = self.text[here]
            self.pos += 1
            if char == "]" and not first:
                break
            first = False
            low = self._class_item(here, char)
            following = self.text[self.pos + 1 : self.pos + 2]
            if self._peek() == "-" and following not in ("]", ""):
                self.pos += 2
                high = self._class_item(self.pos - 1, following)
                if not _is_single(low) or not _is_single(high):
                    raise self._refuse(here, "-", "a range needs a single character on both sides", "write \\-")
                if low[0][0] > high[0][0]:
                    raise self._refuse(here, self.text[here : self.pos], "the range runs backwards")
                low = charset([(low[0][0], high[0][0])])
            sets.append(low)
        result = union(*sets) if sets else NONE
        if flags.ignore_case:
            result = fold_case(result)
        return negate(result) if negative else result

    def _class_item(self, here: int, char: str) -> CharSet:
        if char != "\\":
            if 0xD800 <= ord(char) <= 0xDFFF:
                raise self._refuse(here, "lone surrogate", "it is not a character", "write the whole character")
            return single(ord(char))
        escaped = self._escape(here, in_class=True)
        assert not isinstance(escaped, Anchor), "anchors have no escape inside a class"
        return escaped

    # -- reading ---------------------------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def _take(self, text: str) -> bool:
        if self.text.startswith(text, self.pos):
            self.pos += len(text)
            return True
        return False

    def _skip_verbose(self) -> None:
        while self.pos < len(self.text) and (self.text[self.pos].isspace() or self.text[self.pos] == "#"):
            if self.text[self.pos] == "#":
                end = self.text.find("\n", self.pos)
                self.pos = len(self.text) - 1 if end < 0 else end
            self.pos += 1

    def _refuse(self, offset: int, keyword: str, reason: str, hint: str = "") -> UnsupportedConstraint:
        return UnsupportedConstraint(f"offset {offset}", keyword, reason, hint)


def _is_single(chars: CharSet) -> bool:
    return len(chars) == 1 and chars[0][0] == chars[0][1]
