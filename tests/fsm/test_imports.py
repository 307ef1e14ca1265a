"""What the language half may load on the author's line."""

from __future__ import annotations

import subprocess
import sys


def test_checking_a_regex_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, palmette.fsm.parse as p; p.parse_regex('a+'); "
        "print([m for m in ('numpy', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
