"""Reading characters of a regex: escapes and bracketed classes as sets of code points.

The part of the parser that knows no structure; `parse` builds on it.
"""

from __future__ import annotations

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Anchor
from palmette.fsm.charset import NONE, CharSet, charset, negate, single, union
from palmette.fsm.unicode_classes import ECMA_SPACE, ESCAPED_CLASSES, fold_case, unicode_property

NOT_REGULAR = "a finite automaton cannot remember what a group matched"
_CONTROL_ESCAPES = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "a": 7}


class Reader:
    """A position in a pattern."""

    def __init__(self, pattern: str, *, ecma: bool) -> None:
        self.text = pattern
        self.pos = 0
        self.classes = {**ESCAPED_CLASSES, "s": ECMA_SPACE, "S": negate(ECMA_SPACE)} if ecma else ESCAPED_CLASSES

    def escape(self, start: int, *, in_class: bool) -> CharSet | Anchor:
        """What follows a backslash."""
        if self.pos >= len(self.text):
            raise self.refuse(start, "\\", "the pattern ends inside an escape", "write \\\\ for a backslash")
        char = self.text[self.pos]
        self.pos += 1
        if char in self.classes:
            return self.classes[char]
        if char in _CONTROL_ESCAPES:
            return single(_CONTROL_ESCAPES[char])
        if char in "xuU":
            return self._hex(start, char)
        if char in "pP":
            return self._property(start, negative=char == "P")
        if char == "c" and self.peek().isascii() and self.peek().isalpha():
            self.pos += 1
            return single(ord(self.text[self.pos - 1]) % 32)
        if char.isdigit():
            return self._octal(start, char, in_class)
        if char in "bB":
            if in_class and char == "b":
                return single(8)
            raise self.refuse(start, "\\" + char, "word boundaries are not in the dialect", "name what stands there")
        if char in "AZz" and not in_class:
            return Anchor(end=char != "A")
        if char == "k":
            raise self.refuse(start, "back-reference", NOT_REGULAR, "repeat the group's own pattern")
        if char.isascii() and char.isalpha():
            raise self.refuse(start, "\\" + char, "this escape is not in the dialect", f"write {char} for the letter")
        return single(ord(char))

    def _hex(self, start: int, char: str) -> CharSet:
        if char == "u" and self.take("{"):
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
            raise self.refuse(start, "\\" + char, "the code of a character must follow, in hexadecimal digits")
        return single(value)

    def _octal(self, start: int, char: str, in_class: bool) -> CharSet:
        """`\\0`, `\\012`, `\\101`: octal as Python reads it. Everything else is a back-reference."""
        digits = char
        while len(digits) < 3 and self.peek() in tuple("01234567"):
            digits += self.peek()
            self.pos += 1
        if char == "0" or (len(digits) == 3 and digits <= "377" and digits.isdigit() and "8" not in digits):
            return single(int(digits, 8))
        if in_class:
            raise self.refuse(start, "\\" + char, "dialects read this escape in a class differently", "write \\xHH")
        raise self.refuse(start, "back-reference", NOT_REGULAR, "repeat the group's own pattern")

    def _property(self, start: int, *, negative: bool) -> CharSet:
        if self.take("{"):
            end = self.text.find("}", self.pos)
            name = self.text[self.pos : end] if end > 0 else ""
            self.pos = end + 1 if end > 0 else self.pos
        else:
            name = self.peek()
            self.pos += 1
        if name.startswith("^"):
            name, negative = name[1:], not negative
        found = unicode_property(name)
        if found is None:
            hint = "general categories such as L, Lu, Nd, P are known"
            raise self.refuse(start, f"\\p{{{name}}}", "this property is not known here", hint)
        return negate(found) if negative else found

    def bracket(self, start: int, *, ignore_case: bool) -> CharSet:
        negative = self.take("^")
        sets: list[CharSet] = []
        first = True
        while True:
            if self.pos >= len(self.text):
                hint = "add ] or write \\["
                if self.text[start : start + 2] == "[]" or self.text[start : start + 3] == "[^]":
                    hint = "a ] that comes first is read as a character; write \\] to say so"
                raise self.refuse(start, "[", "the class is never closed", hint)
            here = self.pos
            char = self.text[here]
            self.pos += 1
            if char == "]" and not first:
                break
            first = False
            low = self._class_item(here, char)
            following = self.text[self.pos + 1 : self.pos + 2]
            if self.peek() == "-" and following not in ("]", ""):
                self.pos += 2
                high = self._class_item(self.pos - 1, following)
                if not _is_single(low) or not _is_single(high):
                    raise self.refuse(here, "-", "a range needs a single character on both sides", "write \\-")
                if low[0][0] > high[0][0]:
                    raise self.refuse(here, self.text[here : self.pos], "the range runs backwards")
                low = charset([(low[0][0], high[0][0])])
            sets.append(low)
        result = union(*sets) if sets else NONE
        if ignore_case:
            result = fold_case(result)
        return negate(result) if negative else result

    def _class_item(self, here: int, char: str) -> CharSet:
        if char != "\\":
            if 0xD800 <= ord(char) <= 0xDFFF:
                raise self.refuse(here, "lone surrogate", "it is not a character", "write the whole character")
            return single(ord(char))
        escaped = self.escape(here, in_class=True)
        assert not isinstance(escaped, Anchor), "anchors have no escape inside a class"
        return escaped

    def peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def take(self, text: str) -> bool:
        if self.text.startswith(text, self.pos):
            self.pos += len(text)
            return True
        return False

    def refuse(self, offset: int, keyword: str, reason: str, hint: str = "") -> UnsupportedConstraint:
        return UnsupportedConstraint(f"offset {offset}", keyword, reason, hint)


def _is_single(chars: CharSet) -> bool:
    return len(chars) == 1 and chars[0][0] == chars[0][1]
