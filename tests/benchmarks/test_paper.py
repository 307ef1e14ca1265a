"""The paper's workloads on the tiny model: their sharing, their ablations, what peers are given, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import data, originals
from benchmarks.paper.__main__ import load, main, measure, parse_options
from benchmarks.paper.llama_cpp_replay import Row as BatchRow
from benchmarks.paper.llama_cpp_replay import replay
from benchmarks.paper.measure import Row, Run, run_variant
from benchmarks.paper.peers import as_work, make_peers
from benchmarks.paper.plots import normalised
from benchmarks.paper.record import Recorded, choice_paths, common, one_by_one
from benchmarks.paper.tables import verdicts
from benchmarks.paper.variants import BASELINE, FULL, VARIANTS
from benchmarks.paper.workloads import EXTRA, WORKLOADS
from palmette.runtime.models.loaded import LoadedModel
from palmette.types import ChoiceTrie, GenerateRequest, ScoreRequest

OPTIONS = {"kv_tokens": 1 << 17}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load("tiny", None)


@pytest.fixture(scope="module")
def runs(tiny: LoadedModel) -> dict[str, Run]:
    """Every workload at its smallest, on the full system."""
    return {name: _full(tiny, name) for name in WORKLOADS}


def _full(tiny: LoadedModel, name: str, scale: float = 0.1) -> Run:
    return run_variant(tiny, WORKLOADS[name](scale, None), VARIANTS[FULL], OPTIONS, None)


# -- the workloads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_computes_no_more_than_an_endless_cache_would(name: str, runs: dict[str, Run]) -> None:
    assert runs[name].row.share_of_optimum in (None, 1.0)


@pytest.mark.parametrize(
    ("name", "requests", "new_tokens"),
    [
        ("tree", 2 + 4 + 8 + 16, 30 * 20),
        ("skeleton", 5 + 5, 5 * 8 + 5 * 40),
        ("judge", 4 + 2, 5 * 32),
        ("chat_short", 4, 4 * 6),
        ("chat_long", 4, 4 * 64),
        ("react", 4 + 1, 4 * 28 + 8),
        ("rag", 3, 3 * 24),
    ],
)
def test_a_program_has_the_papers_fan_out_and_writes_to_the_end(
    name: str, requests: int, new_tokens: int, runs: dict[str, Run]
) -> None:
    row = runs[name].row
    assert (row.programs, row.requests, row.new_tokens) == (1, requests, new_tokens)


def test_headers_have_the_papers_shots() -> None:
    story = WORKLOADS["hellaswag"](0.1, None).tasks[0].arguments
    assert story["header"].count("\n\n") == 20
    assert len(story["endings"]) == 4
    questions = [task.arguments["header"] for task in WORKLOADS["mmlu"](1, None).tasks]
    assert {header.count("Answer:") for header in questions} == {5}
    assert len(set(questions)) == 3
    assert questions[0] != questions[1], "subjects come mixed"


def test_scale_multiplies_the_programs_and_nothing_else() -> None:
    for make in WORKLOADS.values():
        one, two = make(1, None), make(2, None)
        assert len(two.tasks) == 2 * len(one.tasks)
        assert {task.program for task in one.tasks} == {task.program for task in two.tasks}


def test_data_is_the_same_each_time_and_no_two_inputs_are_alike() -> None:
    for name, make in WORKLOADS.items():
        one, again = make(1, None), make(1, None)
        assert [repr(t.arguments) for t in one.tasks] == [repr(t.arguments) for t in again.tasks]
        assert len({(t.program, repr(t.arguments)) for t in one.tasks}) == len(one.tasks), name


def test_a_made_up_problem_has_the_right_solution() -> None:
    problem = data.problem(3)
    numbers = [int(word) for word in problem.text.replace("?", "").split() if word.isdigit()]
    made, kept, price, days = numbers
    assert problem.solution.endswith(f"The answer is {(made - kept) * price * days}.")


# -- the variants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skeleton", "json"])
def test_every_variant_writes_the_same_and_does_what_it_says(name: str, tiny: LoadedModel) -> None:
    workload = WORKLOADS[name](0.1, None)
    chosen = list(VARIANTS) if name == "skeleton" else ["sequential", "no jumps", "no cache", BASELINE]
    rows = {r.system: r for r in measure(tiny, workload, chosen, [], rounds=1, options=OPTIONS)}
    assert rows.keys() == {FULL, *chosen} - ({"no jumps"} if name == "skeleton" else set())
    assert all(row.same == 1.0 for row in rows.values())
    full, baseline = rows[FULL], rows[BASELINE]
    assert baseline.hit_rate == rows["no cache"].hit_rate == 0.0
    assert baseline.computed_tokens == full.prompt_tokens
    assert full.steps is not None
    assert rows["sequential"].steps is not None
    assert rows["sequential"].steps > full.steps
    if name == "json":
        assert rows["no jumps"].steps is not None
        assert rows["no jumps"].steps > full.steps


def test_in_a_small_pool_the_order_decides_what_is_computed_twice(tiny: LoadedModel) -> None:
    found = EXTRA["mmlu_pool"](0.5, None)
    assert found.kv_tokens is not None
    cut = [replace(t, arguments={**t.arguments, "header": t.arguments["header"][:500]}) for t in found.tasks]
    workload = replace(found, tasks=cut)  # its headers alone have 4,000 bytes, which are the tiny model's tokens
    # An order needs something to choose from: on a busy machine programs may come one by one, so it has three tries.
    rows = [run_variant(tiny, workload, VARIANTS[FULL], {}, None).row for _ in range(3)]
    full = max(rows, key=lambda row: row.share_of_optimum or 0.0)
    fcfs = run_variant(tiny, workload, VARIANTS["fcfs"], {}, None).row
    assert full.share_of_optimum is not None
    assert full.share_of_optimum >= 0.96
    assert fcfs.computed_tokens > 1.2 * full.computed_tokens


def test_another_text_is_seen(tiny: LoadedModel, runs: dict[str, Run]) -> None:
    first = runs["chat_short"]
    prompt = next(iter(first.outputs))
    changed = Run(first.row, first.recorded, {**first.outputs, prompt: (1, 2, 3)})
    workload = WORKLOADS["chat_short"](0.1, None)
    assert run_variant(tiny, workload, VARIANTS[FULL], OPTIONS, changed).row.same == 0.75


# -- what peers are given ------------------------------------------------------------------------------------------


def _recorded(prompt: Sequence[int], new: Sequence[int] = (), after: Sequence[int] = ()) -> Recorded:
    return Recorded(GenerateRequest(str(prompt), tuple(prompt)), list(after), list(new), True)


def test_one_sequence_answers_what_shares_most_first_and_nobody_before_its_predecessors() -> None:
    first, other = _recorded([1, 2, 3], [4]), _recorded([9, 9], [9])
    second = _recorded([1, 2, 3, 4, 5], [6], after=[0])
    sibling = _recorded([1, 2, 7], [8])
    assert one_by_one([other, first, sibling, second]) != one_by_one([first, other, second, sibling])
    assert one_by_one([first, other, second, sibling]) == [0, 2, 3, 1]


def test_recorded_requests_know_their_predecessors_and_their_tokens(runs: dict[str, Run]) -> None:
    entries = runs["judge"].recorded
    assert [entry.after for entry in entries[:4]] == [[]] * 4, "branches come at once"
    assert set(entries[4].after) == {0, 1, 2, 3}, "the merge waits for all of them"
    assert [entry.num_new for entry in entries] == [32, 32, 32, 32, 32, 0]
    assert [len(item["new"]) for item in as_work(entries)] == [32, 32, 32, 32, 32, 0]
    assert len(entries[5].choices) == 4


def test_choices_are_paths_of_the_trie() -> None:
    assert choice_paths(ChoiceTrie((7, 1, 2, 8), (-1, 0, 0, -1))) == [[7, 1], [7, 2], [8]]
    scored = Recorded(ScoreRequest("s", (1,), ChoiceTrie((7,), (-1,))), [])
    assert scored.choices == [[7]]


def test_common_prefix() -> None:
    assert [common([1, 2, 3], other) for other in ([], [2], [1, 5], [1, 2, 3, 4], [1, 2, 3])] == [0, 0, 1, 3, 3]


class _Sequences:
    """A KV cache that checks what it is asked: positions follow each other, and contents are known."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.logits = 0

    def decode(self, rows: Sequence[BatchRow]) -> None:
        assert 0 < len(rows) <= 512
        for row in rows:
            held = self.held.setdefault(row.sequence, [])
            assert row.position == len(held), "a token goes behind those that are there"
            held.append(row.token)
            self.logits += row.wants_logits

    def cut(self, sequence: int, length: int) -> None:
        del self.held.setdefault(sequence, [])[length:]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target), "the target is empty"
        assert len(self.held.get(source, [])) >= length, "the source holds so much"
        self.held[target] = self.held.get(source, [])[:length]


@pytest.mark.parametrize("name", ["judge", "hellaswag", "tree", "chat_short"])
def test_a_replay_computes_each_shared_prefix_once(name: str, tiny: LoadedModel, runs: dict[str, Run]) -> None:
    run = runs[name]
    work = json.loads(json.dumps(as_work(run.recorded)))
    optimum = run.row.computed_tokens
    alone, batched = _Sequences(), _Sequences()
    one, eight = replay(work, alone, 1), replay(work, batched, 8)
    draws = sum(max(len(r["new"]), 1) for r in work)
    scored = sum(len(path) - 1 for r in work for path in r["choices"])
    assert alone.logits == batched.logits == draws + scored
    assert optimum <= eight["computed"] <= 1.1 * optimum + 16 * len(work)
    assert eight["computed"] <= one["computed"] < run.row.prompt_tokens
    assert one["peak"] == 1
    if name in ("judge", "tree"):
        assert eight["peak"] > 1
        assert eight["passes"] < one["passes"]


def test_an_unknown_peer_is_refused(tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match="llama_cpp=PYTHON"):
        make_peers(["vllm"], tiny)
    assert [peer.name for peer in make_peers(["transformers", "llama_cpp=python"], tiny)][1:] == [
        "llama.cpp",
        "llama.cpp x8",
    ]


# -- the original files --------------------------------------------------------------------------------------------


def test_original_files_are_taken_where_they_are(tmp_path: Path) -> None:
    for part, count in {"dev": 5, "test": 3}.items():
        (tmp_path / "mmlu" / part).mkdir(parents=True)
        for subject in ("abstract_algebra", "virology"):
            lines = "".join(f'"{subject} {part} {i}, is it?",w,x,y,z,C\n' for i in range(count))
            (tmp_path / "mmlu" / part / f"{subject}_{part}.csv").write_text(lines)
    story = {"activity_label": "Baking", "ctx": "A man bakes", "endings": ["a", "b", "c", "d"], "label": "2"}
    (tmp_path / "hellaswag_val.jsonl").write_text((json.dumps(story) + "\n") * 21)
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n")
    mmlu = WORKLOADS["mmlu"](0.2, tmp_path)
    assert len(mmlu.tasks) == 4
    assert "about abstract algebra" in mmlu.tasks[0].arguments["header"]
    assert "abstract_algebra dev 4, is it?\nA. w\n" in mmlu.tasks[0].arguments["header"]
    assert mmlu.tasks[1].arguments["question"].startswith("virology test 0")
    assert WORKLOADS["hellaswag"](0.05, tmp_path).tasks[0].arguments["beginning"] == "Baking: A man bakes"
    assert WORKLOADS["tree"](0.5, tmp_path).tasks[0].arguments["problem"] == "1 + 1?"


def test_a_folder_without_files_gives_the_made_up_data(tmp_path: Path) -> None:
    found = [originals.mmlu(tmp_path, 1, 1, 1), originals.hellaswag(tmp_path, 1), originals.gsm8k(tmp_path, 1)]
    assert found == [None] * 3
    assert repr(WORKLOADS["mmlu"](0.1, tmp_path).tasks) == repr(WORKLOADS["mmlu"](0.1, None).tasks)


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    options = ["--model", "tiny", "--scale", "0.1", "--rounds", "2", "--option", "kv_tokens=65536"]
    main([*options, "--workloads", "chat_short", "--variants", "full", "baseline", "no jumps", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "Multi-turn chat, short: 1 programs, 4 requests, 24 new tokens" in printed
    assert "against the baseline: >= 3x on" in printed
    rows = json.loads(file.read_text())["rows"]
    assert [row["system"] for row in rows] == ["full", "baseline"], "no jumps says nothing of a chat"
    assert all(len(row["spread"]) == 2 for row in rows)
    assert normalised(rows)["chat_short"]["full"] == 1.0


def test_options_are_json_or_text() -> None:
    assert parse_options(["kv_tokens=4096", "policy=fcfs", "hints=false"]) == {
        "kv_tokens": 4096,
        "policy": "fcfs",
        "hints": False,
    }


def test_the_verdict_takes_the_best_peer() -> None:
    def row(system: str, seconds: float) -> Row:
        return Row("w", system, 1, seconds, None, 1, 10, 5, 5, None, 0.5, 0.97 if system == FULL else None, 1.0)

    lines = verdicts({"w": [row(FULL, 1.0), row(BASELINE, 4.0), row("transformers", 5.0), row("llama.cpp", 1.5)]})
    assert lines == [
        "  against the baseline: >= 3x on 1 of 1, least 4.00x (w)",
        "  share of the optimal hit rate: least 97.0%",
        "  against the best peer: >= 2x on 0 of 1, least 1.50x (w)",
    ]


def test_a_plot_is_written_for_every_workload(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.paper.plots import draw

    rows = [{"workload": w, "system": s, "throughput": t} for w in ("a", "b") for s, t in ((FULL, 2.0), ("fcfs", 1.0))]
    draw(rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
