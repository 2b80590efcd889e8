"""What a user gets from the wheel: every module under edge_embed, its data, and no other top-level name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("MANIFEST.in", "pyproject.toml", "README.md", "LICENSE", "edge_embed", "convert", "models")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source archive and wheel, from a copy of the sources: setuptools leaves its work in the tree that it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    (source / "tests").mkdir()
    shutil.copy(__file__, source / "tests")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    answer = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    """The wheel."""
    return built[1]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Every file of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files as pip would lay them out."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, code: str) -> str:
    """Run code that sees the wheel's files first, and neither the checkout nor its editable install."""
    hidden = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]\n"
        f"sys.path = [{str(installed)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
    )
    command = [sys.executable, "-c", hidden + code]
    answer = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_the_wheel_claims_one_top_level_name(names: set[str]) -> None:
    """No ``convert`` and no ``models``: those names belong to the user."""
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_embed"}


def test_every_module_is_packed(names: set[str]) -> None:
    """No sub-package is forgotten in pyproject.toml."""
    expected = {str(p.relative_to(ROOT)) for p in ROOT.glob("edge_embed/**/*.py")}
    expected |= {
        f"edge_embed/{p.relative_to(ROOT)}" for top in ("convert", "models") for p in ROOT.glob(f"{top}/**/*.py")
    }
    assert expected <= names


def test_the_data_is_packed(names: set[str]) -> None:
    """Typing marker, the build's files, the server's page, every model card and file, and the licences."""
    data = {"edge_embed/py.typed", "edge_embed/engine/llama.cmake"}
    data |= {
        str(p.relative_to(ROOT)) for pattern in ("*.h", "cmake/*") for p in (ROOT / "edge_embed/engine").glob(pattern)
    }
    assert {f"edge_embed/engine/{name}" for name in ("sound_amx.h", "cmake/CMakePresets.json")} <= data
    data |= {
        f"edge_embed/models/{p.name}"
        for pattern in ("*.toml", "*.gguf", "NOTICE")
        for p in ROOT.glob(f"models/{pattern}")
    }
    data |= {str(p.relative_to(ROOT)) for p in ROOT.glob("edge_embed/server/ui/*")}
    assert "edge_embed/server/ui/index.html" in data
    assert data <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/licenses/models/NOTICE") for name in names)


def test_the_source_archive_has_what_the_wheel_has_and_no_tests(built: tuple[Path, Path], names: set[str]) -> None:
    """Some test files without what they need would be no tests."""
    with tarfile.open(built[0]) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    packed = {f"edge_embed/{name}" if name.startswith(("convert/", "models/")) else name for name in packed}
    assert {name for name in names if ".dist-info/" not in name} <= packed
    assert not any(name.startswith("tests") for name in packed)


def test_convert_and_models_import_from_the_wheel(installed: Path) -> None:
    """They are ``edge_embed.convert`` and ``edge_embed.models``, and their data is found by importlib.resources."""
    code = (
        "import edge_embed.convert.architectures, edge_embed.models\n"
        "from importlib import resources\n"
        "print(edge_embed.convert.__file__)\n"
        "print(resources.files('edge_embed.models').joinpath('NOTICE').is_file())\n"
    )
    where, found = run_installed(installed, code).splitlines()
    assert Path(where).is_relative_to(installed)
    assert found == "True"


def test_importing_loads_no_native_library(installed: Path) -> None:
    """The engine is loaded on first use, not by the import."""
    code = "import edge_embed; print({'llama_cpp', 'numpy', 'ctypes'} & set(sys.modules))"
    assert run_installed(installed, code) == "set()"


def test_the_editable_install_finds_them_too() -> None:
    """In a developer's environment, away from the checkout's folder."""
    code = "import edge_embed.convert, edge_embed.models; print(edge_embed.convert.__file__)"
    answer = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip().endswith("__init__.py")
