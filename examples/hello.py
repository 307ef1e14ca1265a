"""The smallest program: one constant, one hole."""

import palmette as pm


@pm.function
def qa(s: pm.State, question: str) -> None:
    s += "Q: What is the capital of Italy?\nA: Rome\n"
    s += "Q: " + question + "\nA:" + pm.gen("answer", max_tokens=8, stop="\n")


def main() -> None:
    state = qa.run(question="What is the capital of France?", temperature=0)
    print("answer:", state["answer"].strip())


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
