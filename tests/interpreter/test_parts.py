"""The small parts of the interpreter alone: chain, cursor, reasoning, budget, seeds, workers."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.errors import BudgetExceeded, InvalidOption
from palmette.formats.reasoning import REASONING_FORMATS, reasoning_format
from palmette.interpreter.budget import Budget, Purse
from palmette.interpreter.chain import EMPTY, TokenChain
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.reasoning import ReasoningSplitter
from palmette.interpreter.seeds import draw_key, instance_seed
from palmette.interpreter.workers import WorkerPool
from palmette.testing import ScriptedBackend
from palmette.types import Message, RolePieces

segments = st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.text("abc", max_size=4)), max_size=8)


@given(segments, st.integers(0, 40))
def test_a_chain_gives_back_what_was_put_in(parts: list[tuple[list[int], str]], start: int) -> None:
    chain, bases = EMPTY, [EMPTY]
    for ids, text in parts:
        chain = chain.extend(ids, text)
        bases.append(chain)
    ids, text = [i for part, _ in parts for i in part], "".join(t for _, t in parts)
    assert list(chain.all_ids()) == ids
    assert len(chain) == chain.length == len(ids)
    assert (chain.low, chain.high) == (min([0, *ids]), max([0, *ids]))
    assert chain == tuple(ids)
    assert chain != (*ids, 1)
    assert list(chain.ids_from(start)) == ids[start:]
    assert chain.text_from(start) == text[start:]
    for base in bases:
        assert list(chain.ids_since(base)) == ids[base.length :]


def test_branches_share_the_chain_and_do_not_see_each_other() -> None:
    base = EMPTY.extend([1, 2], "ab")
    left, right = base.extend([3], "c"), base.extend([4], "d")
    assert (left.all_ids(), right.all_ids()) == ((1, 2, 3), (1, 2, 4))
    assert isinstance(left, TokenChain)
    assert left.parent is right.parent is base


def test_a_cursor_keeps_what_was_pending_for_whoever_holds_it() -> None:
    backend = ScriptedBackend()
    base = Cursor().add("ab")
    one, two = base.add("c"), base.add("d")
    assert (one.text_from(0), two.text_from(0), base.text_from(1)) == ("abc", "abd", "b")
    flushed = one.flush(backend)
    assert (flushed.text_from(0), flushed.pieces(), flushed.text_len) == ("abc", [], 3)
    assert one.pieces() != []


def test_a_message_is_the_text_between_its_roles_pieces() -> None:
    cursor = Cursor().open_role("user", RolePieces("<u>", "</u>")).add("hi").flush(ScriptedBackend()).add(" you")
    assert cursor.all_messages() == (Message("user", "hi you"),)
    assert cursor.role is not None
    closed = cursor.close_role(cursor.role)
    assert closed.messages == (Message("user", "hi you"),)
    assert closed.text_from(0) == "<u>hi you</u>"


# -- reasoning ---------------------------------------------------------------------------------------------------------


def split(pieces: Sequence[str], model_type: str) -> tuple[str, str]:
    splitter = ReasoningSplitter(reasoning_format(model_type))
    dealt = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return "".join(r for r, _ in dealt), "".join(a for _, a in dealt)


@pytest.mark.parametrize("model_type", sorted(REASONING_FORMATS))
def test_every_format_is_split(model_type: str) -> None:
    form = REASONING_FORMATS[model_type]
    begin = "" if form.starts_inside else form.begin
    assert split([f"{begin}why{form.end}\n\nso"], model_type) == ("why", "so")
    assert split([f"{form.begin}\nwhy{form.end}so"], model_type) == ("why", "so")


def test_an_answer_without_reasoning_has_none() -> None:
    assert split(["just <b>this</b>"], "qwen3") == ("", "just <b>this</b>")
    assert split(["never ends"], "deepseek-r1") == ("never ends", "")
    assert split(["<thi"], "qwen3") == ("", "<thi")


@given(
    st.sampled_from(
        ["<think>\na < b</think>\n\nyes</think>", "no marks", "<think>x", "a</think>b", "  <think>q</think>"]
    ),
    st.sampled_from(sorted(REASONING_FORMATS)),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_a_split_does_not_depend_on_the_pieces(text: str, model_type: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert split(pieces, model_type) == split([text], model_type)


def test_an_unknown_reasoning_format_is_refused() -> None:
    with pytest.raises(InvalidOption, match="qwen3"):
        reasoning_format("unknown")


# -- budget, seeds, workers --------------------------------------------------------------------------------------------


def test_a_purse_waits_for_what_others_may_give_back() -> None:
    async def main() -> None:
        purse = Purse(Budget(tokens=10))
        assert await purse.reserve(10, 1) == 10
        waiting = asyncio.ensure_future(purse.reserve(5, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        purse.settle(10, 7)
        assert await waiting == 3
        purse.settle(3, 3)
        with pytest.raises(BudgetExceeded):
            await purse.reserve(1, 1)

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**63), st.integers(0, 9)), min_size=2, unique=True))
def test_draw_keys_differ_where_anything_differs(parts: list[tuple[int, int, int]]) -> None:
    keys = [draw_key(seed, (path, 1), hole, 0) for path, seed, hole in parts]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    assert draw_key(1, (2,), 3, 4) == draw_key(1, (2,), 3, 4) != draw_key(1, (), 3, 4)
    assert instance_seed(1, 2) != instance_seed(2, 1)


def test_a_worker_pool_starts_no_more_threads_than_it_may_nor_than_it_needs() -> None:
    gate = threading.Event()
    before = threading.active_count()
    pool = WorkerPool(4)
    futures = [pool.submit(gate.wait) for _ in range(20)]
    assert threading.active_count() - before == 4
    gate.set()
    assert all(future.result(10) for future in futures)
    pool.close()


def test_a_cancelled_body_is_never_run() -> None:
    gate, ran = threading.Event(), []
    pool = WorkerPool(1)
    first = pool.submit(gate.wait)
    second = pool.submit(lambda: ran.append(1))
    assert second.cancel()
    gate.set()
    first.result(10)
    assert pool.submit(lambda: "after").result(10) == "after"
    assert ran == []
    pool.close()
