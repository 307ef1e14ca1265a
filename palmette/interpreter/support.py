"""What a backend cannot do is refused when it is appended, before a token is paid for."""

from __future__ import annotations

from palmette.errors import UnsupportedConstraint, UnsupportedFeature
from palmette.ir import Gen, Media, Node, RoleBegin, Tool
from palmette.types import Capabilities


def check_supported(node: Node, capabilities: Capabilities) -> None:
    """Raises UnsupportedConstraint or UnsupportedFeature, naming the author's line."""
    if isinstance(node, Gen) and node.constraint is not None:
        kind = node.constraint.kind
        if kind not in capabilities.constraints:
            model = capabilities.model or "this backend"
            raise UnsupportedConstraint("", kind, f"{model} does not enforce it").at(hole=node.name, source=node.source)
    elif isinstance(node, Gen) and node.options.stop_regex and "stop_regex" not in capabilities.constraints:
        model = capabilities.model or "this backend"
        raise UnsupportedConstraint("", "stop_regex", f"{model} does not stop at patterns").at(
            hole=node.name, source=node.source
        )
    elif isinstance(node, Media) and not capabilities.vision:
        raise UnsupportedFeature(node.kind, "the model has no vision part").at(source=node.source)
    elif isinstance(node, Tool):
        raise UnsupportedFeature("tool", "tools need constrained decoding").at(source=node.source)
    elif isinstance(node, RoleBegin) and not node.role:
        raise UnsupportedFeature("role ''", "a role has a name").at(source=node.source)
