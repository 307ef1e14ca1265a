"""What several samples are made of: seeds, names of tokens, merged streams that end with whoever fails first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.errors import RequestError
from palmette.formats import TOOL_FORMATS, detect
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.server.openai.logprobs import LOWEST, CompletionRows, chat_rows, token_text
from palmette.runtime.server.openai.params import sample_seed
from palmette.runtime.server.openai.sampling import stop_reason, usage_of
from palmette.runtime.server.together import gathered, merged
from palmette.types import Finish, FinishReason, TokenLogprob, Usage


@given(st.integers(-(1 << 63), (1 << 64) - 1), st.integers(0, 63))
def test_a_samples_seed_is_63_bits_and_its_own(seed: int, sample: int) -> None:
    mine = sample_seed(seed, sample)
    assert 0 <= mine < 1 << 63
    assert mine == sample_seed(seed, sample)
    assert len({sample_seed(seed, i) for i in range(64)}) == 64


def test_tokens_are_named_by_text_name_or_bytes() -> None:
    tokenizer = ByteTokenizer(extra_tokens=["né".encode()])
    assert token_text(tokenizer, ord("a")) == "a"
    assert token_text(tokenizer, 0xE9) == "bytes:\\xe9"
    assert token_text(tokenizer, 258) == "<|im_start|>"
    assert token_text(tokenizer, 260) == "né"


def test_a_probability_of_0_is_a_number() -> None:
    row = TokenLogprob(65, float("-inf"), ((65, float("-inf")), (66, -0.5)))
    (told,) = chat_rows(ByteTokenizer(), [row])
    assert told["logprob"] == told["top_logprobs"][0]["logprob"] == LOWEST
    assert CompletionRows(ByteTokenizer()).take([row])["token_logprobs"] == [LOWEST]


@given(st.text(max_size=12), st.integers(0, 40))
def test_offsets_do_not_depend_on_the_cuts(text: str, cut: int) -> None:
    tokenizer = ByteTokenizer()
    rows = [TokenLogprob(token, -1.0) for token in tokenizer.encode(text)]
    whole = CompletionRows(tokenizer).take(rows)
    parts = CompletionRows(tokenizer)
    first, second = parts.take(rows[:cut]), parts.take(rows[cut:])
    assert whole == {key: first[key] + second[key] for key in whole}
    starts = [whole["text_offset"][len(text[:i].encode())] for i in range(len(text))]
    assert starts == list(range(len(text)))


def test_usage_counts_a_prompt_once_and_what_was_cached_before() -> None:
    def finish(cached: int, sampled: int) -> Finish:
        return Finish(FinishReason.STOP, usage=Usage(prompt_tokens=10, cached_tokens=cached, sampled_tokens=sampled))

    usage = usage_of([[finish(2, 5), finish(9, 6)], [finish(0, 1)]])
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (20, 2, 12)


def test_a_stop_reason_is_the_requests_own() -> None:
    assert stop_reason(Finish(FinishReason.STOP, matched="x"), None) == "x"
    assert stop_reason(Finish(FinishReason.STOP, matched=7), [7]) == 7
    assert stop_reason(Finish(FinishReason.STOP, matched=7), None) is None


@pytest.mark.parametrize("name", list(TOOL_FORMATS))
def test_a_formats_marks_tell_it_as_its_template_would(name: str) -> None:
    """What stands in for the template where the operator names the format."""
    assert detect("".join(TOOL_FORMATS[name].markers)) is TOOL_FORMATS[name]


# -- merging -----------------------------------------------------------------------------------------------------------


def _run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(10):
            return await work()

    return asyncio.run(bounded())


class _Source:
    """Counts up; knows whether it was closed."""

    def __init__(self, count: int | None, error: Exception | None = None) -> None:
        self._count, self._error = count, error
        self.given = 0
        self.is_closed = False

    async def items(self) -> AsyncGenerator[int]:
        try:
            while self._count is None or self.given < self._count:
                await asyncio.sleep(0)
                self.given += 1
                yield self.given
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


def test_merging_keeps_the_order_of_each_source() -> None:
    async def work() -> None:
        sources = [_Source(n) for n in (0, 5, 40)]
        got: list[list[int]] = [[], [], []]
        async for index, item in merged([source.items() for source in sources]):
            got[index].append(item)
        assert got == [list(range(1, n + 1)) for n in (0, 5, 40)]

    _run(work)


def test_one_that_fails_ends_the_others() -> None:
    async def work() -> None:
        sources = [_Source(None), _Source(3, RequestError("it broke"))]
        with pytest.raises(RequestError, match="it broke"):
            async for _ in merged([source.items() for source in sources]):
                pass
        assert all(source.is_closed for source in sources)

    _run(work)


def test_a_reader_that_stops_holds_the_sources_up_and_then_ends_them() -> None:
    async def work() -> None:
        source = _Source(None)
        found = merged([source.items(), _Source(0).items()])
        await anext(found)
        for _ in range(500):
            await asyncio.sleep(0)
        assert source.given < 30
        await found.aclose()
        assert source.is_closed

    _run(work)


def test_the_first_error_cancels_what_is_gathered() -> None:
    async def work() -> None:
        is_cancelled = asyncio.Event()

        async def waits() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                is_cancelled.set()

        async def fails() -> None:
            await asyncio.sleep(0)
            raise RequestError("it broke")

        with pytest.raises(RequestError, match="it broke"):
            await gathered([waits(), fails()])
        assert is_cancelled.is_set()

    _run(work)
