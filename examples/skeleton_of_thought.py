"""Skeleton of thought (Ning et al. 2023, arXiv 2307.15337): write the points first, then expand all of them at once.

The branches share everything up to the skeleton; the join puts their text behind it, in order.
"""

import palmette as pm

POINTS = 3


@pm.function
def skeleton_of_thought(s: pm.State, question: str) -> None:
    s += pm.system("You are a helpful assistant that writes short, clear text.")
    s += pm.user(f"{question}\nFirst list {POINTS} short points, then write one sentence on each.")
    with s.assistant():
        s += "Points:\n"
        for i in range(POINTS):
            s += f"{i + 1}. " + pm.gen(f"point{i}", max_tokens=16, stop=["\n", "."]) + "\n"
        s += "\n"
        branches = s.fork(POINTS)
        for i, branch in enumerate(branches):
            branch += f"On point {i + 1}, in one sentence:" + pm.gen("text", max_tokens=40, stop=["\n"]) + "\n"
        branches.join("concate_and_append")
        s += "In short:" + pm.gen("summary", max_tokens=30, stop=["\n"])


def main() -> None:
    state = skeleton_of_thought.run(question="How can I sleep better?", temperature=0)
    print(state.messages()[-1]["content"].strip())


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
