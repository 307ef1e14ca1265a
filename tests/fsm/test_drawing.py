"""Pictures of automata: complete, within their frame, without boxes or labels that cover each other."""

from __future__ import annotations

import itertools
import random
import re
from xml.etree import ElementTree

import pytest

from palmette.errors import UsageError
from palmette.fsm.compile import compile
from palmette.fsm.compressed import Graph, explore
from palmette.fsm.drawing import MAX_LABEL, MAX_NODES, to_dot, to_svg
from palmette.fsm.layout import Layout, Point, Size, lay_out
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, JsonSchema, Regex, Spec

BYTES = Vocabulary([*(bytes([b]) for b in range(256)), b""], eos_ids=[256])
SVG = "{http://www.w3.org/2000/svg}"
SPECS: list[Spec] = [
    Regex(r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
    Regex(r"[a-z.]+@[a-z0-9.]+\.[a-z]{2,}"),
    Regex("[一-龥]{1,3}。"),
    Regex('a*["<&]|()'),
    Choices(("Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff")),
    JsonSchema.of({"type": "array", "items": {"$ref": "#"}}),
]


def graph_of(spec: Spec, limit: int = 40) -> Graph:
    return explore(compile(spec, BYTES).automaton, limit)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_state_and_edge_is_in_the_picture_and_in_its_frame(spec: Spec) -> None:
    graph = graph_of(spec)
    svg = to_svg(graph)
    root = ElementTree.fromstring(svg)
    circles = root.findall(f"{SVG}circle")
    accepting = sum(n.accepting for n in graph.nodes)
    assert len(circles) == len(graph.nodes) + accepting
    assert sum("u" in (c.get("class") or "").split() for c in circles) == sum(not n.explored for n in graph.nodes)
    paths = [p for p in root.findall(f"{SVG}path") if p.find(f"{SVG}title") is not None]
    assert len(paths) == len(graph.edges) == len(root.findall(f"{SVG}text"))
    width, height = (float(root.get(name) or 0) for name in ("width", "height"))
    for circle in circles:
        x, y, r = (float(circle.get(name) or 0) for name in ("cx", "cy", "r"))
        assert r <= x <= width - r
        assert r <= y <= height - r
    for text in root.findall(f"{SVG}text"):
        assert 0 < float(text.get("x") or 0) < width
        assert 0 < float(text.get("y") or 0) < height
    assert "script" not in svg


def test_a_wide_picture_runs_downwards() -> None:
    root = ElementTree.fromstring(to_svg(graph_of(Regex("([a-c][0-9]){15}"))))
    assert float(root.get("height") or 0) > 3 * float(root.get("width") or 0)


def test_long_labels_are_shortened_and_whole_in_the_tooltip() -> None:
    svg = to_svg(graph_of(Choices(("x" * 100,)), limit=200))
    root = ElementTree.fromstring(svg)
    (text,) = root.findall(f"{SVG}text")
    assert text.text == "x" * (MAX_LABEL - 1) + "…"
    assert "x" * 100 in svg


def test_the_text_for_graphviz_names_every_state_and_edge() -> None:
    graph = graph_of(Regex('say "(yes|no)"\\\\?'))
    dot = to_dot(graph)
    lines = dot.splitlines()
    assert lines[0].startswith("digraph")
    assert lines[-1] == "}"
    assert sum(" -> " in line for line in lines) == len(graph.edges) + 1
    assert sum("doublecircle" in line for line in lines) == sum(n.accepting for n in graph.nodes)
    assert r'label="say␣\""' in dot
    labels = re.findall(r'label="((?:[^"\\]|\\.)*)"', dot)
    assert len(labels) == len(graph.edges) + 1, "no quotation mark ends a label early"


@pytest.mark.parametrize("draw", [to_svg, to_dot])
def test_too_many_states_are_refused_with_the_way_out(draw: object) -> None:
    graph = graph_of(Regex("([a-c][0-9]){150}"), limit=500)
    assert len(graph.nodes) > MAX_NODES
    assert callable(draw)
    with pytest.raises(UsageError, match="--limit"):
        draw(graph)


def random_layout(rng: random.Random) -> tuple[list[Size], list[tuple[int, int]], list[Size], Layout]:
    n = rng.randint(1, 12)
    edges = [(a, b) for a, b in itertools.product(range(n), repeat=2) if rng.random() < 0.2]
    boxes = [Size(rng.randint(10, 30), rng.randint(10, 30)) for _ in range(n)]
    labels = [Size(rng.randint(5, 80), rng.randint(5, 40)) for _ in edges]
    return boxes, edges, labels, lay_out(boxes, edges, labels)


def overlap(a: Point, sa: Size, b: Point, sb: Size) -> bool:
    slack = 1e-6
    return (
        abs(a.along - b.along) + slack < (sa.along + sb.along) / 2
        and abs(a.across - b.across) + slack < (sa.across + sb.across) / 2
    )


def test_nothing_covers_anything_in_random_layouts() -> None:
    rng = random.Random(5)
    loops = 0
    for _ in range(150):
        boxes, edges, labels, layout = random_layout(rng)
        placed = [*zip(layout.boxes, boxes, strict=True), *zip(layout.labels, labels, strict=True)]
        for (a, sa), (b, sb) in itertools.combinations(placed, 2):
            assert not overlap(a, sa, b, sb)
        for point, size in placed:
            assert size.along / 2 - 1e-6 <= point.along <= layout.size.along - size.along / 2 + 1e-6
            assert size.across / 2 - 1e-6 <= point.across <= layout.size.across - size.across / 2 + 1e-6
        for (source, target), path, label in zip(edges, layout.paths, layout.labels, strict=True):
            if source == target:
                loops += 1
                assert path == ()
            else:
                assert (path[0], path[-1]) == (layout.boxes[source], layout.boxes[target])
                assert label in path
    assert loops > 50


def test_a_path_without_branches_is_straight_and_in_order() -> None:
    layout = lay_out([Size(10, 10)] * 4, [(0, 1), (1, 2), (2, 3)], [Size(30, 10)] * 3)
    assert [p.across for p in layout.boxes] == [5.0] * 4
    assert [p.along for p in layout.boxes] == sorted(p.along for p in layout.boxes)


def test_edges_that_lead_back_do_not_change_the_order_of_layers() -> None:
    layout = lay_out([Size(10, 10)] * 3, [(0, 1), (1, 2), (2, 0), (1, 1)], [Size(30, 10)] * 4)
    assert [p.along for p in layout.boxes] == sorted(p.along for p in layout.boxes)
