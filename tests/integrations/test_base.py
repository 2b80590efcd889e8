"""What all plugs rely on: one model for all of its users, errors before the first text, extras that are named."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, Reranker
from edge_embed.errors import (
    InvalidDimensionError,
    InvalidOptionError,
    InvalidTextError,
    ModelMissingError,
    ModelNotFoundError,
)
from edge_embed.integrations import base, extra
from edge_embed.integrations.base import Vectors, model_name, open_embedder, open_reranker
from tests.integrations.conftest import TEXTS

PLUGS = ["chroma", "haystack", "lancedb", "langchain", "llama_index", "llm", "mcp", "mteb"]


def test_a_model_is_opened_once_for_all_that_name_it(bert_path: Path) -> None:
    first, second = Vectors(bert_path), Vectors(str(bert_path), truncate_dim=8)
    assert first.embedder is second.embedder
    assert second.dimensions == len(second.query("x")) == 8


def test_it_goes_with_its_last_user(bert_path: Path) -> None:
    found = weakref.ref(open_embedder(bert_path))
    gc.collect()
    assert found() is None


def test_one_that_was_closed_is_opened_again(bert_path: Path) -> None:
    first = open_embedder(bert_path)
    first.close()
    assert open_embedder(bert_path) is not first


def test_a_reranker_likewise(reranker_path: Path) -> None:
    first = open_reranker(reranker_path)
    assert open_reranker(reranker_path) is first
    assert open_reranker(first) is first


def test_queries_and_documents_get_their_prompts_and_keep_their_order(embedder: Embedder) -> None:
    vectors = Vectors(embedder)
    assert vectors.queries(TEXTS) == embedder.encode_query(TEXTS).tolist()
    assert vectors.documents(TEXTS) == embedder.encode_document(TEXTS).tolist()
    assert vectors.queries(TEXTS) != vectors.documents(TEXTS)
    assert vectors.queries([]) == vectors.documents([]) == []


def test_an_instruction_is_the_queries_alone(embedder: Embedder) -> None:
    vectors = Vectors(embedder, instruction="Find it", truncate_dim=5)
    assert vectors.query("x") == embedder.encode("x", instruction="Find it", truncate_dim=5).tolist()
    assert vectors.documents(["x"]) == embedder.encode_document(["x"], truncate_dim=5).tolist()


def test_the_bundled_model_is_the_default() -> None:
    with Embedder() as original:
        expected = original.encode(TEXTS)
    assert np.array_equal(expected, np.array(Vectors().documents(TEXTS), dtype=np.float32))


def test_options_are_refused_at_once(embedder: Embedder) -> None:
    with pytest.raises(InvalidDimensionError):
        Vectors(embedder, truncate_dim=17)
    with pytest.raises(ModelNotFoundError):
        Vectors("no-such-model.gguf")
    with pytest.raises(ModelMissingError):
        Vectors("qwen3-embedding-0.6b")
    embedder.info = type(embedder.info)(**{**_fields(embedder), "instruction_template": None})
    with pytest.raises(InvalidOptionError, match="instruction"):
        Vectors(embedder, instruction="Find it")


def _fields(embedder: Embedder) -> dict[str, object]:
    return {name: getattr(embedder.info, name) for name in embedder.info.__dataclass_fields__}


def test_what_is_no_text_is_refused_by_its_place(embedder: Embedder) -> None:
    with pytest.raises(InvalidTextError, match="text 1"):
        Vectors(embedder).documents(["x", None])  # type: ignore[list-item]


def test_only_a_name_can_be_written_down(embedder: Embedder, reranker: Reranker) -> None:
    assert model_name(None) is None
    assert model_name(Path("a.gguf")) == model_name("a.gguf") == "a.gguf"
    for opened in (embedder, reranker):
        with pytest.raises(InvalidOptionError, match="opened by the program"):
            model_name(opened)


def test_a_missing_library_names_its_extra() -> None:
    message = r"no_such_library is not installed: pip install 'edge-embed\[x\]'"
    with pytest.raises(ModuleNotFoundError, match=message), extra("x"):
        import no_such_library  # noqa: F401


@pytest.mark.parametrize("name", PLUGS)
def test_every_plug_without_its_library_says_so(name: str) -> None:
    """In a process that finds none of the libraries."""
    libraries = "chromadb haystack lancedb langchain_core llama_index llm mcp mteb".split()
    code = f"import sys; sys.modules.update(dict.fromkeys({libraries!r})); import edge_embed.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install 'edge-embed[{name.replace('_', '-')}]'" in done.stderr.splitlines()[-1]


def test_no_plug_imports_torch() -> None:
    sources = list(Path(str(base.__file__)).parent.glob("*.py"))
    assert len(sources) > len(PLUGS)
    assert [path for path in sources if re.search(r"(import|from) torch", path.read_text())] == []
