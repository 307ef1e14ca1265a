"""Tool calls: in one grammar the model either calls a Python function, with arguments of its types, or answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

import palmette as pm

City = Literal["Paris", "Rome", "Oslo"]
POPULATIONS: dict[City, int] = {"Paris": 2_100_000, "Rome": 2_800_000, "Oslo": 700_000}
MAX_CALLS = 1


@pm.tool
def population(city: City) -> int:
    """How many people live in a city."""
    return POPULATIONS[city]


@pm.tool
def add(a: Annotated[int, Field(ge=0, le=10**9)], b: Annotated[int, Field(ge=0, le=10**9)]) -> int:
    """The sum of two numbers."""
    return a + b


class Answer(BaseModel):
    answer: Annotated[str, Field(max_length=80)]


QUESTIONS = ["How many people live in Rome?", "What is 1200 plus 34?"]


@pm.function
def agent(s: pm.State, question: str) -> list[str]:
    """What the model did, step by step."""
    s += pm.system("Call one of these tools, as JSON with name and arguments, then answer:\n" + population + "\n" + add)
    s += pm.user(question)
    steps: list[str] = []
    for _ in range(MAX_CALLS):
        with s.assistant():
            step = s.gen(pm.ToolCall[population, add] | Answer, max_tokens=160)
        if isinstance(step, Answer):
            return [*steps, f"answer: {step.answer}"]
        result = step.call()
        steps.append(f"{step.name}({', '.join(f'{k}={v!r}' for k, v in step.arguments.items())}) = {result}")
        s += pm.tool_result(result)
    with s.assistant():
        answer = s.gen(Answer, max_tokens=160)
    return [*steps, f"answer: {answer.answer}"]


def main() -> None:
    for question in QUESTIONS:
        print(question)
        for step in agent(question, temperature=0, on_budget="close"):
            print(f"  {step}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
