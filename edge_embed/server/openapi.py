"""The description of the interface, OpenAPI 3.1, made of the very table that routes the requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from edge_embed import __version__, errors
from edge_embed.errors import EdgeEmbedError
from edge_embed.server.bodies import Body
from edge_embed.server.endpoint import Endpoint
from edge_embed.server.families import Family

_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")
_REF: Final = "#/components/schemas/{model}"

# What may go wrong with a request, by what it is.
_ANY: Final = (errors.ForeignOriginError, errors.ComputeError, errors.UnsupportedModelError)
_KEYED: Final = (errors.AccessDeniedError,)
_ADMITTED: Final = (errors.QueueFullError, errors.NotReadyError)
_BODY: Final = (
    errors.RequestShapeError,
    errors.BodyEncodingError,
    errors.PayloadTooLargeError,
    errors.RequestTimeoutError,
    errors.InvalidTextError,
    errors.TextTooLongError,
    errors.InvalidOptionError,
    errors.InvalidDimensionError,
    errors.UnknownPromptError,
    errors.WrongModelKindError,
    errors.ModelNotFoundError,
    errors.ModelMissingError,
    errors.ModelFileError,
    errors.EngineUnavailableError,
    errors.EngineMemoryError,
    errors.EngineClosedError,
    errors.NonFiniteError,
    errors.DeadlineExceededError,
    errors.HubAccessError,
    errors.HubUnavailableError,
    errors.DownloadError,
)
_NAMED: Final = (errors.ModelNotFoundError,)

# What a body may say, for people who try a route: of these, what it takes, and nothing else of the many things.
_TEXTS: Final = ["A cat sleeps on the windowsill.", "Interest rates rose."]
_EXAMPLE: Final = {"input": _TEXTS, "inputs": _TEXTS, "query": "Where is the kitten?", "documents": _TEXTS}


def describe(dialects: Iterable[Sequence[Endpoint]], *, keyed: bool) -> dict[str, Any]:
    """The description of these routes.

    Args:
        dialects: their endpoints.
        keyed: whether the server has keys.
    """
    endpoints = [endpoint for dialect in dialects for endpoint in dialect]
    shapes, schemas = _shapes(endpoints)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, shapes, keyed=keyed)
        schemas[_error_name(endpoint.family)] = _error_shape(endpoint.family)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge-embed",
            "version": __version__,
            "description": "Embeddings and scores from models on this machine, for the clients of several services. "
            "Fields that are not listed are ignored. `model` may be left out, and may have `:query` or `:document` "
            "behind it for the model's prompts.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(_tag(endpoint) for endpoint in endpoints)],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _shapes(endpoints: Sequence[Endpoint]) -> tuple[dict[tuple[int, str], Any], dict[str, Any]]:
    """The schema of each type, by its identity and use, and those that they refer to."""
    inputs: list[Any] = [
        (id(one.body), "validation", TypeAdapter(one.body)) for one in _unlike(endpoints, "body") if one.body
    ]
    outputs: list[Any] = [
        (id(one.returns), "serialization", TypeAdapter(one.returns)) for one in _unlike(endpoints, "returns")
    ]
    found, definitions = TypeAdapter.json_schemas([*inputs, *outputs], ref_template=_REF)
    return {(int(key), mode): schema for (key, mode), schema in found.items()}, definitions.get("$defs", {})


def _unlike(endpoints: Sequence[Endpoint], field: str) -> list[Endpoint]:
    return list({id(getattr(one, field)): one for one in endpoints}.values())


def _operation(endpoint: Endpoint, shapes: dict[tuple[int, str], Any], *, keyed: bool) -> dict[str, Any]:
    family = endpoint.family
    answer: dict[str, Any] = {"description": "The answer."}
    if endpoint.returns is not None:
        answer["content"] = {endpoint.media_type: {"schema": shapes[id(endpoint.returns), "serialization"]}}
    operation: dict[str, Any] = {
        "tags": [_tag(endpoint)],
        "summary": endpoint.summary,
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method}{endpoint.path}".lower()).strip("_"),
        "responses": {"200": answer, **_refusals(endpoint, keyed=keyed)},
    }
    names = _PARAMETER.findall(endpoint.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if endpoint.body is not None:
        schema = shapes[id(endpoint.body), "validation"]
        content = {"schema": schema, **_example(endpoint.body)}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    if keyed and (not endpoint.public or endpoint.keyed):
        operation["security"] = [{"bearer": []}, {"key": []}]
    assert family.name
    return operation


def _example(body: type[Body]) -> dict[str, Any]:
    said = {name: value for name, value in _EXAMPLE.items() if name in body.model_fields}
    try:
        body.model_validate(said)
    except ValidationError:
        return {}
    return {"example": said} if said else {}


def _refusals(endpoint: Endpoint, *, keyed: bool) -> dict[str, Any]:
    """What is answered instead, by status, in the shape of the family."""
    kinds: list[type[EdgeEmbedError]] = list(_ANY)
    if keyed and (not endpoint.public or endpoint.keyed):
        kinds += _KEYED
    kinds += _ADMITTED if not endpoint.public else (errors.NotReadyError,)
    if endpoint.body is not None:
        kinds += _BODY
    if "{" in endpoint.path:
        kinds += _NAMED
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        said = by_status.setdefault(endpoint.family.status(_sample(kind)), [])
        sentence = (kind.__doc__ or "").partition("\n")[0]
        if sentence not in said:
            said.append(sentence)
    schema = {"$ref": _REF.format(model=_error_name(endpoint.family))}
    return {
        str(status): {
            "description": f"{_phrase(status)}: {' '.join(said)}",
            "content": {"application/json": {"schema": schema}},
        }
        for status, said in sorted(by_status.items())
    }


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"


def _sample(kind: type[EdgeEmbedError]) -> EdgeEmbedError:
    """An error of a kind, made without the arguments that its own constructor wants."""
    error = kind.__new__(kind)
    EdgeEmbedError.__init__(error, "what was wrong", hint="what to do")
    return error


def _tag(endpoint: Endpoint) -> str:
    return endpoint.family.name


def _error_name(family: Family) -> str:
    return re.sub(r"\W+", "", family.name.title()) + "Error"


def _error_shape(family: Family) -> dict[str, Any]:
    return _shape_of(family.body(errors.RequestShapeError("what was wrong"), 400))


def _shape_of(value: Any) -> dict[str, Any]:
    """The schema of a value like this one; what is None here is a string at times."""
    if isinstance(value, dict):
        properties = {name: _shape_of(one) for name, one in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": ["string", "null"]} if value is None else {"type": "string"}
