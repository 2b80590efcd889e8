"""The import rule: arrows point down only. The tables below are the rule; the rest reads the sources' syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from the rows above its own, and from its own package. Packages stand for all their modules.
LAYERS = (
    ("errors", "keys", "merges", "pipelines"),
    ("cancellation", "durations", "model_shape"),
    ("types",),
    ("architectures", "batching", "files", "gguf_header", "paths", "postprocess", "progress", "prompts", "rebuild"),
    ("metadata", "projection", "store", "together"),
    ("cache", "catalogue", "hub", "projection_file", "rerank_info", "soundness"),
    ("model_info", "sources", "tokenizer"),
    ("engine",),
    ("provision",),
    ("encode_methods", "inputs", "jobs", "planning", "running", "waiting"),
    ("embedder", "reranker"),
    ("scheduler", "testing", "tokens", "two_stage"),
    ("bulk", "registry", "search"),
    ("corpus", "integrations"),
    ("server",),
    ("cli",),
)

# These compute, and nothing else: no files, no environment, no output.
PURE = (
    "batching",
    "durations",
    "errors",
    "keys",
    "merges",
    "model_shape",
    "pipelines",
    "postprocess",
    "projection",
    "prompts",
    "types",
    "waiting",
)
IMPURE_LIBRARIES = {"io", "logging", "os", "pathlib", "shutil", "socket", "subprocess", "sys", "tempfile"}

# The converter shares with the runtime only what says how things are named and go wrong, and how a GGUF is read ...
CONVERT_MAY_IMPORT = {
    "convert", "errors", "gguf_header", "keys", "merges", "pipelines", "projection", "projection_file", "types",
}  # fmt: skip
# ... and crosses to it inside a function where its job needs a running model.
CONVERT_MAY_CROSS = {
    "calibrate": {"engine"},
    "calibrate.observed": {"embedder", "engine", "model_info", "tokenizer"},
    "recipe.chooser": {"embedder"},
    "recipe.measure": {"engine"},
    "verify": {"embedder", "engine", "reranker"},
}

# The commands, and what has a missing model made, cross to the converter inside a function: reading a GGUF must not
# import what writes one.
RUNTIME_MAY_CROSS_TO_CONVERT = {"cli", "provision", "sources"}

# What `import edge_embed` must not bring along.
HEAVY = ("numpy", "llama_cpp", "tokenizers", "gguf", "huggingface_hub", "safetensors")


@dataclass(frozen=True)
class Import:
    """One imported name: who imports what, and whether inside a function."""

    path: Path
    line: int
    name: str
    lazy: bool

    @property
    def home(self) -> str:
        """The importer's place in the tables: ``tokenizer``, ``engine``, ``cli``, or ``convert``."""
        first, *rest = self.path.relative_to(ROOT).with_suffix("").parts
        return "convert" if first == "convert" else rest[0]

    @property
    def module(self) -> str:
        """The importer's name below its half: ``recipe.measure``; a package's own module has the package's."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def target(self) -> str | None:
        """The imported module's place in the tables; None where it is not ours."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "edge_embed" and len(parts) > 1 else None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.name}"


def walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import below a node, with whether it lies inside a function, or only type checkers see it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        types_only = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        yield from walk(child, lazy or types_only or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that a ``from`` names, with leading dots resolved."""
    package = list(path.parent.relative_to(ROOT).parts)
    package = package if package[0] == "edge_embed" else ["edge_embed", *package]
    above = package[: len(package) + 1 - node.level] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def imports() -> Iterator[Import]:
    """Every import of the project's own sources, save the facade ``edge_embed/__init__.py``, which resolves lazily."""
    for path in sorted([*ROOT.glob("edge_embed/**/*.py"), *ROOT.glob("convert/**/*.py")]):
        if path == ROOT / "edge_embed" / "__init__.py":
            continue
        for node, lazy in walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                module = absolute(path, node)
                # `from edge_embed import keys` names a module, `from edge_embed.types import Batch` does not
                bare = module == "edge_embed"
                names = [f"edge_embed.{alias.name}" for alias in node.names] if bare else [module]
            for name in names:
                yield Import(path, node.lineno, name, lazy)


ALL = tuple(imports())
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


def show(wrong: list[Import]) -> str:
    """A readable failure."""
    return "\n".join(map(str, wrong))


def test_every_module_has_a_place() -> None:
    """A new module is put into the table before it is used."""
    homes = {path.relative_to(ROOT / "edge_embed").with_suffix("").parts[0] for path in ROOT.glob("edge_embed/**/*.py")}
    assert homes - {"__init__"} <= RANK.keys()


def test_the_description_has_the_same_table() -> None:
    """ARCHITECTURE.md's rows, and the modules that it calls pure."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.split("\n## The import rule\n")[1].split("\n## ")[0]
    assert tuple(tuple(line.strip().split(", ")) for line in section.splitlines() if line.startswith("    ")) == LAYERS
    pure = section.split("no dependency. ")[1].split(" compute and do nothing else")[0]
    assert sorted(re.findall(r"`(\w+)`", pure)) == sorted(PURE)


def test_arrows_point_down() -> None:
    """A module of the runtime imports only from rows above its own in the table, or from its own package."""
    ours = [i for i in ALL if i.home != "convert" and i.target not in (None, "convert", "models")]
    placed = [i for i in ours if i.target in RANK and i.home in RANK]  # the test above names the others
    wrong = [i for i in placed if i.target != i.home and not RANK[str(i.target)] < RANK[i.home]]
    assert not wrong, show(wrong)


def test_only_the_engine_imports_llama_cpp() -> None:
    """And only inside functions, so that importing a module loads no native library."""
    wrong = [i for i in ALL if i.name.split(".")[0] == "llama_cpp" and not (i.home == "engine" and i.lazy)]
    assert not wrong, show(wrong)


def test_pure_modules_do_no_input_or_output() -> None:
    """They import nothing that could."""
    wrong = [i for i in ALL if i.home in PURE and i.name.split(".")[0] in IMPURE_LIBRARIES]
    assert not wrong, show(wrong)


def test_the_converter_and_the_runtime_stay_apart() -> None:
    """They share errors, types and key names; whoever needs both crosses inside a function."""
    wrong = []
    for i in ALL:
        if i.home == "convert":
            allowed = CONVERT_MAY_IMPORT | (CONVERT_MAY_CROSS.get(i.module, set()) if i.lazy else set())
            right = i.target is None or i.target in allowed
        else:
            right = i.target != "convert" or (i.lazy and i.home in RUNTIME_MAY_CROSS_TO_CONVERT)
        if not right:
            wrong.append(i)
    assert not wrong, show(wrong)


@pytest.mark.parametrize("name", HEAVY)
def test_importing_the_package_is_light(name: str) -> None:
    """``import edge_embed`` loads no native library and no dependency."""
    code = f"import edge_embed, sys; sys.exit({name!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
