"""Pages of KV slots: which are free. Plain integers; knows neither the tree nor requests, and never says who owns what.

    page_size 4:   page 0 = slots 0 1 2 3   page 1 = slots 4 5 6 7   ...

Whole pages are handed out and taken back. Slots are named one by one, since that is what page tables hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from palmette.errors import InvalidOption


class PageAllocator:
    """A stack of free pages. Handing out and taking back cost O(pages moved); a double free is an AssertionError."""

    def __init__(self, num_slots: int, page_size: int = 1) -> None:
        """
        Args:
            num_slots: slots 0 .. num_slots - 1; a multiple of page_size.
        """
        if page_size < 1:
            raise InvalidOption("page_size", page_size, "an integer >= 1")
        if num_slots < page_size or num_slots % page_size:
            raise InvalidOption("num_slots", num_slots, f"a positive multiple of page_size={page_size}")
        self.page_size = page_size
        self.num_slots = num_slots
        self._free = list(range(num_slots // page_size - 1, -1, -1))  # the last goes out first: low slots first
        self._used = bytearray(num_slots // page_size)

    @property
    def num_free(self) -> int:
        """Free slots."""
        return len(self._free) * self.page_size

    def try_alloc(self, num_pages: int) -> list[int] | None:
        """Slots of `num_pages` pages, a page's slots adjacent; None if there are not as many free pages."""
        if num_pages > len(self._free):
            return None
        if num_pages == 0:
            return []
        pages = self._free[-num_pages:]
        del self._free[-num_pages:]
        pages.reverse()
        used = self._used
        for page in pages:
            used[page] = 1
        size = self.page_size
        if size == 1:
            return pages
        return [slot for page in pages for slot in range(page * size, page * size + size)]

    def free(self, slots: Sequence[int]) -> None:
        """Take whole pages back."""
        size = self.page_size
        pages = slots if size == 1 else [slot // size for slot in slots[::size]]
        assert len(pages) * size == len(slots), f"{len(slots)} slots are not whole pages of {size}"
        used = self._used
        for page in pages:
            assert used[page], f"page {page} freed twice"
            used[page] = 0
        self._free.extend(pages)

    def free_slots(self) -> set[int]:
        """Every free slot; O(pool), for checks."""
        return {page * self.page_size + i for page in self._free for i in range(self.page_size)}

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: an invariant is broken.
        """
        num_pages = self.num_slots // self.page_size
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert all(0 <= page < num_pages for page in free), "a free page lies outside the pool"
        for page in range(num_pages):
            assert bool(self._used[page]) != (page in free), f"page {page} is both used and free, or neither"
