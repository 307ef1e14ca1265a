"""SGLang's own frontend package: programs written for it, run on this server through its RuntimeEndpoint."""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,misc"

from __future__ import annotations

import asyncio
import json
import re
import warnings
from typing import Any

import sglang as sgl
from checking import Suite, server
from sglang.lang.choices import greedy_token_selection, token_length_normalized, unconditional_likelihood_normalized

warnings.simplefilter("error")  # the frontend reports a failed stream as a warning
suite = Suite("sglang")
# The name "smollm2" tells SGLang's frontend no chat template; the model's is ChatML.
endpoint: Any = sgl.RuntimeEndpoint(server.url, api_key=server.key or None, chat_template_name="chatml")
sgl.set_default_backend(endpoint)
METHODS = (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)


def run(program: Any, **options: Any) -> Any:
    """A finished state. SGLang keeps an error of a stream in the state; here it is raised."""
    state = program.run(**{"temperature": 0, **options})
    state.sync()
    if state.error() is not None:
        raise state.error()
    return state


@suite.check
def the_endpoint_introduces_itself() -> str:
    info = endpoint.model_info
    assert info["model_path"] == endpoint.get_model_name() == server.model
    assert info["is_generation"] is True
    assert isinstance(sgl.get_server_info(), dict)
    return str(info["model_path"])


@suite.check
def gen_writes() -> str:
    @sgl.function
    def sky(s: Any) -> None:
        s += "The sky is" + sgl.gen("rest", max_tokens=12)
        s += "\nThe sea is" + sgl.gen("sea", max_tokens=8, stop=["\n", "."])

    state = run(sky)
    assert state["rest"]
    assert state.text() == f"The sky is{state['rest']}\nThe sea is{state['sea']}"
    assert "\n" not in state["sea"]
    assert run(sky)["rest"] == state["rest"]
    info = state.get_meta_info("rest")
    assert info["completion_tokens"] <= 12
    assert info["prompt_tokens"] == len(server.tokens("The sky is"))
    assert info["finish_reason"]["type"] in ("stop", "length")
    return repr(state["rest"])


@suite.check
def options_of_gen_are_obeyed() -> None:
    @sgl.function
    def options(s: Any) -> None:
        s += "One, two," + sgl.gen("long", max_tokens=9, min_tokens=9, ignore_eos=True)
        s += "\n" + sgl.gen("short", max_tokens=30, stop_token_ids=server.tokens(",")[:1], stop_regex="[0-9]")
        s += "\n" + sgl.gen(
            "drawn", max_tokens=5, temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, frequency_penalty=0.2,
            presence_penalty=0.1,
        )  # fmt: skip

    state = run(options)
    assert state.get_meta_info("long")["completion_tokens"] == 9
    assert state.get_meta_info("long")["finish_reason"]["type"] == "length"
    assert "," not in state["short"]
    assert not re.search("[0-9]", state["short"])


@suite.check
def select_by_all_three_rules() -> str:
    @sgl.function
    def tool(s: Any, method: Any, question: str) -> None:
        s += question
        s += sgl.select("tool", [" calculator", " search engine", " calculator app"], choices_method=method)
        s += "."

    found = []
    for method in METHODS:
        state = run(tool, method=method, question="To compute 3 x 4 I use a")
        assert state["tool"] in (" calculator", " search engine", " calculator app")
        assert state.text() == f"To compute 3 x 4 I use a{state['tool']}."
        info = state.get_meta_info("tool")
        assert len(info["normalized_prompt_logprobs"]) == 3
        assert all(value < 0 for value in info["normalized_prompt_logprobs"])
        if method is unconditional_likelihood_normalized:
            assert len(info["unconditional_token_logprobs"]) == 3
            rows = zip(info["input_token_logprobs"], info["unconditional_token_logprobs"], strict=True)
            for conditional, unconditional in rows:
                assert [r[1] for r in conditional] == [r[1] for r in unconditional]
                assert unconditional[0][0] is None
                assert all(r[0] is not None for r in unconditional[1:])
        if method is greedy_token_selection:
            assert len(info["greedy_logprob_matrix"]) == 3
        found.append(state["tool"])
    return str(found)


@suite.check
def select_scores_what_the_model_says() -> None:
    """The rows behind select are those of a plain logprob request, and the best by hand is the choice."""
    question, choices = "The capital of France is", [" Paris", " Rome", " a"]

    @sgl.function
    def capital(s: Any) -> None:
        s += question + sgl.select("city", choices)

    state = run(capital)
    info = state.get_meta_info("city")
    for choice, rows in zip(choices, info["input_token_logprobs"], strict=True):
        answer = server.ask(
            "/generate",
            {
                "text": question + choice,
                "sampling_params": {"max_new_tokens": 0},
                "return_logprob": True,
                "logprob_start_len": 0,
            },
        )
        every = answer["meta_info"]["input_token_logprobs"]
        assert every[0][0] is None
        assert [r[1] for r in every] == server.tokens(question + choice)
        assert [r[1] for r in rows] == [r[1] for r in every][-len(rows) :]
        for mine, theirs in zip(rows, every[-len(rows) :], strict=True):
            assert abs(mine[0] - theirs[0]) < 1e-3
    best = max(range(3), key=lambda i: info["normalized_prompt_logprobs"][i])
    assert state["city"] == choices[best]


@suite.check
def gen_with_choices() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Yes or no?" + sgl.gen("answer", choices=[" yes", " no"])

    assert run(program)["answer"] in (" yes", " no")


@suite.check
def regex_holds() -> str:
    @sgl.function
    def address(s: Any) -> None:
        s += "The IP address is " + sgl.gen(
            "ip", max_tokens=24, regex=r"((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|1?\d?\d)"
        )

    for seed_text in range(2):
        state = run(address, temperature=seed_text)
        parts = state["ip"].split(".")
        assert len(parts) == 4
        assert all(p.isdigit() and int(p) <= 255 for p in parts)
    return str(state["ip"])


@suite.check
def types_hold() -> None:
    @sgl.function
    def typed(s: Any) -> None:
        s += "Two plus two is " + sgl.gen_int("number", max_tokens=6)
        s += " and " + sgl.gen("float", dtype=float, max_tokens=8)
        s += " so it is " + sgl.gen("bool", dtype=bool, max_tokens=8)
        s += ", he said " + sgl.gen_string("said", max_tokens=12)

    state = run(typed)
    int(state["number"])
    float(state["float"])
    assert state["bool"] in ("True", "False")
    assert re.fullmatch(r'"[\w\s]*"', state["said"])


@suite.check
def json_schema_holds() -> str:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    @sgl.function
    def person(s: Any) -> None:
        s += "A person: " + sgl.gen("person", max_tokens=60, json_schema=json.dumps(schema))

    for temperature in (0, 1):
        found = json.loads(run(person, temperature=temperature)["person"])
        assert set(found) == {"name", "age"}
        assert 0 <= found["age"] <= 150
    return str(found)


@suite.check
def forks_join_by_gathering_variables() -> str:
    @sgl.function
    def tips(s: Any) -> None:
        s += "Two tips for staying healthy: 1. Eat well. 2. Sleep well.\n"
        branches = s.fork(2)
        for i, branch in enumerate(branches):
            branch += f"Tip {i + 1} in other words:" + sgl.gen("tip", max_tokens=10, stop="\n")
        branches.join()  # the default: each variable becomes the list of the branches' values
        s += "1." + branches[0]["tip"] + "\n2." + branches[1]["tip"] + "\nIn short:" + sgl.gen("short", max_tokens=6)

    state = run(tips)
    assert len(state["tip"]) == 2
    assert state.text().endswith(f"1.{state['tip'][0]}\n2.{state['tip'][1]}\nIn short:{state['short']}")
    return repr(state["tip"])


@suite.check
def forks_join_by_concatenating() -> None:
    @sgl.function
    def lines(s: Any) -> None:
        s += "A poem.\n"
        branches = s.fork(3)
        for i, branch in enumerate(branches):
            branch += f"Line {i}:" + sgl.gen(f"line{i}", max_tokens=6, stop="\n") + "\n"
        branches.join("concate_and_append")
        s += "The end:" + sgl.gen("end", max_tokens=4)

    for parallel in (False, True):  # True: by /concate_and_append_request
        sgl.global_config.enable_parallel_encoding = parallel
        state = run(lines)
        text = state.text()
        assert text.startswith("A poem.\nLine 0:")
        assert text.index("Line 0:") < text.index("Line 1:") < text.index("Line 2:") < text.index("The end:")
        assert text.endswith("The end:" + state["end"])
    sgl.global_config.enable_parallel_encoding = True


@suite.check
def programs_stream() -> None:
    @sgl.function
    def story(s: Any) -> None:
        s += "Once upon a time" + sgl.gen("start", max_tokens=16)
        s += "\nAfter that" + sgl.gen("rest", max_tokens=8)

    whole = run(story)
    state = story.run(temperature=0, stream=True)
    parts = list(state.text_iter())
    assert state.error() is None
    assert "".join(parts) == whole.text()
    assert len(parts) > 4
    state = story.run(temperature=0, stream=True)
    assert "".join(state.text_iter("start")) == whole["start"]
    assert "".join(state.text_iter("rest")) == whole["rest"]

    async def collect() -> str:
        one = story.run(temperature=0, stream=True)
        return "".join([part async for part in one.text_async_iter("start")])

    assert asyncio.run(collect()) == whole["start"]


@suite.check
def a_stream_carries_its_logprobs() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Red, green," + sgl.gen("more", max_tokens=6, return_logprob=True, ignore_eos=True)

    rows = run(program).get_meta_info("more")["output_token_logprobs"]
    assert len(rows) == 6
    streamed: list[Any] = []

    class Watching(sgl.RuntimeEndpoint):
        """Keeps what each chunk carried: the frontend itself hands out only the last."""

        def generate_stream(self, s: Any, sampling_params: Any) -> Any:
            for text, info in super().generate_stream(s, sampling_params):
                streamed.append(info["output_token_logprobs"])
                yield text, info

    watching: Any = Watching(server.url, api_key=server.key or None, chat_template_name="chatml")
    state = program.run(temperature=0, stream=True, backend=watching)
    "".join(state.text_iter())
    assert state.error() is None
    assert len(streamed) > 1
    assert [row[:2] for chunk in streamed for row in chunk] == [row[:2] for row in rows]


@suite.check
def roles_are_written_in_the_chat_template() -> str:
    @sgl.function
    def chat(s: Any) -> None:
        s += sgl.system("You are brief.")
        s += sgl.user("Name a colour.")
        s += sgl.assistant(sgl.gen("first", max_tokens=24))
        with s.user():
            s += "Another one."
        s += sgl.assistant_begin() + sgl.gen("second", max_tokens=12) + sgl.assistant_end()

    state = run(chat)
    assert state.text() == (
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n"
        f"<|im_start|>assistant\n{state['first']}<|im_end|>\n<|im_start|>user\nAnother one.<|im_end|>\n"
        f"<|im_start|>assistant\n{state['second']}<|im_end|>\n"
    )
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    # The role marks were control tokens: the first answer is that of the chat endpoint.
    answer = server.ask(
        "/v1/chat/completions",
        {
            "model": server.model,
            "temperature": 0,
            "max_tokens": 24,
            "messages": [
                {"role": "system", "content": "You are brief."},
                {"role": "user", "content": "Name a colour."},
            ],
        },
    )
    assert state["first"] == answer["choices"][0]["message"]["content"], (state["first"], answer["choices"])
    return repr(state["first"])


@suite.check
def logprobs_are_returned() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "The sky is blue and" + sgl.gen(
            "more", max_tokens=5, return_logprob=True, logprob_start_len=0, top_logprobs_num=3,
            return_text_in_logprobs=True, ignore_eos=True,
        )  # fmt: skip

    state = run(program)
    info = state.get_meta_info("more")
    prompt, written = info["input_token_logprobs"], info["output_token_logprobs"]
    assert len(written) == 5
    assert prompt[0][0] is None
    assert all(row[0] <= 0 for row in [*prompt[1:], *written])
    assert "".join(row[2] for row in prompt) == "The sky is blue and"
    assert "".join(row[2] for row in written) == state["more"]
    assert all(len(tops) == 3 for tops in info["output_top_logprobs"])
    for row, tops in zip(written, info["output_top_logprobs"], strict=True):
        assert tops[0][1] == row[1]  # greedy


@suite.check
def batches_run() -> None:
    @sgl.function
    def capital(s: Any, country: str) -> None:
        s += f"The capital of {country} is" + sgl.gen("capital", max_tokens=4)

    countries = ["France", "Italy", "Spain", "Japan"]
    alone = [run(capital, country=c)["capital"] for c in countries]
    arguments = [{"country": c} for c in countries]
    states = capital.run_batch(arguments, temperature=0, num_threads=4, progress_bar=False)
    assert [s["capital"] for s in states] == alone
    lazily = capital.run_batch(arguments, temperature=0, num_threads=2, generator_style=True)
    assert [s["capital"] for s in lazily] == alone


@suite.check
def fifty_programs_at_once() -> None:
    @sgl.function
    def count(s: Any, start: int) -> None:
        s += f"{start}, {start + 1}," + sgl.gen("more", max_tokens=4)

    states = count.run_batch([{"start": i} for i in range(50)], temperature=0, num_threads=50, progress_bar=False)
    assert all(s.error() is None and s["more"] for s in states)


@suite.check
def prefixes_are_cached_and_flushed() -> str:
    prompt = "A long and always equal beginning of many programs, told once more: "
    admin: Any = sgl.RuntimeEndpoint(server.url, api_key=server.admin_key or server.key or None)
    assert sgl.flush_cache(admin) is None  # it raises where it is refused
    endpoint.cache_prefix(prompt)

    @sgl.function
    def program(s: Any) -> None:
        s += prompt + sgl.gen("rest", max_tokens=4)

    cached = run(program).get_meta_info("rest")["cached_tokens"]
    assert cached >= len(server.tokens(prompt)) - 2
    sgl.flush_cache(admin)
    assert run(program).get_meta_info("rest")["cached_tokens"] <= 1
    return f"{cached} tokens"


@suite.check
def a_refused_request_is_an_error_of_the_program() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "x" + sgl.gen("rest", max_tokens=4, top_p=7)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = program.run(temperature=0)
        state.sync()
    assert isinstance(state.error(), RuntimeError)
    assert "top_p" in str(state.error())


suite.main()
