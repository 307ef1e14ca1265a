"""Policies order and do nothing else. With them, the theorem that makes cache-aware order worth having."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.runtime.config import PolicyName
from palmette.runtime.policy import make_policy
from palmette.runtime.radix_cache import Probe, RadixCache
from palmette.runtime.radix_node import TOKEN_CODE


@dataclass
class Prompt:
    """As much of a job as a policy reads. The whole of it may be matched here."""

    tokens: array[int]
    namespace: str = ""
    probe: Probe | None = field(default=None, compare=False)

    @property
    def match_limit(self) -> int:
        return len(self.tokens)


def prompts(*texts: Sequence[int]) -> list[Prompt]:
    return [Prompt(array(TOKEN_CODE, text)) for text in texts]


def computed_tokens(jobs: list[Prompt], policy: PolicyName, *, pool: int) -> int:
    """Tokens computed when the jobs run one after the other in the policy's order, in a pool of so many slots."""
    tree, used, computed = RadixCache(), 0, 0

    def probe(job: Prompt) -> Probe:
        job.probe = tree.probe(job.namespace, job.tokens, job.match_limit, job.probe)
        return job.probe

    slot = 0
    seen = 0
    for job in make_policy(policy, seed=1).order(jobs, probe):
        seen += 1
        match = tree.match_prefix(tree.root(job.namespace), job.tokens, len(job.tokens))
        tree.lock_ref(match.node)
        missing = len(job.tokens) - len(match.slots)
        if used + missing > pool:
            used -= len(tree.evict(used + missing - pool))
        assert used + missing <= pool
        slots = list(range(slot, slot + missing))
        slot += missing
        tree.insert(match.node, job.tokens, slots)
        tree.unlock_ref(match.node)
        used += missing
        computed += missing
        tree.check_integrity()
    assert seen == len(jobs)
    return computed


def least_tokens(jobs: list[Prompt]) -> int:
    """Each distinct token path once."""
    return len({tuple(job.tokens[: i + 1]) for job in jobs for i in range(len(job.tokens))})


SOME = st.lists(st.integers(0, 2), min_size=1, max_size=9)
BATCHES = st.lists(SOME, min_size=1, max_size=24)


@settings(max_examples=300, deadline=None)
@given(batch=BATCHES, extra=st.integers(0, 6))
def test_depth_first_order_is_optimal_when_the_pool_holds_the_longest_request(
    batch: list[list[int]], extra: int
) -> None:
    """arXiv 2312.07104, theorem 3.1, first half."""
    jobs = prompts(*batch)
    pool = max(len(job.tokens) for job in jobs) + extra
    assert computed_tokens(jobs, "depth_first", pool=pool) == least_tokens(jobs)


@settings(max_examples=300, deadline=None)
@given(batch=BATCHES, extra=st.integers(0, 6))
def test_longest_prefix_first_computes_no_more_than_depth_first(batch: list[list[int]], extra: int) -> None:
    """arXiv 2312.07104, theorem 3.1, second half."""
    jobs = prompts(*batch)
    pool = max(len(job.tokens) for job in jobs) + extra
    assert computed_tokens(jobs, "longest_prefix", pool=pool) == least_tokens(jobs)


def test_first_come_computes_more_when_prefixes_alternate() -> None:
    jobs = prompts(*[[group] * 20 + [i] for i in range(6) for group in (1, 2)])
    assert computed_tokens(jobs, "fcfs", pool=21) == 12 * 21
    assert computed_tokens(jobs, "longest_prefix", pool=21) == 2 * 20 + 12


def empty_probe(job: Prompt) -> Probe:
    return Probe(None, 0, 0)


@pytest.mark.parametrize("policy", ["longest_prefix", "depth_first", "fcfs", "random"])
@given(batch=st.lists(SOME, max_size=24))
def test_an_order_holds_every_job_once(policy: PolicyName, batch: list[list[int]]) -> None:
    jobs = prompts(*batch)
    order = list(make_policy(policy).order(jobs, empty_probe))
    assert sorted(map(id, order)) == sorted(map(id, jobs))


def test_without_shared_prefixes_the_longest_prefix_order_is_by_arrival() -> None:
    jobs = prompts([3], [1], [2])
    assert list(make_policy("longest_prefix").order(jobs, empty_probe)) == jobs


def test_depth_first_goes_into_the_heaviest_subtree_first() -> None:
    light, heavy = [1, 1], [2, 2]
    jobs = prompts([*light, 1], [*heavy, 1], [*heavy, 2], [*light, 2], [*heavy, 3])
    order = list(make_policy("depth_first").order(jobs, empty_probe))
    assert [job.tokens[0] for job in order] == [2, 2, 2, 1, 1]


def test_a_random_order_repeats_with_its_seed() -> None:
    jobs = prompts(*[[i] for i in range(20)])
    one, other = (list(make_policy("random", seed=5).order(jobs, empty_probe)) for _ in range(2))
    assert one == other != jobs


def test_longest_prefix_probes_again_only_what_an_admission_can_have_changed() -> None:
    tree, probes = RadixCache(), 0
    jobs = prompts(*[[group, 0, i] for group in range(8) for i in range(8)])

    def probe(job: Prompt) -> Probe:
        nonlocal probes
        probes += 1
        job.probe = tree.probe("", job.tokens, job.match_limit, job.probe)
        return job.probe

    for job in make_policy("longest_prefix").order(jobs, probe):
        tree.insert(tree.root(), job.tokens, list(range(len(job.tokens))))
    assert probes < 6 * len(jobs)
