"""From a pattern as written to a language: `^` and `$` at the edges, unanchored search, lookaheads as intersections.

Knows that the node is a whole pattern, so that the text's end is the pattern's end. Anchors that stand in the middle
stay, inside an `Anchored` that the automaton interprets; a lookahead that cannot become an intersection is refused.
"""

from __future__ import annotations

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import (
    ANY_TEXT,
    EMPTY,
    NEVER,
    Alt,
    Anchor,
    Anchored,
    And,
    Chars,
    JsonText,
    Literal,
    Look,
    Node,
    Not,
    Repeat,
    Seq,
    alt,
    is_empty_word,
    is_never,
    repeat,
    seq,
)
from palmette.fsm.charset import CharSet, intersect, single, subtract
from palmette.fsm.trampoline import Call, run

_UNROLL = 16  # turns of a counted repeat around a lookahead that are written out


def resolve(pattern: Node, *, search: bool) -> Node:
    """The language of texts that `pattern` matches whole, or in which it is found."""
    variants: list[Node] = []
    at_start, floating = run(_split(pattern, False, search))
    for head, prefix in ((at_start, False), (floating, search)):
        if is_never(head):
            continue
        at_end, open_end = run(_split(head, True, search))
        for body, rest in ((at_end, EMPTY), (open_end, ANY_TEXT if search else EMPTY)):
            if is_never(body):
                continue
            node = run(_with_looks(body, rest)) if _contains(body, Look) else seq(body, rest)
            variants.append(seq(ANY_TEXT, node) if prefix else node)
    whole = alt(variants)
    return Anchored(whole) if _contains(whole, Anchor) else whole


def children(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Seq | Alt | And):
        return node.parts
    if isinstance(node, Repeat | Not | Anchored | Look | JsonText):
        return (node.part,)
    return ()


def _contains(node: Node, kind: type[Look] | type[Anchor]) -> bool:
    """Whether a node of `kind` is below `node`, not counting what an Anchored already encloses."""
    seen: set[int] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if id(n) in seen or isinstance(n, Anchored):
            continue
        seen.add(id(n))
        if isinstance(n, kind):
            return True
        stack.extend(children(n))
    return False


def _split(node: Node, end: bool, search: bool) -> Call[tuple[Node, Node]]:
    """`node` as (what begins with an anchor, with the anchor taken off; the rest); at the end if `end`."""
    if isinstance(node, Anchor) and node.end == end and not (node.multiline and search):
        return EMPTY, NEVER
    if isinstance(node, Alt):
        anchored, plain = [], []
        for part in node.parts:
            a, p = yield _split(part, end, search)
            anchored.append(a)
            plain.append(p)
        if all(is_never(a) for a in anchored):
            return NEVER, node
        return alt(anchored), alt(plain)
    if isinstance(node, Seq):
        edge, rest = (node.parts[-1], node.parts[:-1]) if end else (node.parts[0], node.parts[1:])
        a, p = yield _split(edge, end, search)
        if is_never(a):
            return NEVER, node
        if is_empty_word(a):  # nothing was consumed, so a further anchor holds here as well
            a = alt((yield _split(seq(*rest), end, search)))
        else:
            a = seq(*rest, a) if end else seq(a, *rest)
        return a, seq(*rest, p) if end else seq(p, *rest)
    return NEVER, node


def _with_looks(node: Node, rest: Node) -> Call[Node]:
    """`node` followed by `rest`, the whole remainder of the text, with the lookaheads of `node` as intersections."""
    if not _contains(node, Look):
        return seq(node, rest)
    if isinstance(node, Look):
        ahead = yield _with_looks(node.part, ANY_TEXT)
        for part in (ahead, rest):
            if _has_start_anchor(part):
                raise _refuse(node, "a ^ stands behind or inside it")
        condition = _component(ahead)
        return And((_component(rest), Not(condition) if node.negative else condition))
    if isinstance(node, Seq):
        for part in reversed(_local(node.parts)):
            rest = yield _with_looks(part, rest)
        return rest
    if isinstance(node, Alt):
        branches = []
        for part in node.parts:
            branches.append((yield _with_looks(part, rest)))
        return alt(branches)
    assert isinstance(node, Repeat), f"a lookahead inside {type(node).__name__}"
    body = seq(*_local(node.part.parts)) if isinstance(node.part, Seq) else node.part
    if not _contains(body, Look):
        return seq(repeat(body, node.low, node.high), rest)
    if node.high is not None and node.high <= _UNROLL:
        result = rest
        for turn in range(node.high, 0, -1):
            once = yield _with_looks(body, result)
            result = once if turn <= node.low else alt((once, rest))
        return result
    tempered = _tempered(body)
    if tempered is not None and node.low == 0 and node.high is None and is_empty_word(rest):
        # Every character of the text starts a turn, so nowhere in the text may the lookahead's pattern begin.
        chars, look = tempered
        ahead = yield _with_looks(look.part, ANY_TEXT)
        if not _has_start_anchor(ahead):
            return alt((EMPTY, And((repeat(chars, 0, None), Not(_component(seq(ANY_TEXT, ahead)))))))
    raise _refuse(_first_look(body), "it stands inside a repetition")


def _component(node: Node) -> Node:
    """A part of an intersection; it reaches to the end of the text, so anchors at its end are resolved on their own."""
    node = alt(run(_split(node, True, False)))
    return Anchored(node) if _contains(node, Anchor) else node


def _local(parts: tuple[Node, ...]) -> tuple[Node, ...]:
    """`parts` with lookaheads at one character turned into a smaller set for the character that follows."""
    out: list[Node] = []
    for part in reversed(parts):
        seen = _one_char(part.part) if isinstance(part, Look) else None
        following = _one_char(out[-1]) if out else None
        if isinstance(part, Look) and seen is not None and following is not None:
            out[-1] = Chars(subtract(following, seen) if part.negative else intersect(following, seen))
        else:
            out.append(part)
    return tuple(reversed(out))


def _one_char(node: Node) -> CharSet | None:
    if isinstance(node, Chars):
        return node.set
    return single(ord(node.text)) if isinstance(node, Literal) and len(node.text) == 1 else None


def _tempered(body: Node) -> tuple[Node, Look] | None:
    """The parts of `(?!x)c` where c is one character."""
    if isinstance(body, Seq) and len(body.parts) == 2:
        look, chars = body.parts
        if isinstance(look, Look) and look.negative and _one_char(chars) is not None:
            return chars, look
    return None


def _has_start_anchor(node: Node) -> bool:
    seen: set[int] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if id(n) in seen:
            continue
        seen.add(id(n))
        if isinstance(n, Anchor) and (not n.end or n.multiline):
            return True
        stack.extend(children(n))
    return False


def _first_look(node: Node) -> Look:
    stack = [node]
    while stack:
        n = stack.pop()
        if isinstance(n, Look):
            return n
        stack.extend(reversed(children(n)))
    raise AssertionError("called on a node that holds a lookahead")


def _refuse(look: Look, reason: str) -> UnsupportedConstraint:
    keyword = "negative lookahead" if look.negative else "lookahead"
    hint = "state it where the rest of the pattern is a plain concatenation up to the end"
    return UnsupportedConstraint(f"offset {look.offset}", keyword, reason, hint)
