"""The MCP server, asked by the client of the mcp package: in this process, and over stdio as an assistant does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from edge_embed import Embedder, Reranker
from edge_embed.errors import EngineClosedError
from edge_embed.integrations.mcp import MAX_TEXTS, Models, build
from tests.commands import run
from tests.integrations.conftest import TEXTS

COMMAND = StdioServerParameters(command=sys.executable, args=["-m", "edge_embed.cli", "mcp"], env={**os.environ})


def call(server: Any, tool: str, mode: str = "auto", **arguments: Any) -> Any:
    """What a tool answers; AssertionError with its text where it says that something is wrong."""

    async def ask() -> Any:
        async with Client(server, mode=mode) as client:
            return await client.call_tool(tool, arguments)

    found = asyncio.run(ask())
    assert not found.is_error, found.content[0].text
    return found.structured_content


def test_the_tools_describe_themselves(embedder: Embedder) -> None:
    async def ask() -> Any:
        async with Client(build(Models(lambda: embedder))) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(ask())}
    assert set(tools) == {"embed", "rerank"}
    for tool in tools.values():
        assert tool.annotations.read_only_hint
        assert tool.description
        assert tool.input_schema["properties"]["texts"]["maxItems"] == MAX_TEXTS


@pytest.mark.parametrize("kind", ["query", "document", "plain"])
def test_vectors_are_the_librarys(kind: str, embedder: Embedder) -> None:
    found = call(build(Models(lambda: embedder)), "embed", texts=TEXTS, kind=kind, dimensions=7)
    role: Any = None if kind == "plain" else kind
    assert found["embeddings"] == embedder.encode(TEXTS, role=role, truncate_dim=7).tolist()
    assert (found["model"], found["dimensions"], found["truncated"]) == ("fake", 7, [])


def test_what_was_cut_is_said(embedder: Embedder) -> None:
    found = call(build(Models(lambda: embedder)), "embed", texts=["x", "y" * 600])
    assert found["truncated"] == [1]


def test_texts_are_ranked_by_the_reranker(embedder: Embedder, reranker: Reranker) -> None:
    server = build(Models(lambda: embedder, lambda: reranker))
    texts = ["short", "the longest of them", "a longer one"]
    found = call(server, "rerank", query="q", texts=texts, top_k=2)
    ranked = reranker.rank("q", texts, top_k=2)
    assert found["scored_by"] == "fake"
    assert found["results"] == [{"index": r.index, "score": r.score, "text": r.document} for r in ranked]


def test_without_one_by_cosines(embedder: Embedder) -> None:
    server = build(Models(lambda: embedder))
    found = call(server, "rerank", query="x", texts=TEXTS[:4])
    cosines = embedder.similarity(embedder.encode_query("x"), embedder.encode_document(TEXTS[:4]))[0]
    assert found["scored_by"] == "cosine"
    assert [r["index"] for r in found["results"]] == (-cosines).argsort(kind="stable").tolist()
    assert [r["score"] for r in found["results"]] == sorted(map(float, cosines), reverse=True)
    assert call(server, "rerank", query="x", texts=[]) == {"scored_by": "cosine", "results": []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["x"], "dimensions": 99}, "truncate_dim"),
        ({"texts": ["x"], "kind": "poem"}, "kind"),
        ({"texts": ["x"] * (MAX_TEXTS + 1)}, "256"),
        ({"texts": "x"}, "list"),
        ({"texts": [3]}, "string"),
    ],
)
def test_what_is_wrong_is_said_to_the_assistant(arguments: dict[str, Any], message: str, embedder: Embedder) -> None:
    with pytest.raises(AssertionError, match=message):
        call(build(Models(lambda: embedder)), "embed", **arguments)


def test_models_are_opened_once_when_needed_and_closed_at_the_end(embedder: Embedder) -> None:
    opened: list[int] = []

    def opening() -> Embedder:
        opened.append(1)
        return embedder

    models = Models(opening)
    server = build(models)
    assert not opened
    call(server, "embed", texts=["x"])
    call(server, "embed", texts=["y"])
    assert len(opened) == 1
    models.close()
    with pytest.raises(EngineClosedError):
        embedder.encode("x")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_command_speaks_it(mode: str) -> None:
    """The handshake of earlier revisions, too."""
    found = call(COMMAND, "embed", mode, texts=TEXTS[:3])
    with Embedder() as original:
        assert found["embeddings"] == original.encode(TEXTS[:3]).tolist()


def test_stdout_carries_messages_alone_and_the_end_of_input_ends_it() -> None:
    """Also while a model is loaded; nothing of it is in the way of the protocol."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "embed", "arguments": {"texts": ["x"], "dimensions": 3}},
        },
    ]
    process = subprocess.Popen(
        [COMMAND.command, *COMMAND.args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for message in messages:
            process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.stdin.close()
        assert process.stdout.read() == ""
    assert [answer["id"] for answer in answers] == [1, 2]
    assert process.returncode == 0


def test_files_that_were_indexed_are_searched(tmp_path: Path) -> None:
    """By the command, over stdio, with the model that the database names; what is found is what `search` finds."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Animals\n\nA cat sleeps on the windowsill.\n")
    (tmp_path / "notes" / "b.txt").write_text("The central bank raised interest rates.\n")
    indexed = run("index", tmp_path / "notes", "--db", tmp_path / "db")
    assert indexed.exit_code == 0, indexed.stderr
    server = StdioServerParameters(command=COMMAND.command, args=[*COMMAND.args, "--db", str(tmp_path / "db")])
    (found,) = call(server, "search", query="Where is the kitten?", limit=1)["results"]
    assert found["path"] == str(tmp_path / "notes" / "a.md")
    assert "A cat sleeps" in found["text"]
    shown = run("search", "Where is the kitten?", "--db", tmp_path / "db", "--json", "-k", "1")
    (expected,) = json.loads(shown.stdout)["results"]
    assert {name: expected[name] for name in found} == found
    with pytest.raises(AssertionError, match="question is empty"):
        call(server, "search", query=" ")


def test_a_database_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    result = run("mcp", "--db", tmp_path / "none")
    assert (result.exit_code != 0, result.stdout) == (True, "")
    assert "none" in result.stderr


def test_a_model_that_is_not_here_is_said_at_the_start() -> None:
    for option in ("--model", "--reranker"):
        result = run("mcp", option, "no-such-model.gguf")
        assert (result.exit_code, result.stdout) == (3, "")
        assert "no-such-model.gguf" in result.stderr
