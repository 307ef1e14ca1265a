"""A judge by branch-solve-merge (Saha et al. 2023, arXiv 2310.15123): one branch a criterion, then a verdict over all.

The essay is computed once for all branches.
"""

import palmette as pm

CRITERIA = ["clarity", "accuracy", "depth"]

ESSAY = """The water cycle describes how water moves through the world. The sun heats the oceans, and water rises into
the air as vapour. High up it cools and forms clouds of tiny drops. When the drops grow heavy they fall as rain or
snow. Some of that water runs into rivers and back to the sea, some sinks into the ground and feeds springs and wells,
and some is taken up by plants, which give it back to the air through their leaves. No drop is ever lost; it only
changes its place and its form, and so the same water that fell on the first forests still falls on our roofs."""


@pm.function
def judge(s: pm.State, essay: str) -> None:
    s += pm.system("You are a careful teacher who judges short essays.")
    s += pm.user("Here is an essay.\n\n" + essay + "\n\nI will ask you about one criterion at a time.")
    s += pm.assistant("I have read the essay.")
    with s.fork(len(CRITERIA)) as branches:
        for criterion, branch in zip(CRITERIA, branches, strict=True):
            branch += pm.user(f"Judge the {criterion} of the essay in one sentence, then grade it.")
            with branch.assistant():
                branch += f"The {criterion} of the essay" + pm.gen("remark", max_tokens=40, stop=["\n", "."])
                branch += f".\nGrade for {criterion}:" + pm.select("grade", [" poor", " fair", " good", " excellent"])
    remarks, grades = s["remark"], s["grade"]
    lines = [f"- {c}:{g}, since it{r}." for c, g, r in zip(CRITERIA, grades, remarks, strict=True)]
    s += pm.user("The remarks were:\n" + "\n".join(lines) + "\nGive a final verdict in one sentence.")
    with s.assistant():
        s += "Overall, the essay" + pm.gen("verdict", max_tokens=40, stop=["\n", "."]) + "."


def main() -> None:
    state = judge.run(essay=ESSAY, temperature=0)
    for criterion, grade, remark in zip(CRITERIA, state["grade"], state["remark"], strict=True):
        print(f"{criterion}:{grade} -- it{remark}.")
    print(f"verdict: overall, the essay{state['verdict']}.")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
