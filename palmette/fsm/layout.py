"""Where the boxes of a layered drawing stand: a small version of the method of Sugiyama, Tagawa and Toda (1981).

Edges that close a circle are turned round, every box gets the layer of its longest path, edges that cross a layer get a
place in it, boxes of a layer are ordered by the places of their neighbours, and then moved towards them as far as the
gaps allow. Every edge has a labelled place of its own between two layers, so labels never cover each other.

Knows rectangles only. `along` runs with the layers, `across` within one; the caller turns the picture as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_SWEEPS = 12  # of ordering a layer
_MOVES = 80  # of the boxes towards their neighbours
_GAP_ALONG = 18.0
_GAP_ACROSS = 14.0


@dataclass(frozen=True, slots=True)
class Size:
    along: float
    across: float


@dataclass(frozen=True, slots=True)
class Point:
    along: float
    across: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres of boxes, in the order given; per edge the centre of its label and the points it runs through.

    A path leads from the edge's source to its target, both centres and the label's included. An edge from a box to
    itself has no path: its label stands beyond its box, in the direction of `across`.
    """

    size: Size
    boxes: tuple[Point, ...]
    labels: tuple[Point, ...]
    paths: tuple[tuple[Point, ...], ...]


@dataclass(slots=True)
class _Place:
    """A box, an edge's label, or the point where an edge crosses a layer."""

    layer: int
    size: Size
    before: list[int]  # neighbours in the layer before
    after: list[int]
    across: float = 0.0
    along: float = 0.0


def lay_out(boxes: Sequence[Size], edges: Sequence[tuple[int, int]], labels: Sequence[Size]) -> Layout:
    """Place `boxes` (the first is where layers begin) and the labels of the `edges` between them."""
    loops = [i for i, (a, b) in enumerate(edges) if a == b]
    forward = _without_circles(len(boxes), edges)
    layers = _layers(len(boxes), forward)
    room = list(boxes)
    for i in loops:  # a loop and its label need room beside their box, the same on both sides
        box = edges[i][0]
        room[box] = Size(
            max(room[box].along, labels[i].along), boxes[box].across + 2 * (labels[i].across + _GAP_ACROSS)
        )
    places = [_Place(2 * layer, size, [], []) for layer, size in zip(layers, room, strict=True)]
    routes = _routes(places, edges, forward, labels)
    columns = _ordered(places)
    _place_across(places, columns)
    width = _place_along(places, columns)
    low = min((p.across - p.size.across / 2 for p in places), default=0.0)
    high = max((p.across + p.size.across / 2 for p in places), default=0.0)
    at = [Point(p.along, p.across - low) for p in places]
    label_points: list[Point] = []
    paths: list[tuple[Point, ...]] = []
    for i, (a, _) in enumerate(edges):
        if i in routes:
            route, label = routes[i]
            label_points.append(at[label])
            paths.append(tuple(at[p] for p in route))
        else:
            beyond = boxes[a].across / 2 + _GAP_ACROSS + labels[i].across / 2
            label_points.append(Point(at[a].along, at[a].across - beyond))
            paths.append(())
    return Layout(Size(width, high - low), tuple(at[: len(boxes)]), tuple(label_points), tuple(paths))


def _without_circles(n: int, edges: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Edges by number, loops left out, those that lead back to a box still open in a depth-first walk turned round."""
    leaving: list[list[int]] = [[] for _ in range(n)]
    for i, (a, b) in enumerate(edges):
        if a != b:
            leaving[a].append(i)
    out: dict[int, tuple[int, int]] = {}
    state = [0] * n  # 0 new, 1 open, 2 done
    for root in range(n):
        stack = [(root, 0)] if state[root] == 0 else []
        while stack:
            box, nth = stack.pop()
            state[box] = 1
            if nth == len(leaving[box]):
                state[box] = 2
                continue
            stack.append((box, nth + 1))
            i = leaving[box][nth]
            to = edges[i][1]
            out[i] = (to, box) if state[to] == 1 else (box, to)
            if state[to] == 0:
                stack.append((to, 0))
    return out


def _layers(n: int, forward: dict[int, tuple[int, int]]) -> list[int]:
    """The length of the longest path to each box."""
    after: list[list[int]] = [[] for _ in range(n)]
    missing = [0] * n
    for a, b in forward.values():
        after[a].append(b)
        missing[b] += 1
    layer = [0] * n
    ready = [box for box in range(n) if not missing[box]]
    while ready:
        box = ready.pop()
        for to in after[box]:
            layer[to] = max(layer[to], layer[box] + 1)
            missing[to] -= 1
            if not missing[to]:
                ready.append(to)
    return layer


def _routes(
    places: list[_Place],
    edges: Sequence[tuple[int, int]],
    forward: dict[int, tuple[int, int]],
    labels: Sequence[Size],
) -> dict[int, tuple[list[int], int]]:
    """Adds a place per layer that an edge crosses. Edge number -> its places from source to target, and its label's."""
    out: dict[int, tuple[list[int], int]] = {}
    for i, (a, b) in sorted(forward.items()):
        turned = (a, b) != tuple(edges[i])
        first, last = places[a].layer + 1, places[b].layer - 1
        at = last if turned else first  # the label stands near the source
        route = [a]
        for layer in range(first, last + 1):
            route.append(len(places))
            places.append(_Place(layer, labels[i] if layer == at else Size(0.0, 4.0), [], []))
        route.append(b)
        for one, other in pairwise(route):
            places[one].after.append(other)
            places[other].before.append(one)
        label = route[-2] if turned else route[1]
        out[i] = (route[::-1] if turned else route), label
    return out


def _ordered(places: list[_Place]) -> list[list[int]]:
    """The places of every layer in an order with few crossings: by the mean position of neighbours, to and fro."""
    columns: list[list[int]] = [[] for _ in range(max(p.layer for p in places) + 1)]
    position: dict[int, float] = {}
    seen: set[int] = set()
    stack = [0, *range(1, len(places))][::-1]
    while stack:  # depth first, so that what hangs together begins together
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            column = columns[places[at].layer]
            position[at] = len(column)
            column.append(at)
            stack += reversed(places[at].after)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for column in columns if down else columns[::-1]:
            wish: dict[int, float] = {}
            for at in column:
                near = places[at].before if down else places[at].after
                wish[at] = sum(position[n] for n in near) / len(near) if near else position[at]
            column.sort(key=lambda at: wish[at])
            for i, at in enumerate(column):
                position[at] = i
    return columns


def _place_across(places: list[_Place], columns: list[list[int]]) -> None:
    for column in columns:
        at = 0.0
        for i in column:
            places[i].across = at + places[i].size.across / 2
            at += places[i].size.across + _GAP_ACROSS
    for move in range(_MOVES):
        for column in columns if move % 2 == 0 else columns[::-1]:
            wishes = []
            for i in column:
                near = places[i].before + places[i].after
                wishes.append(sum(places[n].across for n in near) / len(near) if near else places[i].across)
            for i, across in zip(column, _kept_apart(wishes, [places[i].size.across for i in column]), strict=True):
                places[i].across = across


def _kept_apart(wishes: list[float], sizes: list[float]) -> list[float]:
    """Positions near `wishes` with gaps between them: the mean of the two placements that push one way only."""
    gaps = [(a + b) / 2 + _GAP_ACROSS for a, b in pairwise(sizes)]
    down, up = wishes[:], wishes[:]
    for i, gap in enumerate(gaps):
        down[i + 1] = max(down[i + 1], down[i] + gap)
    for i in reversed(range(len(gaps))):
        up[i] = min(up[i], up[i + 1] - gaps[i])
    return [(a + b) / 2 for a, b in zip(down, up, strict=True)]


def _place_along(places: list[_Place], columns: list[list[int]]) -> float:
    at = 0.0
    for column in columns:
        width = max(places[i].size.along for i in column)
        for i in column:
            places[i].along = at + width / 2
        at += width + _GAP_ALONG
    return at - _GAP_ALONG
