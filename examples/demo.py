"""The main job: every example program on the embedded model, with what was shared and how fast it went.

python -m examples.demo [model]
"""

import sys
import time

import palmette as pm
from examples import (
    chat,
    classification_typed,
    classify,
    dates,
    extraction,
    few_shot_qa,
    hello,
    judge,
    skeleton_of_thought,
    think_first,
    tool_calls,
    tool_replies,
)
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.stats import Stats

PROGRAMS = [
    hello,
    few_shot_qa,
    chat,
    skeleton_of_thought,
    judge,
    classify,
    classification_typed,
    dates,
    extraction,
    tool_calls,
    tool_replies,
    think_first,
]


def main(model_path: str = "smollm2") -> None:
    start = time.perf_counter()
    runtime = Runtime(model_path=model_path, measure_optimum=True)
    print(f"{runtime.capabilities.model} ready in {time.perf_counter() - start:.1f} s\n")
    pm.set_default_backend(runtime)
    rows = []
    for program in PROGRAMS:
        title = (program.__doc__ or "").splitlines()[0]
        print(f"--- {program.__name__.split('.')[-1]}: {title}")
        before, began = runtime.stats(), time.perf_counter()
        program.main()
        rows.append((program.__name__.split(".")[-1], before, runtime.stats(), time.perf_counter() - began))
        print()
    print_table(rows)
    runtime.close()


def print_table(rows: list[tuple[str, Stats, Stats, float]]) -> None:
    """Per program: prompt tokens, how many were computed, how many the optimum would have, and tokens per second."""
    print(
        f"{'program':<20} {'prompt':>7} {'computed':>8} {'shared':>7} {'of optimum':>10} {'generated':>9} {'tok/s':>7}"
    )
    for name, a, b, seconds in rows:
        prompt = b.prompt_tokens - a.prompt_tokens
        computed = b.computed_prompt_tokens - a.computed_prompt_tokens
        best = (b.optimum_computed_tokens or 0) - (a.optimum_computed_tokens or 0)
        sampled = b.sampled_tokens - a.sampled_tokens
        of_optimum = 1.0 if prompt == best else (prompt - computed) / (prompt - best)
        print(
            f"{name:<20} {prompt:>7} {computed:>8} {1 - computed / prompt:>7.1%} {of_optimum:>10.1%} {sampled:>9} "
            f"{(prompt + sampled) / seconds:>7.0f}"
        )
    print("shared: prompt tokens read from the cache; of optimum: relative to a cache that never forgets;")
    print("tok/s: prompt and generated tokens of the program's requests per second, on this machine's CPU")


if __name__ == "__main__":
    main(*sys.argv[1:2])
