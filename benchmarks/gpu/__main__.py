"""python -m benchmarks.gpu [--only attention engine peers ...] [--json FILE]"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import triton

from benchmarks.gpu.attention import attention_rows
from benchmarks.gpu.engine import engine_rows
from benchmarks.gpu.machine import Machine, this_machine
from benchmarks.gpu.peers import peer_rows
from benchmarks.gpu.products import product_rows
from benchmarks.gpu.rows import Row, table, write
from palmette.runtime.paged_plan import PagedLimits

TINY = PagedLimits(cut=128, short=4, wide=32, widest=64, extend=32, key_tile=128, gather_from=24)
PARTS: dict[str, Callable[[Machine], list[Row]]] = {
    "attention": lambda machine: attention_rows(machine, PagedLimits() if machine.measures else TINY),
    "products": product_rows,
    "engine": engine_rows,
    "peers": peer_rows,
}


def main() -> int:
    """Returns 1 if a result was wrong or a part failed; a goal that is missed is a figure, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    machine = this_machine()
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": machine.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy TB/s": round(machine.copy_bandwidth / 1e12, 3),
        "matrix TFLOP/s": round(machine.matrix_rate / 1e12, 1),
    }
    print(", ".join(f"{k} {v}" for k, v in about.items()), flush=True)
    rows: list[Row] = []
    failed = False
    for part in options.only:
        try:
            found = PARTS[part](machine)
        except Exception:  # noqa: BLE001 - a part that fails leaves the others their rows
            failed = True
            print(f"{part} failed:", file=sys.stderr)
            traceback.print_exc()
            continue
        rows += found
        print(table(found), flush=True)  # what is known if a later part takes too long
        if machine.measures:
            torch.cuda.empty_cache()
    print("\n" + table(rows))
    if options.json is not None:
        write(options.json, about, rows)
    return int(failed or not all(row.is_right for row in rows))


if __name__ == "__main__":
    sys.exit(main())
