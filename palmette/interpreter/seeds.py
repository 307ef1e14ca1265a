"""The keys of random draws: a function of what a program is, never of when or beside whom it ran."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence


def fresh_seed() -> int:
    """A seed for a run that named none; recorded, so that the run can be replayed."""
    return secrets.randbits(63)


def draw_key(seed: int, path: Sequence[int], hole: int, sample: int) -> int:
    """64 bits from (run seed, stream path, hole index, sample index); the engine adds the token's position."""
    return _hash64((seed, len(path), *path, hole, sample))


def instance_seed(seed: int, index: int) -> int:
    """The seed of instance `index` of a batch that runs under one seed."""
    return _hash64((seed, index)) >> 1


def _hash64(parts: Sequence[int]) -> int:
    data = b"".join((part & (2**64 - 1)).to_bytes(8, "little") for part in parts)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
