"""What the server costs: tokens per second of `palmette serve`, beside the same engine without it, in one run.

    python -m benchmarks.server [--streams 64] [--tokens 64] [--rounds 5] [--json FILE]

Both run in processes of their own, one after the other, round by round. The client of the server speaks HTTP by hand
over plain sockets and counts events, since on two cores it takes its time from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LOCAL = """
import sys, threading, time
from palmette import Runtime
from palmette.types import GenerateRequest, SamplingParams
model, streams, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
runtime = Runtime(model)
ids = [list(row) for row in __import__("json").loads(sys.argv[4])]
def run(prompts, tokens):
    left, done = [len(prompts)], threading.Event()
    def deliver(events):
        left[0] -= sum(event.finish is not None for event in events)
        if not left[0]: done.set()
    begin = time.perf_counter()
    for n, prompt in enumerate(prompts):
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        runtime.submit(GenerateRequest(f"{begin}-{n}", tuple(prompt), params), deliver)
    done.wait()
    return time.perf_counter() - begin
run(ids[:2], 4)
runtime.flush_cache()
print(len(ids) * tokens / run(ids, tokens))
"""


def prompts(streams: int) -> list[list[int]]:
    """Token ids of different prompts, 24 each."""
    return [[1000 + (n * 37 + i * 11) % 20000 for i in range(24)] for n in range(streams)]


def local(model: str, streams: int, tokens: int) -> float:
    """Tokens per second of an in-process Runtime."""
    command = [sys.executable, "-c", _LOCAL, model, str(streams), str(tokens), json.dumps(prompts(streams))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def served(model: str, streams: int, tokens: int, args: list[str]) -> float:
    """Tokens per second through a server, all streams at once."""
    command = [sys.executable, "-m", "palmette", "serve", "--model", model, "--port", "0", *args]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://(\S+):(\d+)", server.stdout.readline())
        assert found, "the server did not start"
        host, port = found[1], int(found[2])
        asyncio.run(_load(host, port, prompts(2), 4))
        begin = time.perf_counter()
        asyncio.run(_load(host, port, prompts(streams), tokens))
        return streams * tokens / (time.perf_counter() - begin)
    finally:
        server.terminate()
        server.wait(30)


async def _load(host: str, port: int, rows: list[list[int]], tokens: int) -> None:
    await asyncio.gather(*(_one(host, port, row, tokens) for row in rows))


async def _one(host: str, port: int, row: list[int], tokens: int) -> None:
    body = json.dumps(
        {"prompt": row, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    ).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
    tail = b""
    while data := await reader.read(1 << 16):
        tail = (tail + data)[-64:]
    writer.close()
    assert b"[DONE]" in tail, tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("serve", nargs="*", help="further arguments of palmette serve, behind --")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows: list[dict[str, Any]] = []
    for number in range(args.rounds):
        row = {
            "in_process": local(args.model, args.streams, args.tokens),
            "served": served(args.model, args.streams, args.tokens, args.serve),
        }
        rows.append(row)
        print(f"round {number + 1}: " + ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in row.items()))
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    added = medians["in_process"] / medians["served"] - 1
    print(f"medians: in-process {medians['in_process']:,.0f}, served {medians['served']:,.0f} tokens/s")
    print(f"the server adds {added:.1%} to the time of {args.streams} streams (goal: < 15 %)")
    if args.json:
        args.json.write_text(
            json.dumps({"args": vars(args) | {"json": None}, "rounds": rows, "added": added}, indent=1)
        )


if __name__ == "__main__":
    main()
