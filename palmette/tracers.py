"""Whether anybody in this process listens to OpenTelemetry's spans. Imports its API only if somebody did already."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported by whoever configures it
    from opentelemetry.trace import Tracer


def configured_tracer() -> Tracer | None:
    """None unless somebody set OpenTelemetry up in this process."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        if "OTEL_PYTHON_TRACER_PROVIDER" not in os.environ:
            return None
        import opentelemetry.trace as trace
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    found: Tracer = provider.get_tracer("palmette")
    return found
