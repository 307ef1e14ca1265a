"""How a runtime is built: frozen, composed, checked once. Each part of the runtime sees only its own piece.

Knows names, defaults and ranges. Does not know the model: what depends on it (`None` here) is settled by `resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, get_args

from palmette.errors import InvalidOption
from palmette.fsm.limits import Limits

DType = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
CPUKernels = Literal["auto", "torch", "avx512", "avx2", "portable"]
GPUKernels = Literal["auto", "torch", "triton"]
KVDType = Literal["auto", "int8", "fp8"]
Retokenize = Literal["safe", "off", "paper"]
ConstraintEngine = Literal["palmette", "llguidance"]
ENFORCED: dict[ConstraintEngine, frozenset[str]] = {  # kinds of constraint
    "palmette": frozenset(
        {"regex", "choices", "json_schema", "grammar", "stop_regex", "structural_tag", "token_healing"}
    ),
    "llguidance": frozenset({"regex", "choices", "json_schema", "grammar", "stop_regex"}),
}
Overlap = Literal["auto", "on", "off"]
PolicyName = Literal["longest_prefix", "depth_first", "fcfs", "random"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is held."""

    model_path: str = "smollm2"  # a .gguf file, a directory, "smollm2" or a hub name
    dtype: DType = "auto"  # "auto": GPU bfloat16; CPU the file's own blocks where the compiled core can, else float32
    device: str = "auto"  # "cpu", "cuda"; "auto": the GPU where there is one (CUDA_VISIBLE_DEVICES says which)
    cpu_kernels: CPUKernels = "auto"  # "auto": the compiled core where it can be used, else torch
    gpu_kernels: GPUKernels = "auto"  # "auto": Triton's on CUDA, else torch; "triton" on a CPU: its interpreter
    tensor_parallel: int = 1  # processes that share the model: GPUs from the first on, or parts of a CPU
    context_len: int | None = None  # tokens of prompt and output together; None = the model's own

    def __post_init__(self) -> None:
        if not isinstance(self.model_path, str) or not self.model_path:
            raise InvalidOption("model_path", self.model_path, "a non-empty string")
        _check_choice("dtype", self.dtype, get_args(DType))
        _check_choice("cpu_kernels", self.cpu_kernels, get_args(CPUKernels))
        _check_choice("gpu_kernels", self.gpu_kernels, get_args(GPUKernels))
        if not isinstance(self.device, str) or not self.device:
            raise InvalidOption("device", self.device, "'auto', 'cpu' or 'cuda'")
        _check_int("tensor_parallel", self.tensor_parallel, 1, 64)
        if self.context_len is not None:
            _check_int("context_len", self.context_len, 2, 1 << 24)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The pool of KV slots, shared by running requests and cached prefixes."""

    kv_tokens: int | None = None  # slots of the pool; None = GPU what fits, CPU the context or DEFAULT_KV_TOKENS
    kv_dtype: KVDType = "auto"  # 8-bit keys and values with a scale for each token and head; "auto": the model's dtype
    page_size: int = 1  # slots handed out together; prefixes are shared in whole pages
    enabled: bool = True  # False: nothing is shared between requests (an ablation)
    hints: bool = True  # False: what programs tell of their forks and ends is not listened to (an ablation)
    measure_optimum: bool = False  # count what an infinite cache would compute; costs memory for every token seen

    def __post_init__(self) -> None:
        _check_int("page_size", self.page_size, 1, 1024)
        if self.kv_tokens is not None:
            _check_int("kv_tokens", self.kv_tokens, max(2, self.page_size), 1 << 40)
        _check_choice("kv_dtype", self.kv_dtype, get_args(KVDType))
        for name in ("enabled", "hints", "measure_optimum"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidOption(name, getattr(self, name), "True or False")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What goes into a step. Changes speed, never results."""

    max_running: int = 256  # requests that hold KV at once
    chunk_size: int | None = None  # tokens of a step; longer prompts take several; None = CPU 512, GPU 8192
    policy: PolicyName = "longest_prefix"
    window: int = 256  # oldest waiting requests the policy orders; bounds the cost of a step
    max_overtaken: int = 256  # younger requests that may be admitted before one that waits
    decode_reserve: int = 32  # tokens kept for the growth of each running request when another is admitted
    seed: int = 0  # of policy="random"
    overlap: Overlap = "auto"  # plan a step while the one before it is computed; "auto": where a device computes

    def __post_init__(self) -> None:
        _check_int("max_running", self.max_running, 1, 1 << 16)
        if self.chunk_size is not None:
            _check_int("chunk_size", self.chunk_size, 1, 1 << 20)
        _check_choice("policy", self.policy, get_args(PolicyName))
        _check_int("window", self.window, 1, 1 << 16)
        _check_int("max_overtaken", self.max_overtaken, 0, 1 << 30)
        _check_int("decode_reserve", self.decode_reserve, 0, 1 << 20)
        _check_int("seed", self.seed, 0, (1 << 64) - 1)
        _check_choice("overlap", self.overlap, get_args(Overlap))


@dataclass(frozen=True, slots=True)
class ConstraintConfig:
    """How constrained requests are decoded. `jump_forward` changes speed, never results.

    `retokenize` says which tokens forced text becomes. "safe": those that are certain whatever follows, and what was
    drawn is never rewritten. "off": none is forced, all tokenizations that the mask allows are the model's to choose.
    "paper": as "off", but a jump tokenizes the whole text again, drawn tokens included (arXiv 2312.07104, section 4);
    kept to reproduce that paper's figures, and without logprobs.
    """

    jump_forward: bool = True  # False: forced tokens are decoded one by one, under masks that hold them alone
    retokenize: Retokenize = "safe"
    constraint_engine: ConstraintEngine = "palmette"  # "llguidance": see fsm.llguidance_engine
    constraint_limits: Limits = field(default_factory=Limits)  # what one constraint may cost

    def __post_init__(self) -> None:
        if not isinstance(self.jump_forward, bool):
            raise InvalidOption("jump_forward", self.jump_forward, "True or False")
        _check_choice("retokenize", self.retokenize, get_args(Retokenize))
        _check_choice("constraint_engine", self.constraint_engine, get_args(ConstraintEngine))
        if self.retokenize == "paper" and self.constraint_engine != "palmette":
            raise InvalidOption("retokenize", self.retokenize, "the paper's rule reads Palmette's own automaton")
        if not isinstance(self.constraint_limits, Limits):
            raise InvalidOption("constraint_limits", self.constraint_limits, "a palmette.fsm.limits.Limits")


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Everything a runtime is built from."""

    model: ModelOptions = field(default_factory=ModelOptions)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    constraints: ConstraintConfig = field(default_factory=ConstraintConfig)

    def __post_init__(self) -> None:
        chunk = self.scheduler.chunk_size
        if chunk is not None and chunk < self.cache.page_size:
            raise InvalidOption("chunk_size", chunk, f"at least the page size, {self.cache.page_size}")


_PARTS = {"model": ModelOptions, "cache": CacheConfig, "scheduler": SchedulerConfig, "constraints": ConstraintConfig}
RUNTIME_OPTIONS = {option.name: part for part, kind in _PARTS.items() for option in fields(kind)}  # name -> its part


def runtime_config(model_path: str, options: Mapping[str, Any]) -> RuntimeConfig:
    """Flat options sorted into the parts of a RuntimeConfig.

    Raises:
        InvalidOption: an unknown option, or one out of range.
    """
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    parts["model"]["model_path"] = model_path
    for name, value in options.items():
        if name not in RUNTIME_OPTIONS:
            raise InvalidOption(name, value, f"no such option; there are {', '.join(sorted(RUNTIME_OPTIONS))}")
        parts[RUNTIME_OPTIONS[name]][name] = value
    return RuntimeConfig(
        model=ModelOptions(**parts["model"]),
        cache=CacheConfig(**parts["cache"]),
        scheduler=SchedulerConfig(**parts["scheduler"]),
        constraints=ConstraintConfig(**parts["constraints"]),
    )


DEFAULT_KV_TOKENS = 16384
DEFAULT_CHUNK = 512  # tokens: on a CPU a step of them takes long enough for those who decode beside it
DEVICE_CHUNK = 8192  # a GPU's matrix units are filled by thousands


class TokensThatFit(Protocol):
    """How many KV slots a device has room for, at least a context's; see runtime.device_memory."""

    def __call__(self, *, context_len: int) -> int: ...


def resolve(
    config: RuntimeConfig,
    *,
    model_context_len: int,
    tokens_that_fit: TokensThatFit | None = None,
    default_chunk: int = DEFAULT_CHUNK,
) -> RuntimeConfig:
    """The same with nothing left open: context_len, kv_tokens and chunk_size are numbers, kv_tokens in whole pages.

    Args:
        tokens_that_fit: of a device whose memory is the pool's; None = the pool is made as large as a CPU needs.

    Raises:
        InvalidOption: a context longer than the model's, or than fits.
    """
    context_len = config.model.context_len or model_context_len
    if context_len > model_context_len:
        raise InvalidOption("context_len", context_len, f"at most {model_context_len}, the model's own")
    kv_tokens = config.cache.kv_tokens
    if kv_tokens is None and tokens_that_fit is not None:
        kv_tokens = tokens_that_fit(context_len=context_len)
    kv_tokens = kv_tokens or max(context_len, DEFAULT_KV_TOKENS)
    kv_tokens -= kv_tokens % config.cache.page_size
    return replace(
        config,
        model=replace(config.model, context_len=context_len),
        cache=replace(config.cache, kv_tokens=kv_tokens),
        scheduler=replace(
            config.scheduler, chunk_size=config.scheduler.chunk_size or max(default_chunk, config.cache.page_size)
        ),
    )


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidOption(name, value, f"an integer from {low} to {high}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(name, value, "one of " + ", ".join(allowed))
