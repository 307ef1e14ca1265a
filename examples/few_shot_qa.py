"""Few-shot question answering over a batch: every question shares the header, which is computed once."""

import palmette as pm

HEADER = """Answer each question with one short phrase.

Q: Which planet is known as the red planet?
A: Mars

Q: What gas do plants take in from the air?
A: Carbon dioxide

Q: Who wrote the play Romeo and Juliet?
A: William Shakespeare

Q: What is the largest ocean on Earth?
A: The Pacific Ocean

Q: How many sides does a hexagon have?
A: Six

"""

QUESTIONS = [
    "What is the capital of France?",
    "What is the chemical formula of water?",
    "Which animal is called the king of the jungle?",
    "How many days are there in a week?",
    "What is the freezing point of water in Celsius?",
    "In which country are the pyramids of Giza?",
    "What do bees make?",
    "Which star is closest to the Earth?",
]


@pm.function
def few_shot_qa(s: pm.State, question: str) -> None:
    s += HEADER
    s += "Q: " + question + "\nA:" + pm.gen("answer", max_tokens=12, stop="\n")


def main() -> None:
    states = few_shot_qa.run_batch([{"question": q} for q in QUESTIONS], temperature=0)
    for question, state in zip(QUESTIONS, states, strict=True):
        print(f"{question}  ->  {state['answer'].strip()}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
