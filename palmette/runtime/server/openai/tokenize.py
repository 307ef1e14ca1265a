"""/tokenize and /detokenize: what a prompt or a conversation is to the model. Bodies as vLLM has them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import InvalidOption
from palmette.runtime.server.http import json_response, read_body, service_of
from palmette.runtime.server.openai.logprobs import token_text
from palmette.runtime.server.openai.messages import prompt_of, tools_of, turns_of
from palmette.runtime.server.openai.params import check_body, check_token_ids
from palmette.runtime.server.openai.schema import DetokenizeBody, TokenizeBody
from palmette.types import TextPiece


async def tokenize(request: Request) -> Response:
    body = await read_body(request, TokenizeBody)
    service = service_of(request)
    card = check_body(service, body)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidOption("prompt", body.prompt and "...", "either prompt or messages")
    if body.messages is not None:
        # A template writes the model's beginning itself, so nothing is added unless it is asked for.
        pieces = await prompt_of(service, body, turns_of(body.messages), tools_of(body.tools))
        begin = service.tokenizer.begin_ids() if body.add_special_tokens else ()
    else:
        pieces = (TextPiece(body.prompt or ""),)
        begin = () if body.add_special_tokens is False else service.tokenizer.begin_ids()
    tokens = (*begin, *await service.encode(pieces))
    strings = [token_text(service.tokenizer, token) for token in tokens] if body.return_token_strs else None
    return json_response(
        {"count": len(tokens), "max_model_len": card.context_len, "tokens": tokens, "token_strs": strings}
    )


async def detokenize(request: Request) -> Response:
    """The text of tokens; special ones are shown by their names."""
    body = await read_body(request, DetokenizeBody)
    service = service_of(request)
    check_token_ids(check_body(service, body), body.tokens, "tokens")
    data = b"".join(map(service.tokenizer.shown_bytes, body.tokens))
    return json_response({"prompt": data.decode("utf-8", "replace")})


ROUTES = (("/tokenize", ("POST",), tokenize), ("/detokenize", ("POST",), detokenize))
