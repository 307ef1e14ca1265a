"""Memory straight from the system: zeros, taken page by page as they are first touched, and given back when freed.

An allocator would give memory that was used before and write its zeros, half a second a GB. Huge pages are not asked
for: zeroed at once they cost a tenth, but where memory is in pieces the first touch waits 0.1 to 0.3 s until the system
has put some together.
"""

from __future__ import annotations

import mmap


def fresh_pages(num_bytes: int) -> mmap.mmap:
    """A private mapping of at least one byte."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return mmap.mmap(-1, max(num_bytes, 1), **private)
