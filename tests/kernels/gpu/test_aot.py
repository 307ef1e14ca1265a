"""Every kernel compiles for compute capability 9.0 without a GPU, fits its shared memory and spills nothing."""

from __future__ import annotations

import json

import pytest

from tests.kernels.gpu.aot import modules, run


@pytest.mark.parametrize("module", modules())
def test_every_case_compiles_fits_and_spills_nothing(module: str) -> None:
    done = run([module])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [row for row in rows if row["problems"]], done.stdout[-4000:]
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows
