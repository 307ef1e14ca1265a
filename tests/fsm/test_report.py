"""What `palmette fsm` counts, against the plain automaton and against what is known by hand."""

from __future__ import annotations

import itertools
import json

import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.byte_labels import byte_label, chain_label, class_label
from palmette.fsm.compile import compile
from palmette.fsm.compressed import Graph, explore
from palmette.fsm.dfa import matches
from palmette.fsm.report import Report, measure, refusal_text, to_text
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, JsonSchema, Regex, SchemaOptions, Spec
from tests.fsm.languages import regex_automaton

BYTES = Vocabulary([*(bytes([b]) for b in range(256)), b""], eos_ids=[256])
WORDS = Vocabulary([*(bytes([b]) for b in range(256)), b"ab", b'{"', b'": ', b""], eos_ids=[259])


def report_on(spec: Spec, vocabulary: Vocabulary = BYTES, limit: int = 500) -> tuple[Report, Graph]:
    ticks = itertools.count()
    return measure(spec, vocabulary, limit=limit, clock=lambda: next(ticks) / 1e3, encode=vocabulary.greedy)


def graph_of(spec: Spec, limit: int = 500) -> Graph:
    return explore(compile(spec, BYTES).automaton, limit)


def accepts(graph: Graph, data: bytes) -> bool:
    """A walk over the edges of the compressed automaton."""
    accepting = {n.state for n in graph.nodes if n.accepting}
    places = [(graph.start, 0)]
    while places:
        state, at = places.pop()
        if at == len(data) and state in accepting:
            return True
        for edge in graph.edges:
            if edge.source != state:
                continue
            if edge.chain and data[at : at + len(edge.chain)] == edge.chain:
                places.append((edge.target, at + len(edge.chain)))
            elif not edge.chain and at < len(data) and any(a <= data[at] <= b for a, b in edge.ranges):
                places.append((edge.target, at + 1))
    return False


@pytest.mark.parametrize(
    "pattern", ["abc(abc|ab)*c?", "(aab|bba){2}c", "a*b?c+", "(abcabc|abcab)", "c(ab)*", "[ab]c|ca"]
)
def test_the_compressed_automaton_reads_the_same_texts(pattern: str) -> None:
    graph, machine = graph_of(Regex(pattern)), regex_automaton(pattern)
    assert graph.complete
    words = [bytes(w) for n in range(8) for w in itertools.product(b"abc", repeat=n)]
    assert [w for w in words if accepts(graph, w) != matches(machine, w)] == []
    assert sum(matches(machine, w) for w in words) > 0


def test_chains_are_runs_of_states_with_one_way_on() -> None:
    graph = graph_of(Regex("x(hello|[0-9]+)end!?"))
    assert sorted(e.chain for e in graph.chains) == [b"elloe", b"nd"]
    assert graph_of(Choices(("same text",))).chains[0].chain == b"same text"
    inner = {e.chain for e in graph_of(Regex("ab?cd")).chains}
    assert inner == set(), "c is reached from two places, so it is shown"


def test_a_limit_leaves_states_unexplored_and_says_so() -> None:
    graph = graph_of(JsonSchema.of({"type": "array", "items": {"$ref": "#"}}), limit=20)
    assert len(graph.states) == 20
    assert not graph.complete
    assert any(not n.explored for n in graph.nodes)
    assert all(e.source in graph.states for e in graph.edges)
    assert graph_of(Regex("a{3}"), limit=20).complete


def test_the_report_of_a_date() -> None:
    report, graph = report_on(Regex("[0-9]{4}-(0[1-9]|1[0-2])"), WORDS)
    assert (report.states, report.transitions, report.complete) == (9, 9, True)
    assert report.drawn_states == len(graph.nodes)
    assert report.shortest_text == "0000-01"
    assert report.cost_to_accept == 8
    assert report.forced_text == ""
    assert report.forced_in_shortest == ("-",)
    assert report.distinct_masks == 6  # [0-9], -, [01], [1-9], [0-2], the end
    assert report.allowed == (1, 9, 10)
    assert report.compile_seconds > 0
    assert report.slowest_mask_seconds >= report.first_mask_seconds > 0


def test_the_report_of_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"ab": {"enum": [1, 22]}},
        "required": ["ab"],
        "additionalProperties": False,
    }
    report, _ = report_on(JsonSchema.of(schema), WORDS)
    assert report.shortest_text == '{"ab": 1}'
    assert report.forced_text == '{"ab": '
    assert report.forced_tokens == ('{"', "ab", '": ')
    assert report.forced_in_shortest == ('{"ab": ', "}")
    assert report.forced_share == pytest.approx(8 / 9)
    assert report.unenforced == ()


def test_the_shortest_text_is_the_shortest() -> None:
    for pattern in ["b{2,}a|ccc", "(ab|c){3}", "[x-z]+[0-9]{2}", "(a|bc)*d|e", "a?"]:
        machine = regex_automaton(pattern)
        alphabet = sorted({c for c in pattern.encode() if chr(c).isalnum()} | set(b"y1"))
        words = (bytes(w) for n in range(5) for w in itertools.product(alphabet, repeat=n))
        report, _ = report_on(Regex(pattern))
        assert report.shortest_text.encode() == next(w for w in words if matches(machine, w)), pattern


def test_unenforced_keywords_are_named() -> None:
    report, _ = report_on(JsonSchema.of({"type": "array", "uniqueItems": True}, SchemaOptions(strict=False)), limit=50)
    assert any("uniqueItems" in line for line in report.unenforced)
    assert "uniqueItems" in to_text(report)


def test_text_and_data_say_the_same() -> None:
    report, _ = report_on(Regex("say (yes|no)\\n"), limit=50)
    text = to_text(report)
    assert json.loads(json.dumps(report.as_dict()))["shortest_text"] == "say no\n"
    for part in ("`say␣`", "`say no\\n`".replace(" ", "␣"), "at most 8 tokens", f"{report.distinct_masks} distinct"):
        assert part in text
    assert all(len(line) < 120 for line in text.splitlines())


def test_long_texts_and_many_chains_are_shortened() -> None:
    report, _ = report_on(Choices(tuple(chr(97 + i) * (60 + i) for i in range(20))))
    assert len(set(report.chains)) > 10
    assert f"and {len(set(report.chains)) - 8} more" in to_text(report)
    assert max(map(len, to_text(report).splitlines())) < 8 * 80


def test_a_refusal_names_place_keyword_reason_and_hint() -> None:
    text = refusal_text(UnsupportedConstraint("/items", "uniqueItems", "too many", "use an enum"))
    assert text.splitlines() == [
        "refused", "  at       /items", "  keyword  uniqueItems", "  reason   too many", "  hint     use an enum",
    ]  # fmt: skip
    assert "hint" not in refusal_text(UnsupportedConstraint("", "x", "y"))


@pytest.mark.parametrize(
    ("ranges", "label"),
    [
        ([(48, 57)], "[0-9]"), ([(97, 97)], "a"), ([(10, 10)], r"\n"), ([(32, 32)], "␣"),
        ([(0xE4, 0xE9)], r"\xE4-\xE9"),
        ([(97, 102), (48, 57), (65, 70)], "[0-9A-Fa-f]"), ([(48, 50), (51, 57)], "[0-9]"), ([(0, 255)], "any"),
        ([(93, 94), (45, 45)], r"[\-\]\^]"), ([(0xC3, 0xC3)], r"\xC3"), ([(97, 98)], "[ab]"),
    ],
)  # fmt: skip
def test_classes_are_readable(ranges: list[tuple[int, int]], label: str) -> None:
    assert class_label(ranges) == label


def test_chains_show_characters_where_their_bytes_are_whole() -> None:
    assert chain_label('{"é": '.encode()) == '{"é":␣'
    assert chain_label(b"\x80\x82a") == r"\x80\x82a"
    assert chain_label("\u200b\t".encode()) == "\\u200B\\t"
    assert byte_label(0) == r"\x00"
