"""The local runtime as a backend: the language's only door into the runtime half.

Importing this module loads torch; the package does so only when a Runtime is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.config import ENFORCED, runtime_config
from palmette.runtime.driver import EngineThread
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.models.open_model import open_model
from palmette.runtime.stats import Stats
from palmette.runtime.tokenizer import Tokenizer
from palmette.types import Capabilities, Deliver, Message, ProgramEvent, Request, RolePieces, TextPiece

__all__ = ["LoadedModel", "Runtime", "runtime_config"]


class Runtime:
    """A model on this machine, with its engine in a thread of its own.

    Args:
        model_path: a .gguf file, a directory with config.json and *.safetensors, "smollm2" (the embedded model),
            "tiny" (random weights, for tests), or a hub name with palmette[hub].
        chat_template: Jinja source to use instead of the model's own.
        **options: the fields of ModelOptions, CacheConfig, SchedulerConfig and ConstraintConfig
            (palmette.runtime.config), such as `kv_tokens`, `page_size`, `chunk_size`, `max_running`, `policy`,
            `context_len`, `dtype`, `device`, `kv_dtype`, `tensor_parallel`.

    Raises:
        ModelNotFound, CorruptModel, UnsupportedArchitecture: the model.
        InvalidOption: an unknown option, or one out of range.
    """

    def __init__(
        self, model_path: str | LoadedModel = "smollm2", *, chat_template: str | None = None, **options: Any
    ) -> None:
        config = runtime_config(model_path if isinstance(model_path, str) else model_path.name, options)
        loaded = model_path if isinstance(model_path, LoadedModel) else open_model(config.model)
        self._tokenizer = loaded.tokenizer
        self._template = loaded.tokenizer.chat_template
        if chat_template is not None:
            self._template = ChatTemplate(
                chat_template, bos_token=self._template.bos_token, eos_token=self._template.eos_token
            )
        self._engine: EngineCore = build_engine(loaded, config)
        self.config = self._engine.config
        self._capabilities = Capabilities(
            chat=self._template.exists,
            constraints=ENFORCED[config.constraints.constraint_engine],
            chat_template=self._template.source or "",
            context_len=self._engine.config.model.context_len or 0,
            model=loaded.name,
            digest=loaded.digest,
        )
        self._thread = EngineThread(self._engine)

    # -- the Backend protocol --

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def begin_ids(self) -> tuple[int, ...]:
        return tuple(self._tokenizer.begin_ids())

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        return self._tokenizer.encode_pieces(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        return self._template.role_pieces(messages, role)

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        return self._template.rerender(messages, role)

    def submit(self, request: Request, deliver: Deliver) -> None:
        self._thread.submit(request, deliver)

    def cancel(self, request_id: str) -> None:
        self._thread.cancel(request_id)

    def notify(self, event: ProgramEvent) -> None:
        self._thread.notify(event)

    def flush_cache(self) -> None:
        self._thread.flush_cache()

    def server_info(self) -> dict[str, Any]:
        stats = self.stats()
        return {
            "model": self._capabilities.model,
            "digest": self._capabilities.digest,
            **asdict(stats),
            "hit_rate": stats.hit_rate,
            "share_of_optimum": stats.share_of_optimum,
        }

    def close(self) -> None:
        """Stop the engine's thread; whatever waits for it gets EngineDied. May be called twice."""
        self._thread.close()

    shutdown = close  # SGLang's name

    # -- beyond the protocol --

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: encode, decode, token_bytes."""
        return self._tokenizer

    def stats(self) -> Stats:
        """One moment's counters; see palmette.runtime.stats."""
        return self._thread.stats()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
