"""Constraints in the engine, on the tiny model: what comes out conforms, jumps change nothing but the number of steps,
and whatever goes wrong ends one request."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from palmette.errors import InvalidOption, PalmetteError, RequestError, UnsupportedConstraint
from palmette.fsm.limits import Limits
from palmette.fsm.matcher import Matcher
from palmette.runtime.engine import EngineCore
from palmette.runtime.models.tiny import tiny_model
from palmette.specs import Choices, Grammar, JsonSchema, Reasoned, Regex, SchemaOptions, Spec, Tag, Tagged
from palmette.types import FinishReason, GenerateRequest, LogprobParams, TokenEvent
from tests.runtime.driving import Run, drive, engine, generate, model

PROMPT = "A record of the town: "
TOWN = JsonSchema.of(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "founded": {"type": "string", "format": "date"},
            "kind": {"enum": ["town", "village", "city"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "founded", "kind", "tags"],
        "additionalProperties": False,
    }
)
TREE = Grammar('root ::= "(" [a-c]+ root? ")"')
SPECS: dict[str, Spec] = {
    "town": TOWN,
    "compact": JsonSchema(TOWN.text, SchemaOptions(compact=True)),
    "phone": Regex(r"\+49-[0-9]{3}-[0-9]{2,5} \(home\)"),
    "choices": Choices(("rhubarb", "rhubarb pie", "radish")),
    "fixed": Regex("nothing to choose"),
    "tree": TREE,
    "words": Regex(r"[a-z]{1,6}( [a-z]{1,6}){0,3}\."),
}


def requests(max_new: int = 90, **options: Any) -> list[GenerateRequest]:
    """Each specification greedy and drawn."""
    made = [generate(name, PROMPT, max_new, constraint=spec, **options) for name, spec in SPECS.items()]
    return made + [
        generate(f"{name}, drawn", PROMPT, max_new, constraint=spec, temperature=1.0, seed=i, **options)
        for i, (name, spec) in enumerate(SPECS.items())
    ]


def conforms(spec: Spec, text: str) -> bool:
    """Judged by other means than the engine's own, where there are any."""
    if isinstance(spec, Regex):
        return re.fullmatch(spec.pattern, text) is not None
    if isinstance(spec, Choices):
        return text in spec.texts
    if isinstance(spec, JsonSchema):
        import jsonschema

        value = json.loads(text)
        jsonschema.validate(value, json.loads(spec.text), format_checker=jsonschema.FormatChecker())
        return True
    depth = text.count("(")
    return re.fullmatch(r"(\([abc]+)+\)+", text) is not None and text.count(")") == depth


def assert_same(a: Run, b: Run) -> None:
    assert a.all_sampled() == b.all_sampled()
    for name in a.events:
        assert a.text(name) == b.text(name)
        assert a.finish(name).reason == b.finish(name).reason
        assert a.finish(name).token_ids == b.finish(name).token_ids
        assert a.finish(name).steered == b.finish(name).steered


def test_every_text_conforms_and_jumps_change_nothing() -> None:
    on, off = drive(engine(), requests()), drive(engine(jump_forward=False), requests())
    assert_same(on, off)
    for request in requests():
        assert request.constraint is not None
        finish = on.finish(request.request_id)
        assert finish.reason is FinishReason.STOP
        assert finish.error is None
        assert conforms(request.constraint, on.text(request.request_id))
        assert finish.usage.completion_tokens == off.finish(request.request_id).usage.completion_tokens
        assert off.finish(request.request_id).usage.forced_tokens == 0
    assert on.finish("fixed").usage.sampled_tokens == 0
    assert on.finish("town").usage.forced_tokens > 20


def test_forced_tokens_take_one_step() -> None:
    core = engine()
    run = drive(core, [generate("phone", PROMPT, 60, constraint=Regex("[ab] and that is a lot of text[cd]!"))])
    assert run.steps == 2  # one draw, then everything that is forced up to the other
    assert core.stats().forced_tokens == len(" and that is a lot of text!")
    assert core.stats().sampled_tokens == 2
    assert core.stats().recomputed_tokens == 0


def test_what_is_forced_from_start_to_end_needs_no_step_of_the_model() -> None:
    core = engine()
    run = drive(core, [generate("fixed", PROMPT, 60, constraint=Regex("nothing to choose"))])
    assert core.stats().computed_prompt_tokens == 0
    assert run.text("fixed") == "nothing to choose"


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 16},
        {"chunk_size": 7, "page_size": 4},
        {"enabled": False},
        {"max_running": 1},
        {"page_size": 16},
    ],
)
def test_neither_chunks_nor_cache_nor_batch_change_a_constrained_text(options: dict[str, Any]) -> None:
    assert_same(drive(engine(**options), requests()), drive(engine(), requests()))


@pytest.mark.parametrize("every", [1, 3])
def test_retraction_changes_no_constrained_text(every: int) -> None:
    def retract(core: EngineCore, step: int) -> None:
        if step % every == 0 and core.scheduler.num_running:
            job = max((j for j in core.scheduler.jobs() if j.node is not None), key=lambda j: j.progress, default=None)
            if job is not None:
                core.scheduler.retract(job.request_id)

    assert_same(drive(engine(), requests(), after_step=retract), drive(engine(), requests()))


@pytest.mark.parametrize("start_len", [None, 0, 5])
def test_logprobs_are_the_models_own_and_tell_what_was_forced(start_len: int | None) -> None:
    asked = LogprobParams(start_len=start_len, top=2)
    on, off = drive(engine(), requests(logprobs=asked)), drive(engine(jump_forward=False), requests(logprobs=asked))
    assert_same(on, off)
    assert_same(on, drive(engine(), requests()))
    for name in on.events:
        mine, plain = on.logprobs(name), off.logprobs(name)
        assert [p.token_id for p in mine] == list(on.sampled(name))
        assert [(p.token_id, p.forced) for p in mine] == [(p.token_id, p.forced) for p in plain]
        for a, b in zip(mine, plain, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        prompts = [p.logprob for p in on.finish(name).prompt_logprobs]
        expected = [p.logprob for p in off.finish(name).prompt_logprobs]
        assert [p is None for p in prompts] == [p is None for p in expected]
        assert [p or 0.0 for p in prompts] == pytest.approx([p or 0.0 for p in expected], abs=1e-4)
    assert any(p.forced for p in on.logprobs("town"))
    assert not any(p.forced for p in on.logprobs("words")[:1])


@pytest.mark.parametrize("max_new", [1, 7, 30, 55])
def test_a_text_under_a_budget_conforms_or_is_refused_at_the_start(max_new: int) -> None:
    on, off = drive(engine(), requests(max_new)), drive(engine(jump_forward=False), requests(max_new))
    assert_same(on, off)
    for request in requests(max_new):
        assert request.constraint is not None
        finish, text = on.finish(request.request_id), on.text(request.request_id)
        if finish.reason is FinishReason.FAILED:
            assert isinstance(finish.error, RequestError)
            assert "max_new_tokens" in str(finish.error)
            assert not text
        else:
            assert conforms(request.constraint, text)
            assert finish.usage.completion_tokens <= max_new


def test_a_text_that_the_budget_bent_says_so() -> None:
    spec = Regex(r"[a-z]{3,40}\.")
    free = drive(engine(), [generate("x", PROMPT, 60, constraint=spec)])
    tight = drive(engine(), [generate("x", PROMPT, 6, constraint=spec)])
    assert not free.finish("x").steered
    assert tight.finish("x").steered
    assert tight.text("x")[-1] == "."


def test_a_text_that_could_go_on_ends_with_length() -> None:
    run = drive(engine(), [generate("x", PROMPT, 5, constraint=Regex("[a-z]+"))])
    assert run.finish("x").reason is FinishReason.LENGTH
    assert not run.finish("x").steered


def test_stop_strings_and_stop_patterns_cut_forced_text() -> None:
    spec = Regex("(one|two) and then a lot more")
    for options in ({"stop": ("then",)}, {"stop_regex": ("th[aeiou]n",)}):
        on = drive(engine(), [generate("x", PROMPT, 60, constraint=spec, **options)])
        off = drive(engine(jump_forward=False), [generate("x", PROMPT, 60, constraint=spec, **options)])
        assert_same(on, off)
        assert on.text("x") in ("one and ", "two and ")
        assert on.finish("x").reason is FinishReason.STOP
        assert on.finish("x").matched == next(iter(options.values()))[0]


def test_the_end_waits_for_min_new_tokens_where_the_constraint_allows_it() -> None:
    spec = Regex("[a-z]{1,9}")
    long = drive(engine(), [generate("x", PROMPT, 20, constraint=spec, min_new_tokens=9, ignore_eos=False)])
    assert len(long.text("x")) == 9
    ends = drive(engine(), [generate("x", PROMPT, 20, constraint=Regex("[a-z]{4}"), min_new_tokens=9)])
    assert len(ends.text("x")) == 4
    ignoring = drive(engine(), [generate("x", PROMPT, 20, constraint=spec, ignore_eos=True)])
    assert len(ignoring.text("x")) == 9


def test_penalties_and_filters_work_under_a_mask() -> None:
    options = {"temperature": 1.2, "top_k": 3, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 4}
    options["frequency_penalty"] = 0.5
    run = drive(engine(), [generate("x", PROMPT, 40, constraint=Regex("[ab]{30}"), **options)])
    assert re.fullmatch("[ab]{30}", run.text("x"))
    off = drive(engine(jump_forward=False), [generate("x", PROMPT, 40, constraint=Regex("[ab]{30}"), **options)])
    assert_same(run, off)


def test_a_bad_constraint_ends_its_own_request() -> None:
    bad = [
        generate("reference", PROMPT, 9, constraint=Regex(r"(a)\1")),
        generate("empty", PROMPT, 9, constraint=JsonSchema.of({"type": "string", "minLength": 3, "maxLength": 1})),
        generate("keyword", PROMPT, 9, constraint=JsonSchema.of({"unevaluatedProperties": False})),
        generate("search", PROMPT, 9, stop_regex=("a*",)),
    ]
    run, alone = drive(engine(), [*bad, *requests()]), drive(engine(), requests())
    assert_same(Run({k: v for k, v in run.events.items() if k in alone.events}), alone)
    for name in ("reference", "empty", "keyword"):
        assert isinstance(run.error(name), UnsupportedConstraint)
    assert isinstance(run.error("search"), PalmetteError)


def test_a_constraint_that_fails_in_the_middle_ends_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Matcher.fill_mask

    def fill(self: Matcher, out: Any, *, budget: int | None = None) -> None:
        if b"3" in b"".join(self.constraint.vocabulary.tokens[t] for t in self.tokens[:4]) and len(self.tokens) > 4:
            raise UnsupportedConstraint("", "dfa_states_per_step", "too many")
        original(self, out, budget=budget)

    monkeypatch.setattr(Matcher, "fill_mask", fill)
    fine = generate("fine", PROMPT, 20, constraint=Regex("[a-z]{9}"))
    run = drive(engine(), [generate("bad", PROMPT, 20, constraint=Regex("3333[a-z]{9}")), fine])
    assert isinstance(run.error("bad"), UnsupportedConstraint)
    assert run.finish("bad").reason is FinishReason.FAILED
    assert re.fullmatch("[a-z]{9}", run.text("fine"))


def test_limits_are_the_configurations() -> None:
    core = engine(constraint_limits=Limits(repeat=10))
    run = drive(core, [generate("x", PROMPT, 20, constraint=Regex("a{11}"))])
    assert isinstance(run.error("x"), UnsupportedConstraint)
    assert "repeat" in str(run.error("x"))


def test_an_equal_constraint_is_compiled_once() -> None:
    core = engine()
    core.compiler.compile(SPECS["town"])
    assert core.compiler.compile(JsonSchema(TOWN.text)) is core.compiler.cached(SPECS["town"])


def test_the_cache_of_constraints_is_bounded_by_number_and_size() -> None:
    few = engine(constraint_limits=Limits(cached_constraints=2))
    small = engine(constraint_limits=Limits(cached_bytes=1))
    for core, kept in ((few, 2), (small, 1)):
        specs = [Regex(f"a{{{n}}}") for n in range(1, 5)]
        for spec in specs:
            core.compiler.compile(spec)
        assert [core.compiler.cached(spec) is not None for spec in specs] == [False] * (4 - kept) + [True] * kept


def test_no_new_token_needs_no_constraint() -> None:
    run = drive(engine(), [generate("x", PROMPT, 0, constraint=Regex(r"(a)\1"))])
    assert run.finish("x").reason is FinishReason.LENGTH


def test_what_is_left_unenforced_is_told() -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2, "maxItems": 2}
    spec = JsonSchema.of(
        {**schema, "items": {"type": "integer", "minimum": 0, "maximum": 99999}}, SchemaOptions(strict=False)
    )
    run = drive(engine(), [generate("x", PROMPT, 40, constraint=spec)])
    assert run.finish("x").unenforced == (" uniqueItems",) or "uniqueItems" in str(run.finish("x").unenforced)


def test_prompt_and_forced_start_are_shared_by_siblings() -> None:
    core = engine()
    siblings: Sequence[GenerateRequest] = [
        generate(f"{i}", PROMPT * 3, 30, constraint=Regex("The same long beginning: [a-z]{3}"), temperature=1.0, seed=i)
        for i in range(8)
    ]
    drive(core, siblings)
    start = len("The same long beginning: ")
    assert core.stats().computed_prompt_tokens <= len(PROMPT * 3) + 8
    assert core.stats().forced_tokens == 8 * start
    assert all(isinstance(e, TokenEvent) for e in drive(engine(), siblings).events["0"])


# -- other ways to choose tokens ---------------------------------------------------------------------------------------


def test_without_forcing_the_texts_conform_as_well() -> None:
    run = drive(engine(retokenize="off"), requests())
    for request in requests():
        assert request.constraint is not None
        assert conforms(request.constraint, run.text(request.request_id))
        assert run.finish(request.request_id).usage.forced_tokens == 0


@pytest.mark.parametrize("options", [{}, {"page_size": 4, "chunk_size": 16}, {"enabled": False}])
def test_the_papers_rule_writes_conforming_texts_with_jumps(options: dict[str, Any]) -> None:
    """Merged tokens are rewritten by a jump, so the tiny model gets some."""
    merged = [b'": "', b'", "', b"name", b'{"', b'"name"', *(b"%d-" % digit for digit in range(10))]
    loaded = tiny_model(seed=3, extra_tokens=merged)
    core = engine(loaded, retokenize="paper", **options)
    run = drive(core, requests())
    rewritten = 0
    for request in requests():
        assert request.constraint is not None
        finish, text = run.finish(request.request_id), run.text(request.request_id)
        assert finish.error is None
        assert conforms(request.constraint, text)
        assert loaded.tokenizer.decode(finish.token_ids) == text
        rewritten += finish.usage.retokenized_tokens
        assert finish.usage.completion_tokens == len(finish.token_ids) + (finish.matched is not None)
    assert rewritten > 0
    assert run.finish("town").usage.forced_tokens > 10
    assert core.stats().retractions == 0


def test_the_papers_rule_has_no_logprobs() -> None:
    run = drive(
        engine(retokenize="paper"), [generate("x", PROMPT, 9, constraint=Regex("ab[cd]"), logprobs=LogprobParams())]
    )
    assert isinstance(run.error("x"), InvalidOption)


def test_llguidance_serves_what_our_grammars_refuse() -> None:
    pytest.importorskip("llguidance")
    left_recursive = Grammar('root ::= root "+" [0-9] | [0-9]')
    assert isinstance(
        drive(engine(), [generate("x", PROMPT, 9, constraint=left_recursive)]).error("x"), UnsupportedConstraint
    )
    core = engine(constraint_engine="llguidance")
    wanted = [
        generate("x", PROMPT, 15, constraint=left_recursive),
        generate("y", PROMPT, 60, constraint=SPECS["phone"]),
    ]
    run = drive(core, wanted)
    assert re.fullmatch(r"[0-9](\+[0-9])*\+?", run.text("x"))
    assert conforms(SPECS["phone"], run.text("y"))
    assert run.finish("y").usage.forced_tokens > 5


def test_special_tokens_that_a_constraint_names_are_part_of_the_text() -> None:
    mark = "<|im_start|>"
    spec = Tagged((Tag(mark, Regex("[ab]{3}"), "!"),), at_least_one=True, stop_after_first=True)
    on = drive(engine(), [generate("x", PROMPT, 40, constraint=spec, temperature=1.0, seed=2)])
    off = drive(engine(jump_forward=False), [generate("x", PROMPT, 40, constraint=spec, temperature=1.0, seed=2)])
    assert_same(on, off)
    assert model().tokenizer.special_tokens[mark] in on.sampled("x")
    assert re.fullmatch(r".*<\|im_start\|>[ab]{3}!", on.text("x"), re.DOTALL)
    plain = drive(engine(), [generate("y", PROMPT, 40, constraint=Regex(f"{re.escape(mark)}[ab]"))])
    assert model().tokenizer.special_tokens[mark] not in plain.sampled("y")


def test_a_thinking_budget_is_kept_and_the_answer_conforms() -> None:
    spec = Reasoned("</think>", Regex("[0-9]{2}"), budget=12, begin="<think>")
    for jumps in (True, False):
        run = drive(engine(jump_forward=jumps), [generate("x", PROMPT, 60, constraint=spec, temperature=1.0, seed=5)])
        found = re.fullmatch(r"<think>(.*)</think>[0-9]{2}", run.text("x"), re.DOTALL)
        assert found
        assert len(found[1].encode()) <= 12


def test_a_request_that_needed_no_step_is_no_part_of_the_optimum() -> None:
    core = engine(measure_optimum=True)
    fixed = [generate(f"{i}", PROMPT, 40, constraint=Regex("nothing to choose")) for i in range(3)]
    drive(core, [*fixed, generate("drawn", PROMPT, 9, constraint=Regex("[ab]{3}"))])
    stats = core.stats()
    assert stats.computed_prompt_tokens == len(PROMPT)
    assert stats.optimum_computed_tokens == len(PROMPT)


def test_a_known_prompt_with_a_forced_start_computes_none_of_its_tokens() -> None:
    core = engine(measure_optimum=True)
    drive(core, [generate("plain", PROMPT, 5)])
    drive(core, [generate("forced", PROMPT, 40, constraint=Regex("The start: [ab]{3}"))])
    stats = core.stats()
    assert stats.computed_prompt_tokens == stats.optimum_computed_tokens == len(PROMPT)
