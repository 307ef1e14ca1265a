"""Tools in free text: the model writes text or calls, in the format of its own family, and its text streams."""

from typing import Literal

import palmette as pm

City = Literal["Paris", "Rome", "Oslo"]


@pm.tool
def temperature(city: City) -> str:
    """The temperature in a city."""
    return {"Paris": "18 degrees", "Rome": "24 degrees", "Oslo": "9 degrees"}[city]


@pm.function
def ask(s: pm.State, question: str, choice: str) -> None:
    s += pm.system("You may call this tool, as JSON with name and arguments:\n" + temperature)
    s += pm.user(question)
    s += pm.assistant(pm.gen("reply", tools=[temperature], tool_choice=choice, max_tokens=80))
    for call in s["reply"].calls:
        s += pm.tool_result(call.call())


def main() -> None:
    for choice in ("auto", "required"):
        state = ask.run("How warm is it in Rome?", choice, temperature=0, on_budget="close")
        print(f"{choice}: {state['reply'].text.strip()!r}")
        for call in state["reply"].calls:
            print(f"  {call.name}({call.arguments}) = {call.call()}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
