"""Thinking first: the model reasons freely within a budget of tokens, and only its answer is held to a type."""

from typing import Literal

import palmette as pm

QUESTIONS = {
    "Is a tomato a fruit or a vegetable, to a botanist?": Literal["fruit", "vegetable"],
    "Which of these is the largest: a mouse, a cat or a whale?": Literal["mouse", "cat", "whale"],
}


@pm.function
def answer(s: pm.State, question: str, type_: object) -> None:
    s += pm.user(question)
    s += pm.assistant(pm.separate_reasoning(pm.gen("answer", type=type_, max_tokens=80, thinking_budget=40), "qwen3"))


def main() -> None:
    for question, type_ in QUESTIONS.items():
        state = answer.run(question, type_, temperature=0, on_budget="close")
        print(question)
        print(f"  thought: {' '.join(state['answer_reasoning_content'].split())}")
        print(f"  answer: {state['answer']!r}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
