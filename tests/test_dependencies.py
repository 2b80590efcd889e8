"""Few dependencies, all of them known, all of them in versions that we say we work with."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from tests.dependencies import brought

# Each package that reaches a user's machine. One that is not here is looked at before it comes: who makes it, what for.
CORE = {
    "llama-cpp-python", "numpy", "tokenizers", "huggingface-hub", "gguf", "click", "tomli",
    # of llama-cpp-python
    "diskcache", "jinja2", "markupsafe", "typing-extensions",
    # of huggingface-hub and tokenizers, in any version that we take
    "anyio", "certifi", "charset-normalizer", "exceptiongroup", "filelock", "fsspec", "h11", "hf-xet", "httpcore",
    "httpcore2", "httpx", "httpx2", "idna", "packaging", "pyyaml", "requests", "shellingham", "sniffio", "tqdm",
    "truststore", "typer", "typer-slim", "urllib3",
}  # fmt: skip
SERVER = {
    "starlette", "uvicorn", "httptools", "uvloop", "orjson", "pydantic", "prometheus-client",
    # of pydantic
    "annotated-types", "pydantic-core", "typing-inspection",
}  # fmt: skip
GRAMMARS = ("bash", "c", "c-sharp", "cpp", "go", "java", "javascript", "php", "python", "ruby", "rust", "typescript")
SEARCH = {
    "lancedb", "lxml", "markdown-it-py", "pathspec", "pypdf", "python-docx", "tree-sitter", "watchfiles",
    *(f"tree-sitter-{language}" for language in GRAMMARS),
    # of lancedb; its client of remote namespaces is not used
    "deprecation", "overrides", "pyarrow", "pydantic", "lance-namespace", "lance-namespace-urllib3-client",
    "annotated-types", "pydantic-core", "typing-inspection", "python-dateutil", "six", "tzdata",
    # of markdown-it-py
    "mdurl",
}  # fmt: skip


@pytest.mark.parametrize(
    ("extras", "known"),
    [((), CORE), (("server",), CORE | SERVER), (("search",), CORE | SEARCH), (("bulk",), CORE | SEARCH)],
)
def test_no_package_comes_unseen(extras: tuple[str, ...], known: set[str]) -> None:
    assert set(brought(*extras)) - known == set()


def test_every_version_is_one_that_is_asked_for() -> None:
    asked: list[Requirement] = [one for found in brought("server").values() for one in found]
    assert [] == [str(one) for one in asked if not one.specifier.contains(version(one.name), prereleases=True)]


def test_all_of_the_servers_own_packages_are_used() -> None:
    """None is declared for nothing: uvicorn takes up two of them by itself, where they are."""
    from pathlib import Path

    sources = "".join(path.read_text() for path in Path(__file__).parents[1].glob("edge_embed/**/*.py"))
    declared = {"starlette", "uvicorn", "httptools", "uvloop", "orjson", "pydantic", "prometheus_client"}
    assert {name for name in declared if f"import {name}" not in sources and f"from {name}" not in sources} == {
        "uvloop",
        "httptools",
    }
