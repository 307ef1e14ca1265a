"""The example programs as a batch of work: the same programs over more inputs, seeded and fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from examples.chat import chat
from examples.classify import REVIEWS, classify
from examples.few_shot_qa import QUESTIONS, few_shot_qa
from examples.judge import ESSAY, judge
from examples.skeleton_of_thought import skeleton_of_thought
from palmette import Program
from palmette.interpreter.backends.local import Runtime

_TOPICS = ["sleeping better", "learning to swim", "saving water", "planning a small garden", "staying calm"]
_HOBBIES = ["astronomy", "chess", "baking", "hiking", "painting", "sailing", "gardening", "cycling"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One program over several inputs."""

    name: str
    program: Program
    items: Sequence[dict[str, Any]]

    def run(self, runtime: Runtime) -> list[Any]:
        """The finished states; every draw is greedy."""
        states = self.program.run_batch(self.items, backend=runtime, temperature=0, seed=0)
        for state in states:
            error = state.error()
            if error is not None:
                raise error
        return states


def workloads(scale: int) -> list[Workload]:
    """Every program over about 4 x `scale` inputs."""
    count = 4 * scale
    return [
        Workload("few-shot QA", few_shot_qa, _take(QUESTIONS, count, lambda q: {"question": q})),
        Workload("chat", chat, _take(_HOBBIES, count, lambda h: {"turns": _turns(h)})),
        Workload("skeleton", skeleton_of_thought, _take(_TOPICS, scale, lambda t: {"topic": t})),
        Workload("judge", judge, [{"essay": f"({i + 1}) {ESSAY}"} for i in range(scale)]),
        Workload("classify", classify, _take(REVIEWS, count, lambda r: {"review": r})),
    ]


def _take(values: Sequence[str], count: int, item: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """`count` inputs; where there are fewer values, numbered again so that no two are the same."""
    texts = [
        v if i < len(values) else f"{v} ({i // len(values) + 1})"
        for i in range(count)
        for v in [values[i % len(values)]]
    ]
    return [item(text) for text in texts]


def _turns(hobby: str) -> list[str]:
    return [f"I like {hobby}. Recommend me one thing to try.", "Why that?", "Thank you, say goodbye."]
