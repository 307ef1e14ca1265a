"""Many HTTP requests at once, by hand over plain sockets, and somebody beside them who asks how the server is doing.

    python -m tests.acceptance.loading load URL COUNT TOKENS stream|whole     prints one JSON object
    python -m tests.acceptance.loading probe URL                              the same, when its stdin ends

Each runs in a process of its own: a loop that opens ten thousand connections is late for anything else, so that who
asks for /health ten times a second, and for a token five times, must be another one.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections import Counter
from typing import Any


async def ask(
    url: str, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, the last 64 KiB of the body)"""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode() if body is not None else b""
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (method.encode(), path.encode(), len(data), data)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        rest = b""
        while chunk := await reader.read(1 << 16):
            rest = (rest + chunk)[-(1 << 16) :]
        return int(head[0].split()[1]), headers, rest
    finally:
        writer.close()


async def load(url: str, count: int, tokens: int, *, stream: bool) -> dict[str, Any]:
    """`count` completions at once; what came of them."""
    outcomes: Counter[str] = Counter()
    begin = time.monotonic()

    async def one(number: int) -> None:
        body = {"prompt": f"Request number {number} tells a story about", "max_tokens": tokens, "temperature": 0}
        try:
            status, headers, rest = await ask(
                url, "POST", "/v1/completions", {**body, "ignore_eos": True, "stream": stream}
            )
        except (OSError, EOFError) as error:
            outcomes[f"lost: {type(error).__name__}"] += 1
            return
        if status == 200:
            whole = b"[DONE]" in rest if stream else json.loads(rest)["choices"][0]["finish_reason"] == "length"
            outcomes["200" if whole else "cut"] += 1
        elif status == 429 and headers.get("retry-after", "").isdigit():
            outcomes["429"] += 1
        else:
            outcomes[f"{status}: {rest[:200]!r}"] += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return {"outcomes": dict(outcomes), "seconds": time.monotonic() - begin}


async def probe(url: str) -> dict[str, Any]:
    """Latencies in seconds, from when a question was due to the end of its answer, until stdin ends."""
    health: list[float] = []
    refused: list[float] = []
    statuses: Counter[int] = Counter()

    async def look(due: float) -> None:
        status, _, _ = await ask(url, "GET", "/health")
        health.append(time.monotonic() - due)
        statuses[status] += 1

    async def want(due: float) -> None:
        status, _, _ = await ask(url, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
        if status == 429:
            refused.append(time.monotonic() - due)

    over = asyncio.ensure_future(asyncio.to_thread(os.read, 0, 1))
    asked: set[asyncio.Task[None]] = set()
    number = 0
    while not over.done():
        due = time.monotonic()
        asked.add(asyncio.ensure_future(look(due)))
        if number % 2:
            asked.add(asyncio.ensure_future(want(due)))
        number += 1
        await asyncio.sleep(0.1)
    await asyncio.gather(*asked)
    health.sort()
    return {
        "health": dict(statuses),
        "health_p50": health[len(health) // 2],
        "health_p99": health[int(len(health) * 0.99)],
        "health_max": health[-1],
        "refused": len(refused),
        "refused_after_max": max(refused, default=0.0),
    }


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "load":
        url, count, tokens, kind = sys.argv[2:]
        result = asyncio.run(load(url, int(count), int(tokens), stream=kind == "stream"))
    else:
        result = asyncio.run(probe(sys.argv[2]))
    sys.stdout.write(json.dumps(result) + "\n")
