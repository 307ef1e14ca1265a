"""What `import palmette` costs over the bare interpreter: median of several processes, in milliseconds. Goal: < 300.

python -m benchmarks.imports [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def milliseconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    pairs = [(milliseconds("pass"), milliseconds("import palmette")) for _ in range(rounds)]
    bare, full = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(f"bare interpreter {bare:.0f} ms, with import palmette {full:.0f} ms: {full - bare:.0f} ms (goal: < 300)")


if __name__ == "__main__":
    main()
