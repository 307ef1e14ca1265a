"""The compressed automaton as a picture: SVG by an own layout, or text for graphviz.

Circles are states, double circles those a text may end in, dashed ones states that were not explored. An edge carries a
class of bytes, or the chain of bytes that is forced from its source on (drawn thick). Knows graphs and labels; what the
states mean is `compressed`'s.
"""

from __future__ import annotations

import unicodedata
from html import escape
from itertools import pairwise

from palmette.errors import UsageError
from palmette.fsm.byte_labels import chain_label, class_label
from palmette.fsm.compressed import Edge, Graph
from palmette.fsm.layout import Layout, Point, Size, lay_out

MAX_NODES = 200
MAX_LABEL = 36  # characters of a label that are shown; the whole one is the edge's tooltip

_RADIUS = 13.0
_CHAR = 7.3  # width of a character of 12 px monospace
_LINE = 16.0
_MARGIN = 24.0
_WIDEST = 1500.0  # a picture wider than this runs downwards instead
_STYLE = (
    "text{font:12px ui-monospace,monospace;text-anchor:middle;dominant-baseline:central;fill:#222}"
    ".n{fill:#fff;stroke:#222;stroke-width:1.2}.u{stroke-dasharray:3 3}.e{fill:none;stroke:#555;stroke-width:1.1}"
    ".c{stroke:#0b6e4f;stroke-width:2.2}.t.c{stroke:none;fill:#0b6e4f}.b{fill:#fff}"
)


def to_dot(graph: Graph) -> str:
    """Text for graphviz.

    Raises:
        UsageError: there are more states than a picture is good for.
    """
    _check(graph)
    numbers = {node.state: i for i, node in enumerate(graph.nodes)}
    lines = ["digraph automaton {", "  rankdir=LR;", '  node [shape=circle, fontname="monospace", fontsize=10];']
    lines += ['  edge [fontname="monospace", fontsize=10];', '  start [shape=point, label=""];', "  start -> 0;"]
    for i, node in enumerate(graph.nodes):
        shape = "doublecircle" if node.accepting else "circle"
        lines.append(f"  {i} [shape={shape}{'' if node.explored else ', style=dashed'}];")
    for edge in graph.edges:
        style = ', penwidth=2, color="#0b6e4f"' if edge.chain else ""
        label = _label(edge).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'  {numbers[edge.source]} -> {numbers[edge.target]} [label="{label}"{style}];')
    return "\n".join([*lines, "}", ""])


def to_svg(graph: Graph) -> str:
    """A picture that needs no other program; left to right, or downwards where that would be too wide.

    Raises:
        UsageError: there are more states than a picture is good for.
    """
    _check(graph)
    numbers = {node.state: i for i, node in enumerate(graph.nodes)}
    edges = [(numbers[e.source], numbers[e.target]) for e in graph.edges]
    shown = [_shortened(_label(e)) for e in graph.edges]
    box = Size(2 * _RADIUS, 2 * _RADIUS)
    labels = [Size(_width(text), _LINE) for text in shown]
    layout = lay_out([box] * len(graph.nodes), edges, labels)
    sideways = layout.size.along <= _WIDEST
    if not sideways:
        layout = lay_out([box] * len(graph.nodes), edges, [Size(s.across, s.along) for s in labels])
    return _svg(graph, layout, edges, shown, sideways=sideways)


def _svg(graph: Graph, layout: Layout, edges: list[tuple[int, int]], shown: list[str], *, sideways: bool) -> str:
    def xy(point: Point) -> tuple[float, float]:
        x, y = (point.along, point.across) if sideways else (point.across, point.along)
        return round(x + _MARGIN + _RADIUS, 1), round(y + _MARGIN, 1)

    width, height = xy(Point(layout.size.along, layout.size.across))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + _MARGIN:.0f} {height + _MARGIN:.0f}" '
        f'width="{width + _MARGIN:.0f}" height="{height + _MARGIN:.0f}" role="img">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        '<rect class="b" width="100%" height="100%"/>',
    ]
    for i, edge in enumerate(graph.edges):
        path = [xy(p) for p in layout.paths[i]] or _loop(xy(layout.boxes[edges[i][0]]), sideways=sideways)
        style = "e c" if edge.chain else "e"
        data = _curve(path, sideways=sideways) if layout.paths[i] else _bow(path)
        out.append(f'<path class="{style}" d="{data}" marker-end="url(#a)"><title>{_text(_label(edge))}</title></path>')
    x, y = xy(layout.boxes[0])
    out.append(f'<path class="e" d="M{x - _RADIUS - 20:.1f} {y}H{x - _RADIUS}" marker-end="url(#a)"/>')
    for point, node in zip(layout.boxes, graph.nodes, strict=True):
        x, y = xy(point)
        style = "n" if node.explored else "n u"
        out.append(f'<circle class="{style}" cx="{x}" cy="{y}" r="{_RADIUS}"/>')
        if node.accepting:
            out.append(f'<circle class="n" cx="{x}" cy="{y}" r="{_RADIUS - 3.5}"/>')
    for i, edge in enumerate(graph.edges):
        x, y = xy(layout.labels[i])
        wide = _width(shown[i]) - 6
        out.append(f'<rect class="b" x="{x - wide / 2:.1f}" y="{y - 8:.1f}" width="{wide:.1f}" height="16"/>')
        style = "t c" if edge.chain else "t"
        title = f"<title>{_text(_label(edge))}</title>" if shown[i] != _label(edge) else ""
        out.append(f'<text class="{style}" x="{x}" y="{y}">{_text(shown[i])}{title}</text>')
    return "\n".join([*out, "</svg>", ""])


def _curve(path: list[tuple[float, float]], *, sideways: bool) -> str:
    """Through all points, leaving and entering along the layers; it ends where the circles do."""
    (x0, y0), (x1, y1) = path[0], path[-1]
    ahead = (x1 > x0) if sideways else (y1 > y0)
    shift = _RADIUS if ahead else -_RADIUS
    points = path[:]
    points[0] = (x0 + shift, y0) if sideways else (x0, y0 + shift)
    points[-1] = (x1 - shift, y1) if sideways else (x1, y1 - shift)
    data = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (ax, ay), (bx, by) in pairwise(points):
        if sideways:
            middle = (ax + bx) / 2
            data += f"C{middle:.1f} {ay:.1f} {middle:.1f} {by:.1f} {bx:.1f} {by:.1f}"
        else:
            middle = (ay + by) / 2
            data += f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {by:.1f}"
    return data


def _loop(centre: tuple[float, float], *, sideways: bool) -> list[tuple[float, float]]:
    """Start, two controls and end of a loop on the side where its label stands."""
    x, y = centre
    near, far, wide = _RADIUS * 0.87, _RADIUS + 22, 18.0
    if sideways:
        return [(x - _RADIUS / 2, y - near), (x - wide, y - far), (x + wide, y - far), (x + _RADIUS / 2, y - near)]
    return [(x - near, y - _RADIUS / 2), (x - far, y - wide), (x - far, y + wide), (x - near, y + _RADIUS / 2)]


def _bow(points: list[tuple[float, float]]) -> str:
    (ax, ay), *rest = points
    return f"M{ax:.1f} {ay:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)


def _label(edge: Edge) -> str:
    return chain_label(edge.chain) if edge.chain else class_label(edge.ranges)


def _shortened(label: str) -> str:
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def _width(label: str) -> float:
    return _CHAR * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in label) + 10


def _text(label: str) -> str:
    return escape(label, quote=True)


def _check(graph: Graph) -> None:
    if len(graph.nodes) > MAX_NODES:
        raise UsageError(
            f"the compressed automaton has {len(graph.nodes)} states to draw, and a picture takes {MAX_NODES}: explore "
            "fewer (--limit) to see how it begins, or draw a part of the constraint"
        )
