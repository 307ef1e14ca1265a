"""What answers behind a URL: Palmette's server or SGLang's, its model, and the model's own tokenizer.

Asked once, at first use. Everything that turns text into tokens then runs here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from palmette.errors import InvalidOption, ModelError, RequestError
from palmette.interpreter.backends.http_client import HttpClient
from palmette.interpreter.backends.http_dialect import Dialect
from palmette.interpreter.backends.http_errors import NotThere, TryAgain
from palmette.interpreter.backends.http_palmette import CONSTRAINTS, PalmetteDialect
from palmette.types import Capabilities

if TYPE_CHECKING:
    from palmette.runtime.tokenizer import Tokenizer

_SECONDS = 60.0  # of silence in which a server must tell what it is


@dataclass(frozen=True, slots=True)
class Server:
    """Who is there. `identity` changes when another model is served."""

    dialect: Dialect
    tokenizer: Tokenizer
    capabilities: Capabilities
    identity: tuple[str, ...]


async def model_info(client: HttpClient) -> dict[str, Any]:
    """What the server says of its model.

    Raises:
        RequestError: what answers is no such server.
        TryAgain, PalmetteError: as HttpClient.get.
    """
    return await _get_json(client, "/get_model_info", "/model_info")


async def server_info(client: HttpClient) -> dict[str, Any]:
    """What the server says of itself; raises as `model_info`."""
    return await _get_json(client, "/server_info", "/get_server_info")


def identity(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the model behind a `model_info`."""
    ours = _ours(info)
    return (str(info.get("model_path")), str(ours.get("digest") if ours else info.get("weight_version")))


async def meet(client: HttpClient, tokenizer: str | Path | None) -> Server:
    """Ask who is there.

    Args:
        tokenizer: path of the model's tokenizer; None = the server's own.

    Raises:
        InvalidOption: the server keeps its tokenizer to itself and none was given.
        ModelError: the tokenizer cannot be read.
        TryAgain, PalmetteError: as HttpClient.get.
    """
    info = await model_info(client)
    ours = _ours(info)
    name = str(info.get("served_model_name") or info.get("model_path") or "")
    dialect: Dialect
    if ours is not None:
        features = ours.get("features") or ()
        digest = str(ours.get("digest") or "")
        if tokenizer is None:
            made = await asyncio.to_thread(_built, digest, await client.get("/palmette/tokenizer", seconds=_SECONDS))
        else:
            made = await asyncio.to_thread(_read, tokenizer)
        kinds = ours.get("constraints")
        constraints = frozenset(map(str, kinds)) if kinds else CONSTRAINTS
        dialect = PalmetteDialect(
            constraints=constraints, takes_hints="program" in features, takes_ends="ends" in features
        )
        context_len = ours.get("context_len")
    else:
        from palmette.interpreter.backends.http_sglang import SGLangDialect, Spelling

        digest = ""
        made = await asyncio.to_thread(_read, tokenizer or _path_here(client, info))
        dialect = SGLangDialect(Spelling(made.token_bytes, made.eos_ids))
        context_len = await _context_len(client)
    capabilities = Capabilities(
        chat=made.chat_template.exists,
        constraints=dialect.constraints,
        chat_template=made.chat_template.source or "",
        context_len=context_len if isinstance(context_len, int) and context_len > 0 else 1 << 30,
        model=name,
        digest=digest,
    )
    return Server(dialect, made, capabilities, identity(info))


def _ours(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = info.get("palmette")
    return found if isinstance(found, Mapping) else None


async def _get_json(client: HttpClient, *paths: str) -> dict[str, Any]:
    """The object at the first of the paths that is there."""
    for path in paths:
        try:
            data = msgspec.json.decode(await client.get(path, seconds=_SECONDS))
        except msgspec.DecodeError as error:
            raise RequestError(
                f"{client.base_url}{path} is no JSON: is it a server of Palmette's or SGLang's?"
            ) from error
        except NotThere:
            if path == paths[-1]:
                raise
            continue
        if isinstance(data, dict):
            return data
        raise RequestError(f"{client.base_url}{path} is no JSON object: is it a server of Palmette's or SGLang's?")
    raise AssertionError("there is a last path")


async def _context_len(client: HttpClient) -> object:
    try:
        info = await server_info(client)
    except (RequestError, TryAgain):
        return None
    return info.get("context_length") or info.get("max_model_len")


def _path_here(client: HttpClient, info: Mapping[str, Any]) -> str:
    for name in ("tokenizer_path", "model_path"):
        path = info.get(name)
        if isinstance(path, str) and path and Path(path).exists():
            return path
    raise InvalidOption(
        "tokenizer",
        None,
        f"the path of the tokenizer of {info.get('model_path')!r}, which {client.base_url} serves and which is not on "
        f"this machine: RuntimeEndpoint(base_url, tokenizer=...) takes a directory with tokenizer.json or a .gguf file",
    )


def _read(path: str | Path) -> Tokenizer:
    from palmette.runtime.models.tokenizer_of import tokenizer_of

    return tokenizer_of(path)[0]


@lru_cache(maxsize=4)
def _built(digest: str, data: bytes) -> Tokenizer:
    """A server's tokenizer, made once for all endpoints that speak to the same model."""
    from palmette.runtime.tokenizer_data import tokenizer_of_data

    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ModelError(f"the server's tokenizer cannot be read: {error}") from error
    return tokenizer_of_data(found)
