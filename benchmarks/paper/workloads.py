"""The eleven workloads of the paper (section 6 and appendix), as batches of tasks, and how to run one.

Shots, turns, fan-outs and hops are the paper's. What is smaller here, for a model of 135M parameters on a CPU, is said
beside each workload; `scale` multiplies the number of inputs and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import palmette as pm
from benchmarks.paper import agents, conversation, data, extraction, originals, questions, retrieval, thoughts
from benchmarks.paper.world import PEOPLE
from palmette import Program
from palmette.types import Backend


@dataclass(frozen=True, slots=True)
class Task:
    """One instance of a program."""

    program: Program
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of tasks that come at once."""

    name: str
    title: str
    tasks: Sequence[Task]
    is_constrained: bool = False  # has holes whose text a constraint may force
    kv_tokens: int | None = None  # slots of the pool; None = the runtime's own default, which holds all of the batch

    def run(self, backend: Backend, *, one_at_a_time: bool = False) -> Outcome:
        """Greedy, every hole to its full length, constrained ones to the end of their text.

        Args:
            one_at_a_time: start a task when the one before it has ended.
        """
        seconds = [0.0] * len(self.tasks)
        items = [{"task": task, "number": i, "seconds": seconds} for i, task in enumerate(self.tasks)]
        options: dict[str, Any] = {"temperature": 0, "seed": 0, "ignore_eos": True}
        if one_at_a_time:
            options["num_threads"] = 1
        start = time.perf_counter()
        states = _timed.run_batch(items, backend=backend, **options)
        total = time.perf_counter() - start
        for state in states:
            error = state.error()
            if error is not None:
                raise error
        return Outcome(total, seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run took."""

    seconds: float
    latencies: list[float]  # of each task, from the start of its body to its end; seconds


@pm.function
def _timed(s: pm.State, task: Task, number: int, seconds: list[float]) -> None:
    start = time.perf_counter()
    task.program(s, **task.arguments)
    s.sync()
    seconds[number] = time.perf_counter() - start


# -- the workloads -------------------------------------------------------------------------------------------------


def mmlu(scale: float, folder: Path | None = None) -> Workload:
    """Five shots, one token; 57 subjects with 246 questions each on average in the original, 3 with 10 here."""
    return Workload("mmlu", "MMLU, 5 shots", _mmlu(3, _count(10, scale), folder))


def mmlu_pool(scale: float, folder: Path | None = None) -> Workload:
    """More subjects than the pool has room for their headers, as in the original: there, 57 headers of about 600 tokens
    and a pool of about 16,000. Here it is the order of requests that decides what is computed twice."""
    subjects = 8
    tasks = _mmlu(subjects, _count(4, scale), folder)
    return Workload("mmlu_pool", "MMLU, 5 shots, small pool", tasks, kv_tokens=256 * subjects)


def _mmlu(subjects: int, each: int, folder: Path | None) -> list[Task]:
    found = (originals.mmlu(folder, subjects, each, 5) if folder else None) or data.questions(subjects, each, 5)
    examples, asked = found
    headers = {rows[0].subject: questions.subject_header(rows[0].subject, rows) for rows in examples.values()}
    return [Task(questions.mmlu, {"header": headers[q.subject], "question": questions.ask(q)}) for q in asked]


def hellaswag(scale: float, folder: Path | None = None) -> Workload:
    """Twenty shots, four endings; 10,042 questions in the original."""
    shots, count = 20, _count(20, scale)
    stories = originals.hellaswag(folder, shots + count) if folder else None
    stories = stories or [data.story(i) for i in range(shots + count)]
    header = questions.story_header(stories[:shots])
    tasks = [
        Task(questions.hellaswag, {"header": header, "beginning": questions.begin(q), "endings": _spaced(q.endings)})
        for q in stories[shots:]
    ]
    return Workload("hellaswag", "HellaSwag, 20 shots", tasks)


def react(scale: float, folder: Path | None = None) -> Workload:
    """Three examples instead of six, four steps of 28 tokens (up to 100 in the original)."""
    steps, count = 4, _count(5, scale)
    header = agents.react_header([data.lookup(f"example {i}", 3) for i in range(3)])
    tasks = []
    for i in range(count):
        case = data.lookup(i, steps)
        arguments = {"header": header, "question": case.question, "observations": case.observations, "length": 28}
        tasks.append(Task(agents.react, arguments))
    return Workload("react", "ReAct agents", tasks)


def town(scale: float, folder: Path | None = None) -> Workload:
    """Calls of 3 to 16 new tokens of four agents; 25 agents in the original."""
    calls = [(program, moment) for moment in data.moments(4, _count(2, scale)) for program in agents.TOWN]
    return Workload("agents", "Generative agents", [Task(p, {"moment": m}) for p, m in calls])


def tree(scale: float, folder: Path | None = None) -> Workload:
    """Four levels with a fan-out of two, 20 tokens a thought (up to 256 in the original)."""
    count = _count(2, scale)
    problems = (originals.gsm8k(folder, count) if folder else None) or [data.problem(i) for i in range(count)]
    tasks = [Task(thoughts.tree_of_thought, {"problem": p.text, "fanout": 2, "length": 20}) for p in problems]
    return Workload("tree", "Tree of thought", tasks)


def skeleton(scale: float, folder: Path | None = None) -> Workload:
    """Five points of 40 tokens (up to 256 in the original)."""
    tasks = [
        Task(thoughts.skeleton_of_thought, {"topic": data.topic(i), "points": 5, "length": 40})
        for i in range(_count(4, scale))
    ]
    return Workload("skeleton", "Skeleton of thought", tasks)


def judge(scale: float, folder: Path | None = None) -> Workload:
    """An essay of a page, four dimensions, judgements of 32 tokens (up to 256 in the original)."""
    tasks = [Task(thoughts.judge, {"essay": data.essay(i), "length": 32}) for i in range(_count(4, scale))]
    return Workload("judge", "LLM judge", tasks)


def json_decoding(scale: float, folder: Path | None = None) -> Workload:
    """Half of them characters under the regular expression, half cities under the schema, articles of 150 tokens."""
    tasks = []
    for i in range(_count(6, scale)):
        tasks.append(Task(extraction.character, {"name": PEOPLE[i % len(PEOPLE)] + f" {i + 1}"}))
        tasks.append(Task(extraction.city, {"article": data.article(i)[1]}))
    return Workload("json", "JSON decoding", tasks, is_constrained=True)


def chat_short(scale: float, folder: Path | None = None) -> Workload:
    """Four turns of 96 to 192 tokens (256 to 512 in the original), replies of 6 (4 to 8)."""
    return Workload("chat_short", "Multi-turn chat, short", _chats(_count(5, scale), 70, 140, 6))


def chat_long(scale: float, folder: Path | None = None) -> Workload:
    """Four turns of 48 to 96 tokens, replies of 64: as long as the turns, as in the original (256 to 512 each)."""
    return Workload("chat_long", "Multi-turn chat, long", _chats(_count(4, scale), 35, 70, 64))


def rag(scale: float, folder: Path | None = None) -> Workload:
    """Two hops and an answer, three passages a hop, three examples a module, 24 new tokens a call."""
    examples = [data.hops(f"example {i}", 2, 2) for i in range(3)]
    queries, answers = retrieval.query_header(examples), retrieval.answer_header(examples)
    tasks = []
    for i in range(_count(4, scale)):
        case = data.hops(i, 2, 3)
        arguments = {"question": case.question, "passages": case.passages, "length": 24}
        tasks.append(Task(retrieval.multi_hop, {"queries": queries, "answers": answers, **arguments}))
    return Workload("rag", "RAG pipeline", tasks)


Make = Callable[[float, Path | None], Workload]
WORKLOADS: dict[str, Make] = {
    "mmlu": mmlu,
    "hellaswag": hellaswag,
    "react": react,
    "agents": town,
    "tree": tree,
    "skeleton": skeleton,
    "judge": judge,
    "json": json_decoding,
    "chat_short": chat_short,
    "chat_long": chat_long,
    "rag": rag,
}
EXTRA: dict[str, Make] = {"mmlu_pool": mmlu_pool}  # not one of the eleven; run when asked for


def _chats(count: int, low: int, high: int, length: int) -> list[Task]:
    sessions = [data.turns(i, 4, low, high) for i in range(count)]
    return [Task(conversation.chat, {"turns": turns, "length": length}) for turns in sessions]


def _count(base: int, scale: float) -> int:
    return max(1, round(base * scale))


def _spaced(texts: Sequence[str]) -> list[str]:
    return [" " + text for text in texts]
