"""The page allocator: against a model, and its guards."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from palmette.errors import InvalidOption
from palmette.runtime.allocator import PageAllocator


def test_pages_hold_adjacent_slots_and_low_ones_go_first() -> None:
    allocator = PageAllocator(12, page_size=4)
    assert allocator.try_alloc(2) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert allocator.num_free == 4


def test_too_many_pages_are_refused_and_nothing_changes() -> None:
    allocator = PageAllocator(8, page_size=4)
    assert allocator.try_alloc(3) is None
    assert allocator.num_free == 8


def test_a_double_free_is_caught() -> None:
    allocator = PageAllocator(4)
    slots = allocator.try_alloc(1)
    assert slots is not None
    allocator.free(slots)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(slots)


def test_part_of_a_page_cannot_be_freed() -> None:
    allocator = PageAllocator(8, page_size=4)
    slots = allocator.try_alloc(1)
    assert slots is not None
    with pytest.raises(AssertionError, match="whole pages"):
        allocator.free(slots[:3])


@pytest.mark.parametrize(("num_slots", "page_size"), [(0, 1), (10, 4), (4, 0), (2, 4)])
def test_sizes_that_make_no_sense_are_refused(num_slots: int, page_size: int) -> None:
    with pytest.raises(InvalidOption):
        PageAllocator(num_slots, page_size)


class AllocatorMachine(RuleBasedStateMachine):
    """The model is the set of slots that are out."""

    @initialize(pages=st.integers(1, 20), page_size=st.sampled_from([1, 2, 4]))
    def build(self, pages: int, page_size: int) -> None:
        self.allocator = PageAllocator(pages * page_size, page_size)
        self.out: list[list[int]] = []

    @rule(pages=st.integers(0, 8))
    def alloc(self, pages: int) -> None:
        free = self.allocator.num_free
        slots = self.allocator.try_alloc(pages)
        assert (slots is None) == (pages * self.allocator.page_size > free)
        if slots:
            assert len(slots) == pages * self.allocator.page_size
            self.out.append(slots)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.out:
            self.allocator.free(self.out.pop(data.draw(st.integers(0, len(self.out) - 1))))

    @invariant()
    def every_slot_is_free_or_out(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.allocator.check_integrity()
        out = [slot for slots in self.out for slot in slots]
        assert len(out) == len(set(out))
        assert self.allocator.free_slots() == set(range(self.allocator.num_slots)) - set(out)
        assert self.allocator.num_free == self.allocator.num_slots - len(out)


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
