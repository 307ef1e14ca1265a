"""What a hole asks of the backend: its prompt, its parameters, its constraint, and how the text that comes is read.

Here a constraint meets what stands around it: reasoning in front of the answer, and a seam that is healed.

    Healed(prefix, Reasoned(end, Concat(after, the hole's own)))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from palmette.formats.reasoning import ReasoningFormat, reasoning_format
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.healing import Seam, heal
from palmette.interpreter.reading import HoleText
from palmette.interpreter.reasoning import ReasoningSplitter
from palmette.ir import Binding, Gen, HoleOptions
from palmette.specs import Concat, Healed, Reasoned, Spec
from palmette.types import Backend, SamplingParams

_LOOK_BACK = 256  # characters of the prompt in which a mark of reasoning at its end would stand


@dataclass(frozen=True, slots=True)
class Ask:
    """One hole, ready to be asked for. `cursor` is where the prompt ends: the tokens of its chain are the request's."""

    cursor: Cursor
    params: SamplingParams
    spec: Spec | None
    binding: Binding | None
    taken: tuple[int, ...] = ()  # tokens of the prompt that were given back
    prefix: str = ""  # their text, which the text that comes begins with
    reasoning: ReasoningFormat | None = None  # that is to be split from the answer
    is_inside: bool = False  # the text begins inside the reasoning
    ends: tuple[str, ...] = ()  # characters that complete the answer and are no part of it

    def text(self) -> HoleText:
        """A reader of one sample's text."""
        splitter = None
        if self.reasoning is not None:
            exact = self.binding is not None and not self.binding.is_free
            splitter = ReasoningSplitter(self.reasoning, inside=self.is_inside, exact=exact)
        shown = self.binding.shown() if self.binding is not None and self.binding.shown is not None else None
        return HoleText(len(self.prefix), splitter, self.ends, shown)

    def retokenized(self, token_ids: tuple[int, ...]) -> int:
        """Tokens of the prompt that the hole's tokens stand in for; none where it began with the same."""
        same = 0
        while same < min(len(self.taken), len(token_ids)) and self.taken[same] == token_ids[same]:
            same += 1
        return len(self.taken) - same


def ask(node: Gen, options: HoleOptions, backend: Backend, *, before: Cursor, flushed: Cursor) -> Ask:
    """
    Args:
        options: the node's, laid over the run's.
        before: where the stream stands, with its pending text.
        flushed: the same with that text tokenized.
    """
    binding = None
    if node.constraint is not None and node.constraint.binding is not None:
        binding = node.constraint.binding.in_family(backend.capabilities.chat_template)
    params = _sampling_params(options)
    spec = None if binding is None else binding.spec
    stops = () if binding is None else binding.stop
    asked = Ask(flushed, params, spec, binding)
    if node.reasoning is not None:
        asked = _reasoned(asked, reasoning_format(node.reasoning), options.thinking_budget)
    seam = heal(before, flushed, backend, params) if options.token_healing else None
    if seam is not None:
        asked = _healed(asked, seam)
    if not stops:
        return asked
    if asked.spec is spec:  # the text is the constraint's from its first character on
        return replace(asked, params=replace(params, stop=tuple(dict.fromkeys((*params.stop, *stops)))))
    return replace(asked, ends=stops)


@lru_cache(maxsize=1024)
def laid_over(options: HoleOptions, base: HoleOptions) -> HoleOptions:
    """`options.over(base)`; holes that want the same share it, since thousands may be in flight."""
    return options.over(base)


@lru_cache(maxsize=1024)
def _sampling_params(options: HoleOptions) -> SamplingParams:
    return options.sampling_params()


def _reasoned(asked: Ask, form: ReasoningFormat, budget: int | None) -> Ask:
    """Reasoning in front. A prompt that ends with its closing mark leaves none to come."""
    flushed, spec = asked.cursor, asked.spec
    prompt = flushed.text_from(max(0, flushed.text_len - _LOOK_BACK))
    if prompt.rstrip().endswith(form.end.rstrip()):
        return asked
    is_open = form.is_open(prompt)
    if spec is None and budget is None:
        return replace(asked, reasoning=form, is_inside=is_open or form.starts_inside)
    content = spec
    if spec is not None and asked.binding is not None and not asked.binding.is_free and form.after:
        content = Concat((form.after, spec))
    whole = Reasoned(form.end, content, budget, begin="" if is_open else form.begin)
    return replace(asked, spec=whole, reasoning=form, is_inside=is_open)


def _healed(asked: Ask, seam: Seam) -> Ask:
    more, params = len(seam.token_ids), asked.params
    low = params.min_new_tokens + more if params.min_new_tokens else 0
    return replace(
        asked,
        cursor=seam.cursor,
        params=replace(params, max_new_tokens=params.max_new_tokens + more, min_new_tokens=low),
        spec=Healed(seam.prefix, asked.spec),
        taken=seam.token_ids,
        prefix=seam.prefix,
    )
