"""instructor: pydantic values by tool calls and by JSON schema, partial and in lists."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

from typing import Any, Literal

import instructor
from checking import Suite, server
from openai import OpenAI
from pydantic import BaseModel, Field

suite = Suite("instructor", "openai")
ASK = [{"role": "user", "content": "Invent a person."}]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    mood: Literal["glad", "sad"]


def client(mode: Any) -> Any:
    return instructor.from_openai(OpenAI(base_url=server.v1, api_key=server.sent_key, max_retries=0), mode=mode)


def create(mode: Any, **options: Any) -> Any:
    options = {"response_model": Person, "max_tokens": 90, "temperature": 0, "max_retries": 0, **options}
    return client(mode).chat.completions.create(model=server.model, messages=ASK, **options)


@suite.check
def by_tools() -> str:
    found = create(instructor.Mode.TOOLS)
    assert isinstance(found, Person)
    return repr(found)


@suite.check
def by_json_schema() -> str:
    found = create(instructor.Mode.JSON_SCHEMA)
    assert isinstance(found, Person)
    return repr(found)


@suite.check
def with_the_completion_beside_it() -> None:
    found, completion = client(instructor.Mode.TOOLS).chat.completions.create_with_completion(
        model=server.model, messages=ASK, response_model=Person, max_tokens=90, temperature=0, max_retries=0
    )
    assert isinstance(found, Person)
    assert completion.usage.completion_tokens > 0
    assert completion.choices[0].message.tool_calls[0].function.name == "Person"


@suite.check
def partial_values_stream() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        parts = list(
            client(mode).chat.completions.create_partial(
                model=server.model, messages=ASK, response_model=Person, max_tokens=90, temperature=0, max_retries=0
            )
        )
        assert len(parts) > 1, mode
        assert parts[-1].model_dump() == create(mode).model_dump(), mode


@suite.check
def a_list_of_values() -> None:
    class Pair(BaseModel):
        people: list[Person] = Field(min_length=2, max_length=2)

    found = create(instructor.Mode.JSON_SCHEMA, response_model=Pair, max_tokens=160)
    assert len(found.people) == 2


@suite.check
def the_model_is_asked_again_after_a_validator() -> None:
    """A validator that refuses the first value makes instructor show the model its error and ask again."""
    seen: list[str] = []

    class Picky(Person):
        def model_post_init(self, context: object) -> None:
            seen.append(self.name)
            if len(seen) == 1:
                raise ValueError("invent another")

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        seen.clear()
        assert isinstance(create(mode, response_model=Picky, max_retries=2), Picky)
        assert len(seen) >= 2


suite.main()
