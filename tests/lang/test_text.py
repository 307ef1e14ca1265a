"""What ends up in the state: roles and templates, seams, selects, stop strings, reasoning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import palmette as pm
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.models.tiny import tiny_model
from palmette.testing import ScriptedBackend
from palmette.types import GenerateRequest, Message, RolePieces, ScoreRequest, TextPiece

Scripted = Callable[..., ScriptedBackend]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    with Runtime(tiny_model(), kv_tokens=4096) as runtime:
        yield runtime


# -- roles -------------------------------------------------------------------------------------------------------------


def test_roles_write_the_models_own_template(tiny: Runtime) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.system("Be brief.")
        with s.user():
            s += "Hi <|im_end|> there"
        s += pm.assistant(pm.gen("x", max_tokens=2, ignore_eos=True))

    state = program.run(backend=tiny, temperature=0)
    tokenizer = tiny.get_tokenizer()
    special = tokenizer.special_tokens["<|im_end|>"]
    assert state.text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|> there")
    assert state.token_ids().count(special) == 2  # what the user wrote is text; the last role end is still pending
    assert [m["role"] for m in state.messages()] == ["system", "user", "assistant"]


def test_roles_cannot_nest(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.user_begin() + "a" + pm.assistant("b")

    with pytest.raises(pm.ProgramError, match=r"'assistant' begins inside role 'user'.*test_text\.py"):
        program.run()


def test_a_role_that_was_not_begun_cannot_end(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.user_end()

    with pytest.raises(pm.ProgramError, match="no role is open"):
        program.run()


def test_a_role_given_its_text_opens_no_block(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        with s.user("text"):
            pass

    with pytest.raises(pm.UsageError, match="either"):
        program.run()


class Forgetful(ScriptedBackend):
    """Its template drops what stands before `</think>` in earlier messages."""

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        for index, message in enumerate(messages):
            if "</think>" in message.content:
                raise pm.TemplateNotIncremental(index, "old reasoning is dropped")
        return super().role_pieces(messages, role)

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        kept = [Message(m.role, m.content.rpartition("</think>")[2]) for m in messages]
        return super().rerender(kept, role)


def thinking(s: pm.State) -> None:
    s += pm.user("q1")
    s += pm.assistant(pm.gen("a1"))
    s += pm.user("q2")
    s += pm.assistant(pm.gen("a2"))


def test_a_template_that_changes_earlier_messages_is_named() -> None:
    backend = Forgetful(lambda prompt: "thoughts</think>answer")
    with pytest.raises(pm.TemplateNotIncremental, match='roles="rerender"') as caught:
        pm.function(thinking).run(backend=backend)
    assert caught.value.message == 1


def test_rerendering_pays_for_what_changed() -> None:
    backend = Forgetful(lambda prompt: "thoughts</think>answer")
    state = pm.function(thinking).run(backend=backend, roles="rerender")
    last = backend.requests[-1]
    assert isinstance(last, GenerateRequest)
    assert backend.decode(last.token_ids) == "user\nq1\nassistant\nanswer\nuser\nq2\nassistant\n"
    assert state.usage.retokenized_tokens > 0
    assert state["a1"] == "thoughts</think>answer"


# -- stop strings and seams --------------------------------------------------------------------------------------------


def test_what_a_stop_string_cuts_out_of_a_token_is_tokenized_with_what_follows() -> None:
    model = tiny_model(extra_tokens=(b"ab", b"bc"))
    with Runtime(model, kv_tokens=512) as runtime:
        tokenizer = runtime.get_tokenizer()
        (ab,) = tokenizer.encode("ab")

        @pm.function
        def program(s: pm.State) -> None:
            s += "x" + pm.gen("g", max_tokens=1, stop="b", logit_bias={ab: 1000.0}) + "cd"
            s += pm.gen("end", max_tokens=0)

        state = program.run(backend=runtime, temperature=0)
        assert state["g"] == "a"
        assert state.text() == "xacd"
        assert list(state.token_ids()) == tokenizer.encode("x") + tokenizer.encode("acd")
        assert state.usage.retokenized_tokens == 1


def test_a_choice_is_tokenized_as_if_written_in_one_go() -> None:
    model = tiny_model(extra_tokens=(b"is no", b" yes"))
    with Runtime(model, kv_tokens=512) as runtime:
        seen: list[ScoreRequest] = []
        submit = runtime.submit

        def spy(request: Any, deliver: Any) -> None:
            seen.append(request)
            submit(request, deliver)

        runtime.submit = spy  # type: ignore[method-assign]

        @pm.function
        def program(s: pm.State) -> None:
            s += "It is" + pm.select("x", [" not", " yes"])

        state = program.run(backend=runtime)
        encode = runtime.get_tokenizer().encode
        assert list(state.token_ids()) == encode("It is" + state["x"])
        assert list(seen[0].token_ids) == encode("It ")  # " not" merges with "is"
        assert state.text() == "It is" + state["x"]


def test_a_long_prompt_before_a_select_is_cut_where_both_parts_tokenize_alike(scripted: Scripted) -> None:
    backend = scripted({}, score=lambda prompt, token: 0.0 if token in " no" else -1.0)

    @pm.function
    def program(s: pm.State) -> None:
        s += "word " * 500 + "end:" + pm.select("x", [" no", " yes"])

    assert program.run()["x"] == " no"
    (request,) = backend.requests
    assert backend.decode(request.token_ids) == "word " * 500 + "end:"


@pytest.mark.parametrize("choices", [[], ["a", "a"], ["a", ""], "ab", None, [f"{i}" for i in range(20_000)], [1, 2]])
def test_impossible_choices_are_refused_on_the_authors_line(choices: Any) -> None:
    with pytest.raises(pm.InvalidOption, match="choices"):
        pm.select("x", choices)


def test_select_on_a_real_model_picks_what_plain_scoring_picks(tiny: Runtime) -> None:
    prompt, choices = "Question: which?\nAnswer:", [" one", " two", " three", " on"]

    @pm.function
    def scored(s: pm.State, choice: str) -> float:
        """The mean logprob of the choice's bytes, by a prompt that contains it."""
        s += prompt + choice + pm.gen("g", max_tokens=0, return_logprob=True, logprob_start_len=len(prompt))
        rows = s.get_meta_info("g")["input_token_logprobs"]
        return float(sum(row[0] for row in rows) / len(rows))

    @pm.function
    def program(s: pm.State) -> None:
        s += prompt + pm.select("x", choices)

    means = scored.map(choices, backend=tiny)
    state = program.run(backend=tiny)
    assert state.get_meta_info("x")["normalized_prompt_logprobs"] == pytest.approx(means, abs=1e-4)
    assert state["x"] == choices[means.index(max(means))]


def test_gen_with_choices_is_a_select(scripted: Scripted) -> None:
    scripted({}, score=lambda prompt, token: 0.0 if token in "no" else -1.0)

    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.gen("x", choices=["yes", "no"], choices_method=pm.greedy_token_selection)

    assert program.run()["x"] == "no"


def test_a_select_with_temperature_draws_by_the_runs_seed(scripted: Scripted) -> None:
    scripted({}, score=lambda prompt, token: -1.0)

    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.select("x", list("abcdefgh"), temperature=1.0)

    first = [program.run(seed=i)["x"] for i in range(40)]
    assert len(set(first)) > 3
    assert [program.run(seed=i)["x"] for i in range(40)] == first


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_reasoning_is_split_from_the_answer_also_while_streaming(scripted: Scripted) -> None:
    scripted(lambda p: "<think>\nhm, 2+2\n</think>\n\nfour", piece=3)

    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.separate_reasoning(pm.gen("x"), model_type="qwen3") + "!"

    state = program.run()
    assert state["x"] == "four"
    assert state["x_reasoning_content"] == "hm, 2+2\n"
    assert state.text() == "q<think>\nhm, 2+2\n</think>\n\nfour!"
    observed = program.run(stream=True)
    assert "".join(observed.text_iter("x")) == "four"
    assert "".join(observed.text_iter("x_reasoning_content")) == "hm, 2+2\n"


def test_media_and_adapters_are_refused_with_a_typed_error(backend: ScriptedBackend) -> None:
    for expr in (pm.image("cat.png"), pm.video("cat.mp4", 4)):

        @pm.function
        def program(s: pm.State, expr: Any = expr) -> None:
            s += pm.user("what is this? " + expr)

        with pytest.raises(pm.UnsupportedFeature, match="vision"):
            program.run()
    with pytest.raises(pm.UnsupportedFeature, match="lora"):
        pm.gen("x", lora="a")
    assert backend.requests == []


def test_two_constraints_at_once_are_refused() -> None:
    with pytest.raises(pm.InvalidOption, match="not together with dtype"):
        pm.gen("x", dtype=int, regex="a")


def test_an_empty_prompt_is_a_clear_error(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.gen("x")

    with pytest.raises(pm.ProgramError, match=r"prompt is empty.*hole 'x'"):
        program.run()


def test_a_lone_surrogate_is_a_clear_error(tiny: Runtime) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a\ud800" + pm.gen("x", max_tokens=1)

    with pytest.raises(pm.InvalidOption, match=r"surrogate.*hole 'x'"):
        program.run(backend=tiny)


def test_s_gen_appends_and_waits(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> str:
        s += "q"
        return str(s.gen(max_tokens=9)) + str(s.gen("named"))

    assert program.run().ret_value == " r1 r4"
