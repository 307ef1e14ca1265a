"""A conversation in turns: each turn goes on from the tokens of the one before, nothing is computed twice."""

import palmette as pm

TURNS = [
    "My name is Ada and I like astronomy. Recommend me one thing to look at tonight.",
    "Why is it bright?",
    "Say goodbye to me by my name.",
]


@pm.function
def chat(s: pm.State, turns: list[str]) -> None:
    s += pm.system("You are a friendly assistant. Answer in one sentence.")
    for number, turn in enumerate(turns):
        s += pm.user(turn)
        s += pm.assistant(pm.gen(f"reply{number}", max_tokens=40))


def main() -> None:
    state = chat.run(turns=TURNS, temperature=0)
    for message in state.messages():
        print(f"{message['role']:>9}: {message['content'].strip()}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
