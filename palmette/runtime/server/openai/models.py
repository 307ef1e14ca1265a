"""/v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.runtime.server.http import HTTPError, json_response, service_of
from palmette.runtime.server.service import ModelCard


async def models(request: Request) -> Response:
    return json_response({"object": "list", "data": [_listed(service_of(request).model)]})


async def model(request: Request) -> Response:
    card = service_of(request).model
    name = request.path_params["name"]
    if name != card.name:
        raise HTTPError(404, f"there is no model {name[:200]!r} here; the one that is served is {card.name!r}",
                        code="model_not_found", param="model")  # fmt: skip
    return json_response(_listed(card))


def _listed(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "palmette",
        "root": card.name,
        "parent": None,
        "max_model_len": card.context_len,
    }


ROUTES = (("/v1/models", ("GET",), models), ("/v1/models/{name:path}", ("GET",), model))
