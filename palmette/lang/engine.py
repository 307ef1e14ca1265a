"""`Engine`: a model without the language, with the arguments and results of SGLang's offline engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from palmette.errors import InvalidOption, UnsupportedConstraint, UnsupportedFeature
from palmette.interpreter.backends.local import LoadedModel, Runtime
from palmette.interpreter.executor import Executor, Generated
from palmette.interpreter.hole import awaited
from palmette.interpreter.meta import meta_info, usage_info
from palmette.interpreter.seeds import draw_key, fresh_seed
from palmette.interpreter.support import spec_kinds
from palmette.ir import DEFAULTS, Constraint, ConstraintKind, HoleOptions
from palmette.lang.constraints import bound
from palmette.lang.session import shared_executor
from palmette.specs import Spec
from palmette.types import Capabilities, EmbedRequest, FinishReason, GenerateRequest, Hints, TextPiece

_CONSTRAINTS: dict[str, ConstraintKind] = {
    "regex": "regex",
    "json_schema": "json_schema",
    "ebnf": "grammar",
    "structural_tag": "structural_tag",
}
_END = object()


class Engine:
    """Generate from prompts or token ids, one or many.

        engine = Engine(model_path="smollm2")
        engine.generate("The capital of France is", {"max_new_tokens": 8, "temperature": 0})["text"]

    Takes every option of `Runtime`; `is_embedding=True` allows `encode`.
    """

    def __init__(
        self, model_path: str | LoadedModel = "smollm2", *, is_embedding: bool = False, **options: Any
    ) -> None:
        self._runtime = Runtime(model_path, **options)
        self._is_embedding = is_embedding

    @property
    def runtime(self) -> Runtime:
        """The backend below, for running programs on the same model."""
        return self._runtime

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        image_data: Any | None = None,
        return_logprob: bool | Sequence[bool] = False,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        lora_path: Any | None = None,
        stream: bool = False,
        return_text_in_logprobs: bool = False,
    ) -> Any:
        """Continue one prompt or each of a list.

        Args:
            prompt: text, without chat template; a plain text gets the model's own beginning. Or `input_ids`.
            sampling_params: one mapping for all, or one each. Names of `SamplingParams`, and `n`, `seed`; at most one
                of `regex`, `json_schema`, `ebnf` and `structural_tag`, which the text satisfies (docs/types.md).
            logprob_start_len: first prompt position that gets a logprob; -1 or None = generated tokens only.
            stream: return an iterator of results with the text so far; for one prompt.

        Returns:
            {"text", "output_ids", "meta_info"} or a list of them (for a list of prompts, or n > 1).

        Raises:
            InvalidOption, UnsupportedConstraint, UnsupportedFeature: before anything is computed.
            PalmetteError: what a request failed with.
        """
        jobs = self._jobs(
            prompt, sampling_params, input_ids, image_data, return_logprob, logprob_start_len, top_logprobs_num,
            lora_path, return_text_in_logprobs,
        )  # fmt: skip
        if stream:
            return self._stream(jobs)
        return shared_executor().start(self._collect(jobs)).result()

    async def async_generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` for a coroutine; with stream=True an async iterator."""
        stream = kwargs.pop("stream", False)
        jobs = self._jobs(**self._named(args, kwargs))
        if stream:
            return self._astream(jobs)
        return await awaited(shared_executor().start(self._collect(jobs)))

    def encode(self, prompt: str | Sequence[str], image_data: Any | None = None) -> Any:
        """Embeddings: the last hidden state of the last token, scaled to length 1.

        Returns:
            {"embedding": list of floats, "meta_info"} or a list of them.

        Raises:
            UnsupportedFeature: the engine was not built with is_embedding=True. A model that was not trained for it
                has hidden states, not embeddings; saying so is the caller's.
        """
        if not self._is_embedding:
            raise UnsupportedFeature("encode", "build the Engine with is_embedding=True if the model is for embeddings")
        if image_data is not None:
            raise UnsupportedFeature("image_data", "the model has no vision part")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        results = shared_executor().start(self._embed(prompts)).result()
        return results[0] if isinstance(prompt, str) else results

    def flush_cache(self) -> None:
        self._runtime.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        return self._runtime.server_info()

    def shutdown(self) -> None:
        """Stop the engine; what still waits gets EngineDied."""
        self._runtime.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    # -- internals -------------------------------------------------------------------------------------------------

    def _jobs(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        image_data: Any = None,
        return_logprob: Any = False,
        logprob_start_len: Any = None,
        top_logprobs_num: Any = None,
        lora_path: Any = None,
        return_text_in_logprobs: bool = False,
    ) -> _Jobs:
        if image_data is not None:
            raise UnsupportedFeature("image_data", "the model has no vision part")
        if lora_path is not None:
            raise UnsupportedFeature("lora_path", "adapters are not loaded by this runtime yet")
        if (prompt is None) == (input_ids is None):
            raise InvalidOption("prompt", prompt, "exactly one of prompt and input_ids")
        if prompt is not None:
            single = isinstance(prompt, str)
            ids = [self._encode(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        else:
            single = bool(input_ids) and isinstance(input_ids[0], int)
            ids = [tuple(input_ids)] if single else [tuple(row) for row in input_ids]
        params = [sampling_params] * len(ids) if isinstance(sampling_params, Mapping | None) else list(sampling_params)
        per_prompt = {"return_logprob": return_logprob, "logprob_start_len": logprob_start_len}
        per_prompt["top_logprobs_num"] = top_logprobs_num
        columns = {name: _column(name, value, len(ids)) for name, value in per_prompt.items()}
        _column("sampling_params", params, len(ids))
        specs = [_constraint(given or {}, self._runtime.capabilities) for given in params]
        options = [
            _options(params[i], {k: v[i] for k, v in columns.items()}, return_text_in_logprobs) for i in range(len(ids))
        ]
        return _Jobs(self._runtime, ids, options, specs, single)

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = ("prompt", "sampling_params", "input_ids", "image_data", "return_logprob", "logprob_start_len")
        return {**dict(zip((*names, "top_logprobs_num", "lora_path"), args, strict=False)), **kwargs}

    def _encode(self, text: str) -> tuple[int, ...]:
        return (*self._runtime.begin_ids(), *self._runtime.encode([TextPiece(text)]))

    async def _collect(self, jobs: _Jobs) -> Any:
        tasks = [asyncio.ensure_future(jobs.run(shared_executor(), i)) for i in range(len(jobs.ids))]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        flat = [result for samples in results for result in samples]
        return flat[0] if jobs.single and len(flat) == 1 else flat

    def _stream(self, jobs: _Jobs) -> Iterator[dict[str, Any]]:
        queue: SimpleQueue[object] = SimpleQueue()
        future = self._follow(jobs, queue.put)
        while (item := queue.get()) is not _END:
            yield item  # type: ignore[misc]
        future.result()

    async def _astream(self, jobs: _Jobs) -> AsyncIterator[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()

        def put(item: object) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        future = self._follow(jobs, put)
        try:
            while (item := await queue.get()) is not _END:
                yield item
            await awaited(future)
        finally:
            future.cancel()  # the reader left early

    def _follow(self, jobs: _Jobs, put: Any) -> Future[Any]:
        if len(jobs.ids) != 1 or (jobs.options[0].n or 1) > 1:
            raise InvalidOption("stream", True, "for one prompt with n=1")

        async def follow() -> None:
            try:
                await jobs.run(shared_executor(), 0, put)
            finally:
                put(_END)

        return shared_executor().start(follow())

    async def _embed(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        executor = shared_executor()
        requests = [EmbedRequest(executor.next_request_id(), self._encode(prompt)) for prompt in prompts]
        events = await asyncio.gather(*(executor.embed(self._runtime, request) for request in requests))
        return [
            {"embedding": list(e.embedding), "meta_info": {"id": e.request_id, **usage_info(e.usage)}} for e in events
        ]


class _Jobs:
    """Checked prompts and options, ready to run."""

    def __init__(
        self,
        runtime: Runtime,
        ids: list[tuple[int, ...]],
        options: list[HoleOptions],
        specs: list[Spec | None],
        single: bool,
    ) -> None:
        self.runtime, self.ids, self.options, self.specs, self.single = runtime, ids, options, specs, single

    async def run(self, executor: Executor, index: int, put: Any = None) -> list[dict[str, Any]]:
        """The samples of one prompt; `put` gets the result so far with every piece of text."""
        options = self.options[index]
        n = options.n or 1
        seed = fresh_seed() if options.seed is None else options.seed
        hints = Hints(shared_len=len(self.ids[index]), siblings=n) if n > 1 else Hints()
        return list(await asyncio.gather(*(self._sample(executor, index, seed, s, hints, put) for s in range(n))))

    async def _sample(
        self, executor: Executor, index: int, seed: int, sample: int, hints: Hints, put: Any
    ) -> dict[str, Any]:
        options = self.options[index]
        request = GenerateRequest(
            request_id=executor.next_request_id(),
            token_ids=self.ids[index],
            params=options.sampling_params(),
            seed=draw_key(seed, (), 0, sample),
            logprobs=options.logprob_params(),
            hints=hints,
            constraint=self.specs[index],
        )
        progress = Generated()

        def show(_: str) -> None:
            if put is not None:
                put({"text": progress.text, "output_ids": [], "meta_info": {"id": request.request_id}})

        await executor.generate(self.runtime, request, show, progress)
        result = self._result(request, progress, options)
        if put is not None:
            put(result)
        return result

    def _result(self, request: GenerateRequest, progress: Generated, options: HoleOptions) -> dict[str, Any]:
        decode = self.runtime.decode
        info = meta_info(
            request.request_id,
            progress.finish,
            progress.logprobs,
            max_new_tokens=request.params.max_new_tokens,
            with_logprobs=request.logprobs is not None,
            with_top=bool(options.top_logprobs_num),
            token_text=(lambda token: decode([token])) if options.return_text_in_logprobs else None,
        )
        # At a length limit a last half character is no text, but its tokens were generated all the same.
        is_cut = progress.finish.reason is FinishReason.LENGTH
        output_ids = progress.token_ids if is_cut else list(progress.finish.token_ids)
        return {"text": progress.text, "output_ids": output_ids, "meta_info": info}


def _constraint(params: Mapping[str, Any], capabilities: Capabilities) -> Spec | None:
    """What the text must satisfy, checked as `gen` checks it."""
    given = [name for name in _CONSTRAINTS if params.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidOption(given[1], params[given[1]], f"not together with {given[0]}")
    binding = bound(Constraint(_CONSTRAINTS[given[0]], params[given[0]])).binding
    assert binding is not None, "nothing here is known only in a run"
    if not spec_kinds(binding.spec) <= capabilities.constraints:
        raise UnsupportedConstraint("", given[0], f"{capabilities.model} does not enforce it")
    return binding.spec


def _options(params: Mapping[str, Any] | None, columns: Mapping[str, Any], with_text: bool) -> HoleOptions:
    given = {name: value for name, value in (params or {}).items() if name not in _CONSTRAINTS}
    for ignored in ("skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"):
        if given.pop(ignored, None) not in (None, ignored != "no_stop_trim"):
            raise UnsupportedFeature(ignored, "special tokens are never text and stop strings never stay here")
    given.update({k: v for k, v in columns.items() if v is not None and v is not False})
    for name in ("token_healing", "thinking_budget", "on_budget"):  # a program's: they need what stands around a hole
        if name in given:
            raise InvalidOption(name, given[name], "an option of gen(...), not of the engine")
    return HoleOptions.of(**given, return_text_in_logprobs=with_text or None).over(DEFAULTS)


def _column(name: str, value: Any, count: int) -> list[Any]:
    """One value each."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != count:
            raise InvalidOption(name, value, f"one value, or one for each of the {count} prompts")
        return list(value)
    return [value] * count
