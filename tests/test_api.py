"""The names that edge-embed promises, and that importing them costs nothing until they are used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import edge_embed
from edge_embed import Embedder, errors, testing, types


def test_the_exported_names() -> None:
    expected = (
        "Cancellation EdgeEmbedError EmbedResult Embedder EmbeddingCache RankedDocument RerankResult Reranker Usage "
        "__version__"
    )
    assert expected.split() == sorted(edge_embed.__all__)


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("EdgeEmbedError", errors.EdgeEmbedError),
        ("EmbedResult", types.EmbedResult),
        ("Embedder", Embedder),
        ("Usage", types.Usage),
    ],
)
def test_an_exported_name_is_the_thing_itself(name: str, home: object) -> None:
    assert home is getattr(edge_embed, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edge_embed' has no attribute 'Nothing'"):
        _ = edge_embed.Nothing


def test_the_public_methods_of_an_embedder() -> None:
    expected = [
        "close", "device", "embed", "encode", "encode_document", "encode_query", "finish", "forget", "from_parts",
        "prepare", "prompt_of", "run", "similarity", "tokenize",
    ]  # fmt: skip
    assert expected == sorted(name for name in dir(Embedder) if not name.startswith("_"))


def test_the_signature_of_encode_follows_sentence_transformers() -> None:
    parameters = list(inspect.signature(Embedder.encode).parameters)
    assert ["self", "sentences", "prompt_name", "prompt"] == parameters[:4]
    assert {"truncate_dim", "precision", "show_progress_bar"} <= set(parameters)


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_queries_and_documents_take_what_encode_takes(method: str) -> None:
    own = inspect.signature(getattr(Embedder, method)).parameters
    encode = inspect.signature(Embedder.encode).parameters
    assert {name: str(encode[name]) for name in own} == {name: str(parameter) for name, parameter in own.items()}
    assert set(encode) - set(own) <= {"instruction", "role"}


def test_importing_loads_no_native_library_and_no_numpy() -> None:
    code = (
        "import sys, edge_embed; edge_embed.__all__;"
        "print(sorted({'numpy', 'llama_cpp', 'tokenizers', 'gguf', 'safetensors'} & set(sys.modules)))"
    )
    assert "[]\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_embedder_class_is_imported_without_the_native_library() -> None:
    code = "import sys; from edge_embed import Embedder; print('llama_cpp' in sys.modules)"
    assert "False\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_fake_engine_gives_vectors_that_can_be_read() -> None:
    """Value i counts the tokens that are i modulo the size; a text's bytes stand between tokens 1 and 2, plus 3."""
    raw = testing.fake_embedder().encode("AA", normalize=False)
    expected = [0.0] * 16
    expected[1] = expected[2] = 1.0
    expected[(ord("A") + 3) % 16] += 2.0
    assert expected == raw.tolist()


@pytest.mark.parametrize(("part", "whole"), [("prepare", "embed"), ("encode", "embed")])
def test_a_part_of_a_call_takes_the_options_of_the_whole(part: str, whole: str) -> None:
    own = dict(inspect.signature(getattr(Embedder, part)).parameters)
    own.pop("sentences", None)
    options = {name: parameter for name, parameter in own.items() if parameter.kind is parameter.KEYWORD_ONLY}
    of_the_whole = inspect.signature(getattr(Embedder, whole)).parameters
    assert len(options) >= 7
    assert {name: str(of_the_whole[name]) for name in options} == {name: str(value) for name, value in options.items()}
