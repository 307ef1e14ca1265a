"""See interpreter.py."""

from __future__ import annotations

import tests.kernels.gpu.interpreter  # noqa: F401
