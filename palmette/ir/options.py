"""The options of a hole, each None where the author said nothing.

One type serves a hole, a run and `options(...)`: what the hole leaves None is taken from the run, then from the
enclosing `options`, then from `DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from palmette.errors import InvalidOption
from palmette.types import LogprobParams, SamplingParams

MAX_N = 64


@dataclass(frozen=True, slots=True)
class HoleOptions:
    """Sampling and logprob options; see `SamplingParams` for their meaning and ranges."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    n: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop_regex: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    timeout: float | None = None
    on_budget: str | None = None  # of a typed hole that the token budget closed: "raise" Truncated, or "close" it
    thinking_budget: int | None = None  # tokens of reasoning, in a hole that separates it
    token_healing: bool | None = None  # give back the last token of the text before the hole

    @classmethod
    def of(cls, **given: Any) -> HoleOptions:
        """Build from an author's keywords: copies what is mutable, accepts one stop string, `max_tokens`, `min_tokens`.

        Raises:
            InvalidOption: an unknown name or a value outside its range.
        """
        values = {_ALIASES.get(k, k): v for k, v in given.items() if v is not None}
        for name in values:
            if name not in OPTION_NAMES:
                raise InvalidOption(name, values[name], f"no such option; there are {', '.join(sorted(OPTION_NAMES))}")
        if "stop" in values:
            values["stop"] = _strings("stop", values["stop"])
        if "stop_regex" in values:
            values["stop_regex"] = _strings("stop_regex", values["stop_regex"])
        if "stop_token_ids" in values:
            values["stop_token_ids"] = _ints(values["stop_token_ids"])
        if "logit_bias" in values:
            values["logit_bias"] = _bias(values["logit_bias"])
        options = cls(**values)
        options._check_bounds()
        options.over(DEFAULTS)._check()
        return options

    def over(self, base: HoleOptions) -> HoleOptions:
        """These options, with what is None taken from `base`."""
        merged = [theirs if mine is None else mine for mine, theirs in zip(_values(self), _values(base), strict=True)]
        return HoleOptions(*merged)

    def sampling_params(self) -> SamplingParams:
        """The engine's parameters; call on options that were laid over DEFAULTS."""
        given = {f: getattr(self, f) for f in _SAMPLING if getattr(self, f) is not None}
        # A run's max_new_tokens may be smaller than a hole's min: the smaller bound wins, as an explicit limit.
        given["min_new_tokens"] = min(given.get("min_new_tokens", 0), given["max_new_tokens"])
        return SamplingParams(**given)

    def logprob_params(self) -> LogprobParams | None:
        if not self.return_logprob and not self.top_logprobs_num and self.logprob_start_len is None:
            return None
        start = None if self.logprob_start_len in (None, -1) else self.logprob_start_len
        return LogprobParams(start_len=start, top=self.top_logprobs_num or 0)

    def _check_bounds(self) -> None:
        """Both bounds given at one place: there they cannot contradict each other."""
        low, high = self.min_new_tokens, self.max_new_tokens
        if isinstance(low, int) and isinstance(high, int) and low > high:
            raise InvalidOption("min_new_tokens", low, f"at most max_new_tokens={high}")

    def _check(self) -> None:
        self.sampling_params()
        self.logprob_params()
        if self.n is not None and (isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= MAX_N):
            raise InvalidOption("n", self.n, f"an integer from 1 to {MAX_N}")
        if self.seed is not None and not isinstance(self.seed, int):
            raise InvalidOption("seed", self.seed, "an integer")
        if self.on_budget not in (None, "raise", "close"):
            raise InvalidOption("on_budget", self.on_budget, "'raise' or 'close'")
        budget = self.thinking_budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
            raise InvalidOption("thinking_budget", budget, "0 or more tokens")
        if self.token_healing not in (None, True, False):
            raise InvalidOption("token_healing", self.token_healing, "True or False")
        if self.timeout is not None and not (isinstance(self.timeout, int | float) and 0 < self.timeout < float("inf")):
            raise InvalidOption("timeout", self.timeout, "a positive number of seconds")


_values = attrgetter(*(f.name for f in fields(HoleOptions)))  # in the order of the constructor: `over` runs per hole
OPTION_NAMES = frozenset(f.name for f in fields(HoleOptions))
DEFAULTS = HoleOptions(max_new_tokens=128, temperature=1.0)
_SAMPLING = frozenset(f.name for f in fields(SamplingParams))
_ALIASES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
RUN_OPTION_NAMES = OPTION_NAMES | _ALIASES.keys()


def _strings(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise InvalidOption(name, value, "a string or several")
    return (value,) if isinstance(value, str) else tuple(value)


def _ints(value: int | Iterable[int]) -> tuple[int, ...]:
    if not isinstance(value, int | Iterable):
        raise InvalidOption("stop_token_ids", value, "a token id or several")
    return (value,) if isinstance(value, int) else tuple(value)


def _bias(value: Mapping[Any, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """JSON writes token ids as strings, so those are accepted too."""
    items = value.items() if isinstance(value, Mapping) else value
    try:
        return tuple(sorted((int(token), float(bias)) for token, bias in items))
    except (TypeError, ValueError):
        raise InvalidOption("logit_bias", value, "a mapping of token ids to numbers") from None
