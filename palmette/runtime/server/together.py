"""Several pieces of work as one: what they return, gathered; what they yield, merged as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")

AT_ONCE = 128  # that run; the others follow as these end
_QUEUED = 16  # items that wait for a slow reader


async def gathered(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order; the first error cancels the rest."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def in_turn(each: Coroutine[Any, Any, T]) -> T:
        async with turns:
            return await each

    tasks = [asyncio.ensure_future(in_turn(each)) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in work:
            each.close()  # whose turn never came


async def merged(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(index of the source, item) as they come. Bounded: who reads slowly holds them up. To be closed."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(_QUEUED)
    turns = asyncio.Semaphore(AT_ONCE)

    async def pump(index: int, source: AsyncGenerator[T]) -> None:
        try:
            async with turns, aclosing(source) as items:
                async for item in items:
                    await queue.put((index, item))
            await queue.put(None)
        except Exception as error:  # noqa: BLE001 - raised where the items are read
            await queue.put(error)

    tasks = [asyncio.ensure_future(pump(i, source)) for i, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
