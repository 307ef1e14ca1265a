"""The growth benchmark measures what it says: fits, counters, and that a law that is broken shows."""

from __future__ import annotations

import gc
import json
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import palmette as pm
from benchmarks.growth import cached_tokens, decoding, forks, programs, schemas, streams
from benchmarks.growth.__main__ import NOT_BUILT, line, main, summary
from benchmarks.growth.law import Row, Verdict, fit, geometric
from benchmarks.growth.measure import Lines, lines, medians, traced_memory
from benchmarks.growth.stand_ins import PATH, BareScheduler, PromptBackend
from palmette.fsm.compile import compile as compile_spec
from palmette.lang.session import shared_executor
from palmette.runtime.radix_cache import Match, RadixCache
from palmette.runtime.radix_node import RadixNode
from palmette.specs import Regex
from palmette.types import GenerateRequest


@pytest.fixture(autouse=True)
def _as_the_command_runs() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


def row(cost: Callable[[int], float], claimed: float, unit: str = "tokens") -> Row:
    sizes = geometric(10, 640)
    return Row("law", "cost", "size", unit, claimed, sizes, tuple(cost(n) for n in sizes), why="because")


def the(rows: list[Row], what: str, over: str = "", unit: str = "") -> Row:
    """The one row of that name."""
    found = [r for r in rows if what in r.what and over in r.over and unit in r.unit]
    assert len(found) == 1, [(r.what, r.over, r.unit) for r in found]
    return found[0]


# -- exponents and verdicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_power_law_is_found_exactly(exponent: float) -> None:
    found = fit((10, 20, 40, 80, 160), [3.0 * n**exponent for n in (10, 20, 40, 80, 160)])
    assert found.exponent == pytest.approx(exponent, abs=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    assert found.r2 == pytest.approx(1.0)
    assert found.spread == pytest.approx(1.0)


def test_noise_widens_the_interval_and_lowers_r2() -> None:
    sizes = geometric(10, 640)
    noisy = [n * (1.5 if i % 2 else 0.7) for i, n in enumerate(sizes)]
    found = fit(sizes, noisy)
    assert abs(found.exponent - 1.0) < found.error
    assert found.error > 0.1
    assert found.r2 < 0.99


def test_the_interval_is_that_of_the_textbook() -> None:
    # By hand: xs = 0 1 2 in units of log 2, ys = 0 1 3: slope 1.5, residuals 1/6 -1/3 1/6, error 12.71 sqrt(1/6 / 2).
    found = fit((1, 2, 4), [1.0, 2.0, 8.0])
    assert found.exponent == pytest.approx(1.5)
    assert found.error == pytest.approx(12.71 * (1 / 12) ** 0.5)


@pytest.mark.parametrize(("sizes", "costs"), [((1,), [1.0]), ((2, 2), [1.0, 1.0]), ((1, 2), [0.0, 1.0])])
def test_what_has_no_exponent_is_refused(sizes: tuple[int, ...], costs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a fit needs|no logarithm"):
        fit(sizes, costs)


@pytest.mark.parametrize(
    ("cost", "claimed", "verdict"),
    [
        (lambda n: n, 1.0, Verdict.WITHIN),
        (lambda n: n**1.09, 1.0, Verdict.WITHIN),
        (lambda n: n**1.12, 1.0, Verdict.ABOVE),
        (lambda n: n**2, 1.0, Verdict.ABOVE),
        (lambda n: n**0.5, 1.0, Verdict.BELOW),
        (lambda n: 7, 0.0, Verdict.WITHIN),
        (lambda n: n**0.2, 0.0, Verdict.ABOVE),
    ],
)
def test_a_claim_is_an_upper_bound(cost: Callable[[int], float], claimed: float, verdict: Verdict) -> None:
    assert row(cost, claimed).verdict is verdict


def test_a_quadratic_part_shows_in_the_tail_of_what_is_counted() -> None:
    mixed = row(lambda n: n + n * n / 1500, 1.0)
    assert mixed.fit.exponent < 1.1
    assert mixed.tail > 1.1
    assert mixed.verdict is Verdict.ABOVE
    assert row(lambda n: n + n * n / 1500, 1.0, unit="CPU us").verdict is Verdict.WITHIN


def test_the_summary_names_what_breaks_a_claim() -> None:
    text = summary([row(lambda n: n, 1.0), row(lambda n: n * n, 1.0)])
    assert "1 of 2 rows keep their claim" in text
    assert "because" in text
    assert "because" not in summary([row(lambda n: n, 1.0)])
    assert line(row(lambda n: n * n, 1.0)).split()[-1] == "ABOVE"


# -- counters ------------------------------------------------------------------------------------------------------


def test_lines_of_the_package_are_counted_and_no_others() -> None:
    def outside() -> int:
        return sum(i for i in range(100))

    tree = RadixCache()
    assert lines(outside) == 0
    made = lines(tree.root)
    assert made > lines(tree.root) > 0  # the first call made the root
    assert lines(tree.root) == lines(tree.root)
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        lines(lambda: 1 / 0)
    assert sys.gettrace() is before


def test_lines_of_the_executors_thread_are_counted_too() -> None:
    async def work() -> None:
        tree.root()

    tree = RadixCache()
    tree.root()
    shared_executor()
    alone, both = Lines(), Lines()
    with alone.on():
        shared_executor().start(work()).result()
    with both.on(shared_executor()):
        shared_executor().start(work()).result()
    assert both.count > alone.count


def test_sizes_take_turns_and_costs_are_medians() -> None:
    order: list[int] = []
    given = iter([9.0, 1.0, 10.0, 9.0, 3.0, 30.0, 9.0, 2.0, 20.0])

    def cost(size: int) -> float:
        order.append(size)
        return next(given)

    assert medians({1: 1, 2: 2}, cost, 3) == (2.0, 20.0)
    assert order == [1, 1, 2] * 3  # the first of a round warms up


def test_memory_is_what_is_still_held() -> None:
    with traced_memory() as held:
        kept = [bytes(1000) for _ in range(100)]
        assert 100_000 < held() < 120_000
        kept.clear()
        assert held() < 10_000


def test_the_prompt_backend_counts_and_answers_like_a_model() -> None:
    backend = PromptBackend("four", pieces=2)

    @pm.function
    def twice(s: pm.State) -> None:
        s += "0123456789" + pm.gen("a") + "01234" + pm.gen("b")

    state = twice.run(backend=backend)
    assert state.text() == "0123456789four01234four"
    assert backend.encoded == 15
    assert backend.handed == 10 + (4 + 5)  # what it was handed with the first, the second only refers to
    for plain in (0, 1):
        backend.submit(GenerateRequest(f"plain {plain}", (1, 2, 3)), lambda events: None)
    assert backend.handed == 19 + 2 * 3
    assert state.usage.sampled_tokens == 8


def test_the_bare_scheduler_keeps_its_books() -> None:
    case = BareScheduler(8 * PATH)
    case.fill(4 * PATH)
    assert case.memory.tree.num_tokens >= 4 * PATH
    case.add(case.paths[0] + case.tokens(8), 3)
    case.run()
    assert case.scheduler.counters.sampled_tokens == 3
    assert case.scheduler.counters.cached_prompt_tokens == len(case.paths[0])
    case.scheduler.check_integrity()


# -- laws ----------------------------------------------------------------------------------------------------------

SMALL = (64, 128)


def test_a_request_costs_the_same_lines_beside_any_tree() -> None:
    for rows in (cached_tokens.requests((1000, 8000)), cached_tokens.full_pools((1000, 8000))):
        assert the(rows, "request", unit="lines").tail == pytest.approx(0.0, abs=0.02)


def test_a_match_that_walked_the_tree_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    match = RadixCache.match_prefix

    def slow(self: RadixCache, start: RadixNode, tokens: array[int], limit: int, program: str = "") -> Match:
        assert sum(1 for _ in self.nodes()) == self.num_nodes
        return match(self, start, tokens, limit, program)

    monkeypatch.setattr(RadixCache, "match_prefix", slow)
    assert the(cached_tokens.requests((4000, 16_000)), "request", unit="lines").verdict is Verdict.ABOVE


def test_an_evicting_request_evicts() -> None:
    with_room, without = (
        the(measure((1000, 2000)), "request", unit="lines")
        for measure in (cached_tokens.requests, cached_tokens.full_pools)
    )
    assert min(without.costs) > max(with_room.costs)


def test_programs_hold_memory_and_no_threads() -> None:
    rows = programs.programs((32, 64))
    assert the(rows, "memory").tail == pytest.approx(1.0, abs=0.2)
    assert the(rows, "threads").tail == 0.0
    assert the(programs.streams((32, 64)), "threads").tail == 0.0


def test_a_stream_tokenizes_each_of_its_constants_once() -> None:
    found = the(streams.scripted(SMALL), "tokenized")
    assert found.costs == tuple(n * len(streams.TEXT) for n in SMALL)


def test_the_tiny_model_computes_each_token_of_a_stream_once() -> None:
    rows = streams.tiny((4, 8))
    tokenized, computed = the(rows, "tokenized"), the(rows, "computed")
    for written, n, done in zip(tokenized.costs, tokenized.sizes, computed.costs, strict=True):
        assert written <= done <= written + 5 * n  # with each hole's tokens, of which the last is computed later
    assert the(rows, "forward passes").costs == (16, 32)


def test_what_a_template_renders_is_counted() -> None:
    rows = streams.conversation((8, 16, 32, 64))
    usual, counting = the(rows, "rendered by the template"), the(rows, "counts turns")
    assert usual.costs[0] > 8 * len(streams.TEXT)
    assert usual.fit.exponent < 1.3
    assert counting.claimed == 2.0  # it may look at all messages, and so renders all of them for each
    assert 1.7 < counting.fit.exponent < 2.1


def test_forks_are_measured_where_their_branches_have_begun() -> None:
    rows = forks.parents((4, 8))
    assert all(cost > 0 for r in rows for cost in r.costs)
    few, more = the(rows, "handed over").costs
    assert few == more == len(" yes") + len("Then?")  # behind the prompt of the parent's last hole
    assert the(forks.branches((4, 8)), "tokenized").costs == (len(forks.TEXT),) * 2


def test_a_fork_is_timed_in_warm_caches_and_is_its_parents_first(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    timed: list[int] = []

    def begin(s: pm.State, count: int) -> None:
        lengths.append(len(s.text()))
        s.fork(count)
        s.sync()

    def cpu_micros(operation: Callable[[], object]) -> float:
        operation()
        timed.append(lengths[-1])
        return 1.0

    monkeypatch.setattr(forks, "_begin", begin)
    monkeypatch.setattr(forks, "cpu_micros", cpu_micros)
    monkeypatch.setattr(forks, "ROUNDS", 2)
    forks.texts((100, 400))
    assert timed == [100, 100, 400] * 2  # sizes take turns, the first of a round twice
    small = len(forks.TEXT)
    assert lengths == [small, 100, small, 100, small, 400] * 2  # each parent is forked once, behind a small one


def test_masks_cost_the_same_lines_under_any_counted_bound() -> None:
    rows = schemas.bounds((100, 400))
    for over in ("[a-z]{0,n}", "maxLength", "maxItems"):
        assert the(rows, "first visits", over, "lines").tail == pytest.approx(0.0, abs=0.02)


def test_a_walk_asks_for_a_mask_before_every_byte() -> None:
    def walked(text: bytes) -> int:
        return schemas.walk_lines(compile_spec(Regex("[a-z]{0,4}"), schemas.VOCABULARY), text)

    assert walked(b"a") < walked(b"ab") < walked(b"abc")
    with pytest.raises(AssertionError, match="not allowed"):
        walked(b"abcde")


def test_decoding_takes_a_pass_a_token_and_a_chunk() -> None:
    assert the(decoding.outputs((4, 8)), "passes").costs == (4, 8)
    assert the(decoding.prompts((128, 256)), "passes").costs == (2, 4)
    assert the(decoding.batches((2, 4)), "passes").costs == (decoding.OUTPUT,) * 2
    assert the(decoding.scheduling((16, 32)), "decode step", "decoded before").tail == 0.0


def test_the_command_writes_a_table_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--laws", "decoding", "--quick", "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert NOT_BUILT in printed
    assert "5 of 5 rows keep their claim" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert [r["verdict"] for r in found["rows"]] == ["within"] * 5
    assert found["rows"][0]["sizes"] == found["rows"][0]["costs"]
    assert found["not_measured"] == [NOT_BUILT]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(["--laws", "decoding", "--quick", "--plot", str(tmp_path / "out.svg")])
    assert (tmp_path / "out.svg").read_text().rstrip().endswith("</svg>")
