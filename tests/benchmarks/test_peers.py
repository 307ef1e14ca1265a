"""The comparison beside peers: the same work for everybody, the right arithmetic, and no peer that spoils a run."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.peers import protocol
from benchmarks.peers.__main__ import main, measure
from benchmarks.peers.engines import ENGINES, Engine, EngineFailed, EngineProcess, descendants, find_python
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from benchmarks.peers.report import Figure, agreement, best_only, fields, figure, outputs_table, ratios, table
from benchmarks.peers.serving import Server
from benchmarks.peers.work import AnyRow, Extraction, Load, Row, work, write
from palmette.runtime.models.tiny import tiny_model

FOLDER = Path(protocol.__file__).parent


@pytest.fixture(scope="module")
def rows() -> list[AnyRow]:
    return work(tiny_model().tokenizer)


def row_named(rows: list[AnyRow], name: str) -> Row:
    return next(row for row in rows if isinstance(row, Row) and row.name == name)


# -- the work ----------------------------------------------------------------------------------------------------------


def test_the_rows_are_those_of_the_bar(rows: list[AnyRow]) -> None:
    shapes = {row.name: (len(row.prompts), len(row.prompts[0])) for row in rows if isinstance(row, Row)}
    assert shapes == {
        "decode_1_64": (1, 64),
        "decode_1_1024": (1, 1024),
        "decode_4_64": (4, 64),
        "decode_16_64": (16, 64),
        "decode_64_64": (64, 64),
        "prefill_1024": (1, 1024),
        "shared_32": (32, 832),
    }
    assert all(len(prompt) == len(row.prompts[0]) for row in rows if isinstance(row, Row) for prompt in row.prompts)


def test_only_the_shared_row_shares(rows: list[AnyRow]) -> None:
    shared = row_named(rows, "shared_32")
    assert len({prompt[: shared.shared_len] for prompt in shared.prompts}) == 1
    assert len({prompt[shared.shared_len :] for prompt in shared.prompts}) == 32
    assert len({prompt[:24] for prompt in row_named(rows, "decode_64_64").prompts}) == 64


def test_a_prompts_text_is_the_text_of_its_tokens(rows: list[AnyRow]) -> None:
    encoder = tiny_model().tokenizer
    for row in rows:
        if isinstance(row, Row):
            assert [tuple(encoder.encode(text)) for text in row.texts] == list(row.prompts)
            assert all(text.startswith(row.shared_text) for text in row.texts)
            assert len(encoder.encode(row.shared_text)) == row.shared_len


def test_the_work_is_the_same_every_time(rows: list[AnyRow], tmp_path: Path) -> None:
    write(tmp_path / "a", rows, model={}, threads=2)
    write(tmp_path / "b", work(tiny_model().tokenizer), model={}, threads=2)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_every_text_names_what_is_expected_of_it(rows: list[AnyRow]) -> None:
    (extraction,) = [row for row in rows if isinstance(row, Extraction)]
    assert len(extraction.texts) == 16
    for text, expected in zip(extraction.texts, extraction.expected, strict=True):
        assert all(str(value) in text for value in expected.values())


# -- the peers' side ---------------------------------------------------------------------------------------------------


def test_a_peer_script_imports_the_standard_library_and_the_protocol_alone() -> None:
    ours = {"work", "engines", "environments", "report", "__main__", "__init__", "palmette_rows"}
    scripts = [file for file in FOLDER.glob("*.py") if file.stem not in ours]
    assert {engine.module.split(".")[-1] for engine in ENGINES if not engine.is_ours} <= {file.stem for file in scripts}
    for file in scripts:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names or name in {
                    "benchmarks.peers.protocol",
                    "benchmarks.peers.serving",
                    "benchmarks.peers.transformers",  # outlines runs on it
                }, (file.name, name)


def test_a_watch_counts_decoding_from_the_moment_all_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 12.0, 13.0, 15.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = protocol.Watch(2)
    watch.tokens({0: [5]})
    watch.tokens({0: [6], 1: [7]})  # all have begun, at second 2, with three tokens
    watch.tokens({0: [8], 1: [9]})
    watch.tokens({1: [1, 2], 0: []})
    assert watch.outputs == [[5, 6, 8], [7, 9, 1, 2]]
    assert watch.value("decode", 100) == 4 / 3
    assert watch.value("prefill", 100) == 50
    assert watch.value("seconds", 100) == 5


def test_a_watch_gives_no_figure_for_a_request_without_tokens() -> None:
    watch = protocol.Watch(2)
    watch.tokens({0: [5]})
    with pytest.raises(ValueError, match="1 requests got no token"):
        watch.value("seconds", 1)


def test_a_watch_gives_no_rate_where_all_tokens_came_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = protocol.Watch(1)
    watch.tokens({0: [5, 6, 7]})
    with pytest.raises(ValueError, match="came at once"):
        watch.value("decode", 4)
    assert watch.value("prefill", 4) == 2


# A peer that needs nothing: it answers with its prompts' last tokens, or does what its variant says.
FAKE = """
import os, subprocess, sys, time
from benchmarks.peers.protocol import main

class Fake:
    def __init__(self, work, variant):
        self.variant = variant
        print("a library says hello on standard output")
        if variant == "cannot load":
            raise OSError("the file is broken")
        if variant == "starts another":
            self.other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    def generate(self, row, watch):
        if self.variant == "dies":
            os._exit(3)
        if self.variant == "raises":
            raise ArithmeticError("no")
        clock = watch()
        at_once = row["num_new"] if self.variant == "all at once" else 1
        for step in range((row["num_new"] - (self.variant == "short")) // at_once):
            clock.tokens({i: [p[-1]] * at_once for i, p in enumerate(row["prompts"])})
        return clock
    def extract(self, row):
        raise NotImplementedError("no constraints")
    def close(self):
        pass

main(Fake, ["pytest"])
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """fake(variant): a started process of a peer that is written on the spot."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr("benchmarks.peers.engines.ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    prompts = ((1, 2), (1, 3))
    rows: list[AnyRow] = [Row("r", "a row", "seconds", prompts, 4), Row("rate", "a rate", "decode", prompts, 4), Load()]
    write(tmp_path / "work.json", rows, model={}, threads=1)
    started: list[EngineProcess] = []

    def begin(variant: str) -> EngineProcess:
        engine = Engine(f"fake {variant}", "fake", "fake", variant, "fp32", "fakes")
        process = EngineProcess(engine, sys.executable, tmp_path / "work.json", tmp_path, threads=1)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.close()


def test_a_process_answers_rows_and_keeps_what_a_library_prints_to_itself(fake: Any) -> None:
    process = fake("fine")
    process.wait_until_loaded()
    assert set(process.versions) == {"python", "pytest"}
    answer = process.ask("r")
    assert answer["outputs"] == [[2, 2, 2, 2], [3, 3, 3, 3]]
    assert answer["value"] > 0
    assert process.ask("load")["value"] > 0


def test_a_process_that_is_not_asked_is_stopped(fake: Any) -> None:
    process = fake("fine")
    process.wait_until_loaded()
    assert comes_true(lambda: state_of(process.pid) == "T")


def test_what_a_peer_started_is_stopped_and_ended_with_it(fake: Any) -> None:
    process = fake("starts another")
    process.wait_until_loaded()
    assert state_of(process.pid)
    (child,) = descendants(process.pid)
    assert child in descendants(os.getpid())
    assert comes_true(lambda: state_of(child) == "T")
    assert process.ask("r")["value"] > 0
    assert comes_true(lambda: state_of(child) == "T")
    process.close()
    assert comes_true(lambda: state_of(child) in ("", "Z"))


def state_of(pid: int) -> str:
    """As the system has it: T = stopped, Z = ended and not yet told; "" = gone."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def comes_true(condition: Callable[[], bool]) -> bool:
    """Signals are on their way for a while."""
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_what_goes_wrong_in_a_peer_is_its_answer(fake: Any) -> None:
    raising, short = fake("raises"), fake("short")
    for process in (raising, short):
        process.wait_until_loaded()
    assert raising.ask("r") == {"error": "ArithmeticError: no"}
    assert short.ask("r") == {"error": "4 tokens each were asked for, not 3"}


def test_what_was_answered_is_told_where_the_time_tells_nothing(fake: Any) -> None:
    process = fake("all at once")
    process.wait_until_loaded()
    answer = process.ask("rate")
    assert answer.pop("outputs") == [[2, 2, 2, 2], [3, 3, 3, 3]]
    assert answer == {"error": "all tokens came at once, which tells no rate"}


def test_a_peer_that_dies_says_why_and_the_others_go_on(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineFailed, match="OSError: the file is broken"):
        fake("cannot load").wait_until_loaded()
    dying, fine = fake("dies"), fake("fine")
    for process in (dying, fine):
        process.wait_until_loaded()
    samples = measure([dying, fine], [Row("r", "a row", "seconds", ((1, 2), (1, 3)), 4)], 2)
    assert [len(samples[name]["r"]) for name in ("fake dies", "fake fine")] == [1, 2]
    assert "error" in samples["fake dies"]["r"][0]
    assert all("value" in sample for sample in samples["fake fine"]["r"])
    assert "fake dies, r: " in capsys.readouterr().out


def test_a_peer_alone_writes_every_round(fake: Any, tmp_path: Path) -> None:
    fake("fine")
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "fake", str(tmp_path / "work.json"), str(out), "--rows", "r", "--rounds", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(json.loads(out.read_text())["rows"]["r"]) == 2
    assert done.stdout == ""  # what a person reads goes where libraries print


def test_an_interpreter_without_the_peer_is_passed_over(tmp_path: Path) -> None:
    absent = Engine("x", "x", "x", "", "fp32", "llama_cpp", ("no_such_module_anywhere",))
    assert find_python(absent, tmp_path, {"llama_cpp": sys.executable}) is None
    present = Engine("x", "x", "x", "", "fp32", "llama_cpp", ("pytest",))
    assert find_python(present, tmp_path, {"llama_cpp": str(tmp_path / "gone")}) == sys.executable


def test_every_engine_has_an_environment_that_can_be_made() -> None:
    assert {engine.environment for engine in ENGINES if not engine.is_ours} == set(ENVIRONMENTS)
    assert python_of(Path("~/x"), "vllm").is_absolute()


# -- clients of our server, and LMQL -----------------------------------------------------------------------------------

SERVER = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps([self.path, told, self.headers["authorization"]]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Echo)
print("a word before", flush=True)
print(f"ready on http://127.0.0.1:{server.server_port}/ now", flush=True)
server.serve_forever()
"""


def test_a_server_is_started_asked_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALMETTE_URL", raising=False)
    monkeypatch.setenv("PALMETTE_API_KEY", "of another server")
    server = Server([sys.executable, "-c", SERVER])
    try:
        assert server.ask("/generate", {"n": 1}) == ["/generate", {"n": 1}, None]
        monkeypatch.setenv("PALMETTE_URL", server.url + "/")
        given = Server([])
        assert given.ask("/x", {}) == ["/x", {}, "Bearer of another server"]
        given.close()  # leaves it alone
        assert server.ask("/x", {})[0] == "/x"
    finally:
        server.close()
    with pytest.raises(OSError, match="refused"):
        server.ask("/x", {})


def test_a_server_that_does_not_come_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALMETTE_URL", raising=False)
    with pytest.raises(RuntimeError, match="exit code 3 and served nothing"):
        Server([sys.executable, "-c", "print('no'); raise SystemExit(3)"])
    with pytest.raises(ValueError, match="set PALMETTE_URL"):
        Server([])


def test_the_tokens_of_a_text_are_those_that_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(path: str, data: dict[str, Any]) -> Any:
        asked.append((path, data["text"], data["sampling_params"]["max_new_tokens"]))
        return [{"text": " a", "output_ids": [1]}, {"text": " b", "output_ids": [2]}]

    monkeypatch.setenv("PALMETTE_URL", "http://127.0.0.1:1")
    server = Server([])
    monkeypatch.setattr(server, "ask", ask)
    row = {"name": "r", "texts": ["A", "B"], "num_new": 1}
    assert server.written(row, [" a", " b"]) == server.written(row, [" a", " b"]) == [[1], [2]]
    assert asked == [("/generate", ["A", "B"], 1)]  # once
    with pytest.raises(ValueError, match="1 of 2 prompts got another answer"):
        server.written(row, [" a", " c"])


def peer_module(monkeypatch: pytest.MonkeyPatch, name: str, **library: object) -> Any:
    """The peer's module, beside a library of which there is only what is given."""
    stand_in = ModuleType(name)
    vars(stand_in).update(library)
    monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}", raising=False)
    module = importlib.import_module(f"benchmarks.peers.{name}")
    monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}")
    return module


def test_lmql_fills_a_field_behind_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def query(source: str, is_async: bool) -> Any:
        kind = "integer" if "INT(X)" in source else "string"

        async def fill(prompt: str, model: Any, decoder: str) -> Any:
            await asyncio.sleep(0)
            seen.append((kind, prompt))
            return {"integer": 36, "string": "Ada"}[kind]

        return fill

    module = peer_module(monkeypatch, "lmql", query=query, model=lambda name, **options: name)
    peer = module.LMQL({"model": {"fp32": "folder"}}, "")
    loading, seen[:] = seen[:], []
    assert len(loading) == 1
    schema = {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}}
    try:
        _, texts = peer.extract({"instructions": "I", "texts": ["T", "U"], "schema": schema})
    finally:
        peer._loop.close()
    assert texts == ['{"name": "Ada", "age": 36, "city": "Ada"}'] * 2
    assert [pair for pair in seen if pair[1].startswith("IT")] == [
        ("string", 'IT{"name": "'),
        ("integer", 'IT{"name": "Ada", "age": '),
        ("string", 'IT{"name": "Ada", "age": 36, "city": "'),
    ]


# -- the report --------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_and_half_the_range() -> None:
    assert figure([{"value": 4.0}, {"error": "no"}, {"value": 6.0}, {"value": 5.0}]) == Figure(5.0, 0.2, 3)
    assert figure([{"error": "no"}]) is None


def test_ratios_say_times_as_fast_for_rates_and_for_seconds(rows: list[AnyRow]) -> None:
    figures: dict[str, Figure | None] = {
        "palmette": Figure(100, 0, 1),
        "palmette_fp32": Figure(30, 0, 1),
        "llama_q4_1": Figure(50, 0, 1),
        "llama_q4_0": Figure(80, 0, 1),
        "vllm": Figure(20, 0, 1),
        "transformers": None,
    }
    rate = ratios(row_named(rows, "decode_1_64"), figures)
    assert rate == {"ours/best": 1.25, "goal": 1.25, "q/Q4_1": 2.0, "q/Q4_0": 1.25, "32/fp32": 1.5, "srv/sgl": None}
    seconds = ratios(row_named(rows, "shared_32"), figures)
    assert seconds["ours/best"] == 20 / 30  # the quickest of ours and of theirs
    assert seconds["q/Q4_0"] == 0.8


def test_a_client_of_our_server_is_compared_with_our_programs_on_it_alone(rows: list[AnyRow]) -> None:
    figures: dict[str, Figure | None] = {
        "palmette": Figure(100, 0, 1),
        "palmette_served": Figure(90, 0, 1),
        "sglang": Figure(60, 0, 1),
        "vllm": Figure(20, 0, 1),
    }
    found = ratios(row_named(rows, "decode_1_64"), figures)
    assert found["srv/sgl"] == 1.5
    assert found["ours/best"] == 5.0


def test_the_best_round_is_the_largest_rate_and_the_fewest_seconds(rows: list[AnyRow]) -> None:
    found: list[dict[str, Any]] = [{"value": 2.0}, {"error": "no"}, {"value": 3.0}]
    kept = best_only(rows, {"vllm": {"decode_1_64": found, "shared_32": found, "load": found[1:2]}})
    assert kept == {"vllm": {"decode_1_64": [{"value": 3.0}], "shared_32": [{"value": 2.0}]}}


def test_agreement_ends_at_the_first_difference() -> None:
    assert agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]]) == 4 / 6
    assert agreement([[1]], [[2]]) == 0.0


def test_fields_are_compared_one_by_one() -> None:
    row = Extraction("e", "e", "", ("a", "b", "c"), ({"name": "A", "age": 1},) * 3, {}, 9)
    assert fields(row, ['{"name": "A", "age": 2}', "{broken", "[1]"]) == ["A", 2, None, None, None, None]


def test_the_table_has_a_line_a_row_and_tells_what_is_missing(rows: list[AnyRow]) -> None:
    (extraction,) = [row for row in rows if isinstance(row, Extraction)]
    text = json.dumps(extraction.expected[0])
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {
        "palmette": {
            "decode_1_64": [{"value": 120.0, "outputs": [[1, 2]]}, {"value": 180.0, "outputs": [[1, 2]]}],
            "extraction": [{"value": 1.0, "texts": [text] * 16}],
        },
        "vllm": {"decode_1_64": [{"value": 60.0, "outputs": [[1, 3]]}], "extraction": [{"error": "no"}]},
    }
    lines = table(rows, samples).splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[1].split()[-9:] == ["150", "±20%", "60", "2.50", "1.25", "-", "-", "-", "-"]
    assert "3 of 48 fields right" in outputs_table(rows, samples)
    assert "50.0% of tokens as palmette" in outputs_table(rows, samples)


def test_the_command_runs_on_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    chosen = ["--peers", "palmette_fp32", "--rows", "decode_4_64", "shared_32", "extraction", "--rounds", "1"]
    main(["--model", "tiny", "--root", str(tmp_path), *chosen, "--json", str(out)])
    samples = json.loads(out.read_text())["samples"]["palmette_fp32"]
    assert all("value" in answers[0] for answers in samples.values())
    assert len(samples) == 3
    assert "palm. fp32" in capsys.readouterr().out


def test_our_programs_write_the_same_through_our_server(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    chosen = ["--peers", "palmette", "palmette_served", "--rows", "decode_1_64", "shared_32", "extraction"]
    main(["--model", "tiny", "--root", str(tmp_path), *chosen, "--rounds", "1", "--json", str(out)])
    samples = json.loads(out.read_text())["samples"]
    for name, key in (("decode_1_64", "outputs"), ("shared_32", "outputs"), ("extraction", "texts")):
        here, served = (samples[engine][name][0][key] for engine in ("palmette", "palmette_served"))
        assert here
        assert served == here


def test_an_unknown_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "tiny", "--root", str(tmp_path), "--rows", "decode_2_64"])
