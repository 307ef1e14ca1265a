"""Mistakes that mypy must find: each `type: ignore` here is reported as unused should it stop to. Nothing is run."""

from __future__ import annotations

import palmette as pm


def mistakes(s: pm.State, program: pm.Program) -> None:
    s += 5  # type: ignore[arg-type]
    pm.gen("x", max_tokens="many")  # type: ignore[arg-type]
    pm.gen("x", temprature=1)  # type: ignore[call-arg]
    pm.gen("x", stop=5)  # type: ignore[arg-type]
    pm.select("x", choices=5)  # type: ignore[arg-type]
    s.retry(until=5)  # type: ignore[arg-type]
    s.fork("two")  # type: ignore[arg-type]
    s.fork(2).join("both")  # type: ignore[arg-type]
    s.fork(2).join(on_error="ignore")  # type: ignore[arg-type]
    program.map(["a"], on_error="skip")  # type: ignore[arg-type]
    program.run_batch(["a"], num_threads="few")  # type: ignore[call-overload]
    pm.Budget(tokens="10")  # type: ignore[arg-type]
    pm.set_default_backend("smollm2")  # type: ignore[arg-type]
