"""A retrieval pipeline of modules: search queries in several hops, then the answer, each module with its own examples.

A module is a prompt of its own, as a compiled pipeline writes it: task, form, examples, then the case. Passages are
those of the data: whatever is searched for, the retriever finds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import palmette as pm
from benchmarks.paper.data import Hops

_QUERY = """Write a short search query that finds the facts which are still missing to answer a complex question.

---

The form is:

Context: what was found so far
Question: the complex question
Reasoning: why these facts are missing, step by step
Query: a simple question

---

"""
_ANSWER = """Answer a question with a short factual phrase, using the passages of the context.

---

The form is:

Context: passages that may hold relevant facts
Question: the complex question
Reasoning: the way to the answer, step by step
Answer: one to five words

---

"""


def query_header(examples: Sequence[Hops]) -> str:
    """Task and examples of the module that searches."""
    cases = (f"{_case(e.passages[0], e.question)} {e.reasoning}\nQuery: {e.searches[-1]}\n\n---\n\n" for e in examples)
    return _QUERY + "".join(cases)


def answer_header(examples: Sequence[Hops]) -> str:
    """Task and examples of the module that answers."""
    cases = (f"{_case(e.passages[0], e.question)} {e.reasoning}\nAnswer: {e.answer}\n\n---\n\n" for e in examples)
    return _ANSWER + "".join(cases)


@pm.function
def multi_hop(
    s: pm.State, queries: str, answers: str, question: str, passages: Sequence[Sequence[str]], length: int
) -> None:
    """
    Args:
        queries, answers: the headers of the two modules.
        passages: what each search brings.
    """
    context: list[str] = []
    for i, found in enumerate(passages):
        with s.copy() as search:
            search += queries
            search += _case(context, question) + pm.gen(f"query{i}", max_tokens=length)
        assert s[f"query{i}"], "the retriever waits for its query"
        context += found
    with s.copy() as answer:
        answer += answers
        answer += _case(context, question) + pm.gen("answer", max_tokens=length)


def _case(context: Sequence[str], question: str) -> str:
    lines = "\n".join(f"[{i}] {passage}" for i, passage in enumerate(context, 1)) or "nothing yet"
    return f"Context:\n{lines}\n\nQuestion: {question}\n\nReasoning: Let us think step by step in order to"
