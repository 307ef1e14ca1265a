"""Bytes and byte classes as people read them: `[0-9A-F]`, `\\xE4-\\xE9`, `{"name":␣"`.

Knows bytes only. Labels are for reading, not for parsing: a chain shows characters where its bytes are whole ones.
"""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = {0x07: r"\a", 0x08: r"\b", 0x09: r"\t", 0x0A: r"\n", 0x0B: r"\v", 0x0C: r"\f", 0x0D: r"\r", 0x20: "␣"}
_IN_CLASS = b"]\\^-"


def chain_label(data: bytes) -> str:
    """Bytes in a row; whole UTF-8 characters are shown as such."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(
        f"\\x{ord(c) - 0xDC00:02X}"
        if 0xDC80 <= ord(c) <= 0xDCFF
        else byte_label(ord(c))
        if ord(c) < 0x80
        else _shown(c)
        for c in text
    )


def class_label(ranges: Iterable[tuple[int, int]]) -> str:
    """One byte out of `ranges`. Neighbouring ranges become one; bytes above ASCII stand in hexadecimal."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and merged[-1][1] >= low - 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    if merged == [(0, 255)]:
        return "any"
    if len(merged) == 1:
        low, high = merged[0]
        if low == high:
            return byte_label(low)
        if low >= 0x80:
            return f"{byte_label(low)}-{byte_label(high)}"
    return "[" + "".join(_span(low, high) for low, high in merged) + "]"


def byte_label(byte: int) -> str:
    if byte in _NAMES:
        return _NAMES[byte]
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\x{byte:02X}"


def _span(low: int, high: int) -> str:
    if low == high:
        return _member(low)
    return f"{_member(low)}{'' if high == low + 1 else '-'}{_member(high)}"


def _member(byte: int) -> str:
    return "\\" + chr(byte) if byte in _IN_CLASS else byte_label(byte)


def _shown(char: str) -> str:
    code = ord(char)
    if code < 0x80 or 0xDC80 <= code <= 0xDCFF:  # the second: a byte that is no character, escaped by the decoder
        return byte_label(code & 0xFF)
    return char if char.isprintable() else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
