"""What programs told of their future, as ranks of tree nodes: keep the prefix of a fork until its branches came, drop
first what only an ended program used.

Knows nodes and program names. Does not know requests, nor when or what is evicted. O(1) a node and program; everything
a program said is forgotten when it ends or when the node goes.
"""

from __future__ import annotations

from collections.abc import Callable

from palmette.runtime.radix_node import RadixNode, Rank


class CacheHints:
    """Owns RadixNode.rank, .owner and .keep."""

    def __init__(self, lowered: Callable[[RadixNode], None]) -> None:
        """
        Args:
            lowered: called with a node whose rank went down, which the eviction heap must learn at once. (It finds
                out by itself about a rank that went up.)
        """
        self._lowered = lowered
        self._programs: dict[str, set[RadixNode]] = {}  # the nodes a program alone used, or wants kept

    # -- what the tree tells -----------------------------------------------------------------------------------

    def created(self, node: RadixNode, program: str) -> None:
        """`program` ("" = none) made the node."""
        node.owner = program
        if program:
            self._programs.setdefault(program, set()).add(node)

    def used(self, node: RadixNode, program: str) -> None:
        """`program` reads a node that it does not own: nobody owns it then, and nobody's end makes it go first."""
        owner, node.owner = node.owner, ""
        if owner and not (node.keep and owner in node.keep):
            self._forget(node, owner)
        if node.rank is Rank.FIRST:
            node.rank = Rank.NORMAL

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """`upper` is new and was the beginning of `lower`. What a fork wants kept is the end."""
        self.created(upper, lower.owner)
        upper.rank = Rank.FIRST if lower.rank is Rank.FIRST else Rank.NORMAL

    def removed(self, node: RadixNode) -> None:
        for program in {*(node.keep or ()), node.owner}:
            if program:
                self._forget(node, program)
        node.keep, node.owner = None, ""

    # -- what programs tell ------------------------------------------------------------------------------------

    def expect(self, node: RadixNode, program: str, siblings: int) -> None:
        """`siblings` more requests of `program` will go through `node`: keep it longer than anything else.

        Said once for a node: what is expected there already, or has come, is not expected again.
        """
        if not program or node.parent is None or siblings < 1 or (node.keep and program in node.keep):
            return
        node.keep = node.keep or {}
        node.keep[program] = siblings
        self._programs.setdefault(program, set()).add(node)
        node.rank = Rank.KEEP

    def arrived(self, node: RadixNode, program: str, count: int = 1) -> bool:
        """`count` expected siblings came, or never will. Was a node on `node`'s path announced by `program`?"""
        walk: RadixNode | None = node
        while walk is not None:
            if walk.keep and program in walk.keep:
                walk.keep[program] = max(0, walk.keep[program] - count)
                self._release(walk)
                return True
            walk = walk.parent
        return False

    def last_use(self, node: RadixNode, program: str) -> None:
        """Nothing will extend the path that ends at `node`: drop first what of it nobody else uses."""
        if node.children:
            return
        walk: RadixNode | None = node
        while walk is not None and walk.parent is not None:
            shared = walk.refs or walk.owner != program or len(walk.children) > (0 if walk is node else 1)
            if shared or walk.rank is Rank.KEEP:
                return
            walk.rank = Rank.FIRST
            self._lowered(walk)
            walk = walk.parent if program else None  # without a program nobody knows who else used the rest

    def end_program(self, program: str) -> None:
        """Forget all that was said of `program`; what only it used goes first from now on."""
        for node in self._programs.pop(program, ()):
            if node.keep is not None:
                node.keep.pop(program, None)
                self._release(node)
                node.keep = node.keep or None
            if node.owner == program:
                node.owner = ""
                if node.rank is Rank.NORMAL:
                    node.rank = Rank.FIRST
                    self._lowered(node)

    @property
    def num_programs(self) -> int:
        """Programs of which something is remembered."""
        return len(self._programs)

    def check_integrity(self, nodes: set[RadixNode]) -> None:
        """
        Args:
            nodes: all that are in the tree.

        Raises:
            AssertionError: an invariant is broken.
        """
        for node in nodes:
            assert (node.rank is Rank.KEEP) == bool(node.keep and any(node.keep.values())), "a wrong rank"
            for program in {*(node.keep or ()), node.owner} - {""}:
                assert node in self._programs.get(program, ()), f"program {program!r} forgot a node"
        for program, known in self._programs.items():
            assert known <= nodes, f"program {program!r} remembers nodes that are gone"
            assert all(n.owner == program or (n.keep and program in n.keep) for n in known), "remembered for nothing"
            assert known, f"program {program!r} is remembered for nothing"

    def _release(self, node: RadixNode) -> None:
        if node.rank is Rank.KEEP and not (node.keep and any(node.keep.values())):
            node.rank = Rank.NORMAL
            self._lowered(node)

    def _forget(self, node: RadixNode, program: str) -> None:
        nodes = self._programs.get(program)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._programs[program]
