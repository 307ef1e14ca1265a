"""What one call of a program asks for: its arguments told apart from the options of the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palmette.errors import InvalidOption, UsageError
from palmette.interpreter.budget import Budget
from palmette.interpreter.run import ProgramRun, RolesMode
from palmette.interpreter.seeds import fresh_seed
from palmette.ir import RUN_OPTION_NAMES, HoleOptions
from palmette.lang.session import current_options, resolve_backend, shared_executor
from palmette.types import Backend

_RUN_ONLY = ("backend", "stream", "budget", "roles", "namespace", "record", "use_thread")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run. `seed` None = a fresh one, told by `state.seed`."""

    holes: HoleOptions
    backend: Backend | None = None
    seed: int | None = None
    stream: bool = False
    budget: Budget | None = None
    roles: RolesMode = "strict"
    namespace: str = ""  # prefixes are shared within one namespace only
    record: str | None = None  # path of a run record to write

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """Raises InvalidOption for a name that is no option."""
        holes, run = {}, {}
        for name, value in given.items():
            if name == "seed":
                run[name] = value
            elif name in RUN_OPTION_NAMES:
                holes[name] = value
            elif name in _RUN_ONLY:
                run[name] = value
            else:
                known = ", ".join(sorted((*RUN_OPTION_NAMES, *_RUN_ONLY)))
                raise InvalidOption(name, value, f"neither a parameter of the program nor a run option ({known})")
        run.pop("use_thread", None)  # SGLang's: streams never own a thread here
        current = current_options()
        if run.get("seed") is None:
            run["seed"] = current.seed
        if run["seed"] is not None and (isinstance(run["seed"], bool) or not isinstance(run["seed"], int)):
            raise InvalidOption("seed", run["seed"], "an integer")
        return cls(holes=_without_seed(HoleOptions.of(**holes).over(current)), **run)

    def start(self, seed: int | None = None) -> ProgramRun:
        """A run under these options; `seed` stands in for theirs."""
        chosen = seed if seed is not None else self.seed
        return ProgramRun(
            shared_executor(),
            resolve_backend(self.backend),
            seed=fresh_seed() if chosen is None else chosen,
            options=self.holes,
            budget=self.budget,
            roles=self.roles,
            namespace=self.namespace,
        )


class Signature:
    """The parameters of a program's body behind the state."""

    def __init__(self, func: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(func).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise UsageError(
                f"{func.__qualname__} is no program: its first parameter must be the state, `def f(s, ...)`"
            )
        self.name = func.__qualname__
        self.parameters = parameters[1:]
        self._signature = inspect.Signature(self.parameters)
        self._takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters)
        self._named = {p.name for p in self.parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}

    def split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments, run options): a parameter of the program wins over a run option of the same name."""
        arguments: dict[str, Any] = {}
        run: dict[str, Any] = {}
        for name, value in kwargs.items():
            is_option = name in RUN_OPTION_NAMES or name in _RUN_ONLY
            mine = name in self._named or (self._takes_any and not is_option)
            (arguments if mine else run)[name] = value
        return arguments, run

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """Raises TypeError as a call of the body would."""
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None

    def missing(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """The parameters that a trace stands symbols in for."""
        given = set(self._signature.bind_partial(*args, **kwargs).arguments)
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [
            p.name for p in self.parameters if p.name not in given and p.kind not in variadic and p.default is p.empty
        ]


def _without_seed(options: HoleOptions) -> HoleOptions:
    """The run's seed keys every hole; only `gen(seed=)` overrides it for one."""
    if options.seed is None:
        return options
    return HoleOptions(**{f: getattr(options, f) for f in HoleOptions.__slots__ if f != "seed"})
