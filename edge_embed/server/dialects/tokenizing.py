"""Texts to tokens and back.

text-embeddings-inference's ``/tokenize`` and ``/decode``, and the shapes that llama-server (``content``) and vLLM
(``prompt``) have for the same paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import Field

from edge_embed.errors import RequestShapeError
from edge_embed.server.bodies import Body
from edge_embed.server.dialects.vocabulary import one_of, role_of
from edge_embed.server.endpoint import Call, Endpoint, Reply
from edge_embed.server.families import RERANK, TEI
from edge_embed.server.requests import Tokenized, TokenizeRequest
from edge_embed.tokenizer import Token
from edge_embed.tokens import Vocabulary

_FEW: Final = 2048  # tokens that are described in about a millisecond


class TokenizeBody(Body):
    """``POST /tokenize``: one of ``inputs`` (TEI), ``content`` (llama-server), ``prompt`` (vLLM)."""

    inputs: str | list[str] | None = Field(None, description="a string or a list of strings")
    content: str | None = Field(None, description="a string: the answer is an object of tokens, as llama-server's")
    prompt: str | None = Field(
        None, description="a string: the answer counts its tokens, as vLLM's; with inputs, text put before each"
    )
    model: str | None = Field(None, description="a name from /v1/models")
    prompt_name: str | None = Field(None, description="one of the model's prompts")
    input_type: str | None = Field(None, description="query or document")
    add_special_tokens: bool | None = Field(None, description="true or false")
    add_special: bool | None = Field(None, description="the same as add_special_tokens")
    with_pieces: bool | None = Field(None, description="whether each token comes with what it stands for")
    return_token_strs: bool | None = Field(None, description="whether tokens come as the vocabulary spells them, too")


class DecodeBody(Body):
    """``POST /decode`` and ``/detokenize``: ``ids`` (TEI) or ``tokens`` (llama-server, vLLM)."""

    ids: list[int] | list[list[int]] | None = Field(
        None, union_mode="left_to_right", description="a list of token ids, or of lists of them"
    )
    tokens: list[int] | None = Field(None, description="a list of token ids")
    model: str | None = Field(None, description="a name from /v1/models")
    skip_special_tokens: bool | None = Field(None, description="true or false")


class SimpleToken(Body):
    """A token, with the bytes of its input that it stands for; none for a special one, and where that is not known."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Counted(Body):
    """vLLM's answer."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Ids(Body):
    """llama-server's answer."""

    tokens: list[int] | list[dict[str, Any]]


class Decoded(Body):
    """llama-server's and vLLM's answer."""

    content: str
    prompt: str


async def tokenize(body: TokenizeBody, call: Call) -> Reply:
    """All tokens of texts: nothing is cut, and no prompt stands before them that the request does not name."""
    special = one_of(add_special_tokens=body.add_special_tokens, add_special=body.add_special)
    if body.inputs is not None:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        if not texts:
            raise RequestShapeError("inputs is empty", param="inputs", hint="give at least one text")
        done = await _tokens(body, call, texts, special=special is not False, prompt=body.prompt)
        return await _made(done, lambda: [[_simple(token, done.vocabulary) for token in own] for own in done.tokens])
    if body.content is not None:
        done = await _tokens(body, call, [body.content], special=special is True)
        return await _made(done, lambda: {"tokens": _plain(done, with_pieces=body.with_pieces is True)})
    if body.prompt is not None:
        done = await _tokens(body, call, [body.prompt], special=special is not False)
        return await _made(done, lambda: _counted(done, call, spelled=body.return_token_strs is True))
    raise RequestShapeError("inputs is missing", param="inputs", hint="a text or a list; or content, or prompt")


async def _made(done: Tokenized, content: Callable[[], Any]) -> Reply:
    """An answer, made in a thread where it has so many tokens that other requests would wait for it."""
    few = sum(map(len, done.tokens)) <= _FEW
    return Reply(content() if few else await asyncio.to_thread(content))


async def _tokens(
    body: TokenizeBody, call: Call, texts: Sequence[str], *, special: bool, prompt: str | None = None
) -> Tokenized:
    request = TokenizeRequest(
        texts=tuple(texts),
        model=body.model,
        role=role_of(body.input_type),
        prompt=prompt,
        prompt_name=body.prompt_name,
        special=special,
    )
    return await call.tokenize(request)


def _simple(token: Token, vocabulary: Vocabulary) -> dict[str, Any]:
    text, stop = token.text, token.stop
    if text is None:
        text = vocabulary.piece(token.token_id).raw.decode(errors="replace")
    special = token.text is None and vocabulary.is_special(token.token_id)
    return {"id": token.token_id, "text": text, "special": special, "start": token.start, "stop": stop}


def _plain(done: Tokenized, *, with_pieces: bool) -> list[Any]:
    """Ids, or ids with pieces: a text, or the bytes of a part of a letter."""
    ids = [token.token_id for token in done.tokens[0]]
    if not with_pieces:
        return ids
    pieces: list[Any] = []
    for token_id in ids:
        raw = done.vocabulary.piece(token_id).raw
        try:
            pieces.append({"id": token_id, "piece": raw.decode()})
        except UnicodeDecodeError:
            pieces.append({"id": token_id, "piece": list(raw)})
    return pieces


def _counted(done: Tokenized, call: Call, *, spelled: bool) -> dict[str, Any]:
    ids = [token.token_id for token in done.tokens[0]]
    loaded = next((one for one in call.service.registry.loaded() if one.served is done.served), None)
    return {
        "count": len(ids),
        "max_model_len": (done.served.info if loaded is None else loaded.model.info).max_tokens,
        "tokens": ids,
        "token_strs": [done.vocabulary.piece(token_id).token for token_id in ids] if spelled else None,
    }


async def decode(body: DecodeBody, call: Call) -> Reply:
    """The texts that lists of ids stand for, special tokens left out."""
    ids = body.ids if body.ids is not None else body.tokens
    if not ids:
        raise RequestShapeError("ids is missing or empty", param="ids", hint="a list of token ids")
    lists = [ids] if isinstance(ids[0], int) else ids
    return Reply(await _spelled(body, call, lists, skip_special=body.skip_special_tokens is not False))


async def detokenize(body: DecodeBody, call: Call) -> Reply:
    """The text that ids stand for, special tokens and all."""
    tokens = body.tokens if body.tokens is not None else body.ids
    if tokens is None:
        raise RequestShapeError("tokens is missing", param="tokens", hint="a list of token ids")
    if any(isinstance(token, list) for token in tokens):
        raise RequestShapeError("tokens has lists in it", param="tokens", hint="one list; /decode takes several")
    (text,) = await _spelled(body, call, [tokens], skip_special=body.skip_special_tokens is True)
    return Reply({"content": text, "prompt": text})


async def _spelled(body: DecodeBody, call: Call, lists: Any, *, skip_special: bool) -> list[str]:
    return await call.service.spell(body.model, lists, skip_special=skip_special)


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/tokenize", TEI, tokenize, "The tokens of texts.", TokenizeBody,
        list[list[SimpleToken]] | Counted | Ids,
    ),
    Endpoint("POST", "/decode", TEI, decode, "The texts that token ids stand for.", DecodeBody, list[str]),
    Endpoint("POST", "/detokenize", RERANK, detokenize, "The text that token ids stand for.", DecodeBody, Decoded),
)  # fmt: skip
