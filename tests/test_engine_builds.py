"""Builds lie side by side: made in one step or not at all, and what is missing or broken is said, never used."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_embed.engine import bindings, build, builder, builds
from edge_embed.engine.devices import Memory
from edge_embed.errors import EngineBuildError, EngineUnavailableError, InvalidOptionError
from tests.commands import COMMAND, run
from tests.engines import SOURCES, install, made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No builds, and nothing chosen."""
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGE_EMBED_CACHE", str(tmp_path / "cache"))
    for name in (builds.VARIABLE, "LLAMA_CPP_LIB_PATH", "CMAKE_BUILD_PARALLEL_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def left() -> list[str]:
    """What is in the folder of builds, locks aside."""
    return sorted(path.name for path in builds.engines_dir().iterdir() if path.suffix != ".lock")


def test_a_build_is_listed_with_what_it_is() -> None:
    found = install("mine", preset="cpu-native")
    assert [found] == builds.installed()
    assert ("mine", "cpu-native", *SOURCES.values()) == (
        found.name, found.preset, found.llama_cpp_python, found.sources_sha256,
    )  # fmt: skip
    assert ["libggml.so", "libllama.so", "libllama.so.0"] == [file.name for file in found.files]
    assert len("llama" + "ggml") == found.n_bytes  # a link is no second file
    assert (found.folder / "libllama.so").is_symlink()
    assert ("", "") == (found.unfit(), found.damaged())
    assert "mine" in run("engine", "list").stdout
    listed = json.loads(run("engine", "list", "--json").stdout)
    assert {"name": "packaged", "reason": "default", "problem": ""} == listed["chosen"]
    assert ["mine"] == [build["name"] for build in listed["engines"]]
    assert found.installed == listed["engines"][0]["installed"]


def test_several_lie_side_by_side_and_one_is_replaced_in_one_step() -> None:
    install("one")
    install("two")
    again = install("one", settings=["GGML_NATIVE=OFF"])
    assert ["one", "two"] == [found.name for found in builds.installed()] == left()
    assert ("GGML_NATIVE=OFF",) == again.settings


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "packaged", "x" * 65, "a b"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no name for an engine"):
        builder.add(made(tmp_path / "made"), name=name)


def test_a_folder_without_libraries_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="holds no build"):
        builder.add(tmp_path, name="mine")
    (made(tmp_path / "made") / "libllama.so.0").unlink()
    (tmp_path / "made" / "libllama.so").unlink()
    with pytest.raises(EngineBuildError, match="no libllama"):
        builder.add(tmp_path / "made", name="mine")
    assert [] == left()


def cut(found: builds.Build) -> None:
    (found.folder / "libggml.so").write_text("g")


def change(found: builds.Build) -> None:
    (found.folder / "libggml.so").write_text("GGML")


def take_away(found: builds.Build) -> None:
    (found.folder / "libggml.so").unlink()


def tear(found: builds.Build) -> None:
    (found.folder / builds.MANIFEST).write_text("{")


def strip(found: builds.Build) -> None:
    (found.folder / builds.MANIFEST).write_text("{}")


def only_make(found: builds.Build) -> None:
    manifest = json.loads((found.folder / builds.MANIFEST).read_text())
    del manifest["installed"]
    (found.folder / builds.MANIFEST).write_text(json.dumps(manifest))


def lead_out(found: builds.Build) -> None:
    manifest = json.loads((found.folder / builds.MANIFEST).read_text())
    manifest["files"][0]["name"] = "../libggml.so"
    (found.folder / builds.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "libggml.so has 1 bytes, not 4"), (change, "libggml.so is not what was installed"),
     (take_away, "libggml.so cannot be read"), (tear, "engine.json is damaged"), (strip, "engine.json is damaged"),
     (lead_out, "engine.json is damaged"), (only_make, "take it with `edge-embed engine add ")],
)  # fmt: skip
def test_a_damaged_build_is_not_taken(damage: Callable[[builds.Build], None], said: str) -> None:
    damage(install("mine"))
    with pytest.raises(EngineUnavailableError, match=said):
        builder.use("mine")
    result = run("engine", "use", "mine")
    assert (5, True) == (result.exit_code, said in result.stderr)
    assert "packaged" == builds.choice().name
    builder.remove("mine")
    assert [] == left()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"machine": "sparc64"}, "it is for .* on sparc64"), ({"system": "Plan9"}, "it is for Plan9 on"),
     ({"sources": {**SOURCES, "llama_cpp_python": "0.1"}}, "it is of llama-cpp-python 0.1, and")],
)  # fmt: skip
def test_a_build_for_something_else_is_kept_and_not_taken(changes: dict[str, object], said: str) -> None:
    found = install("mine", **changes)
    with pytest.raises(EngineUnavailableError, match=said):
        builder.use("mine")
    assert found.unfit() in run("engine", "list").stdout


def test_files_that_are_no_libraries_do_not_load() -> None:
    """The manifest is right, and the loader says what is wrong."""
    install("mine")
    with pytest.raises(EngineUnavailableError, match=r"'mine' cannot be used: .*(invalid ELF header|file too short)"):
        builder.use("mine")
    assert "packaged" == builds.choice().name


@pytest.mark.skipif(sys.platform != "linux", reason="names of libraries are Linux's")
def test_cuda_without_a_driver_is_no_matter_of_building_again(tmp_path: Path) -> None:
    driver, folder = tmp_path / "libcuda.so.99", made(tmp_path / "made", preset="cuda")
    linked = ["cc", "-shared", "-x", "c", "/dev/null", "-o"]
    subprocess.run([*linked, driver, f"-Wl,-soname,{driver.name}"], check=True)
    for name in ("libllama.so.0", "libggml.so"):
        subprocess.run([*linked, folder / name, "-x", "none", "-Wl,--no-as-needed", driver], check=True)
    builder.add(folder, name="mine")
    driver.unlink()
    with pytest.raises(EngineUnavailableError, match=r"libcuda\.so\.99: cannot open") as caught:
        builder.use("mine")
    assert "NVIDIA's driver" in caught.value.hint


def test_an_unknown_build_is_refused_with_those_there_are() -> None:
    install("mine")
    for command in ("use", "remove"):
        for name in ("yours", "../home", ""):
            result = run("engine", command, name)
            assert 2 == result.exit_code
            assert "packaged, mine" in result.stderr


def loaded(**environment: str) -> tuple[Path, list[str]]:
    """The folder that another process takes its libraries from, and what it warns of."""
    program = (
        "import json, warnings\nfrom edge_embed.engine import bindings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); library = bindings.load().library\n"
        "print(json.dumps([str(library.parent), [str(warning.message) for warning in caught]]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    folder, said = json.loads(answer.stdout)
    return Path(folder), said


def test_a_chosen_build_is_loaded_until_another_is() -> None:
    """By name, by environment, by folder; ``packaged`` is what llama-cpp-python brought."""
    mine, packaged = install("mine", real=True), bindings.packaged_folder()
    assert (packaged, []) == loaded()
    result = run("engine", "use", "mine")
    assert 0 == result.exit_code, result.stderr
    assert "CPU" in result.stderr  # what the libraries say of themselves, in the child that tried them
    assert (mine.folder, []) == loaded()
    assert (packaged, []) == loaded(EDGE_EMBED_ENGINE="packaged")
    assert "* mine" in " ".join(run("engine", "list").stdout.split())
    run("engine", "use", "packaged")
    assert (packaged, []) == loaded()
    assert (mine.folder, []) == loaded(EDGE_EMBED_ENGINE="mine") == loaded(EDGE_EMBED_ENGINE=str(mine.folder))
    assert (mine.folder, []) == loaded(LLAMA_CPP_LIB_PATH=str(mine.folder))
    assert (packaged, []) == loaded(LLAMA_CPP_LIB_PATH=str(mine.folder), EDGE_EMBED_ENGINE="packaged")


def test_what_was_built_without_us_is_taken_by_its_folder(tmp_path: Path) -> None:
    folder = made(tmp_path / "made", real=True)
    (folder / builds.MANIFEST).unlink()
    assert (folder, []) == loaded(EDGE_EMBED_ENGINE=str(folder))


def test_a_build_that_is_gone_or_broken_makes_room_for_the_packaged_libraries_with_a_word() -> None:
    packaged = bindings.packaged_folder()
    folder, (said,) = loaded(EDGE_EMBED_ENGINE="gone")
    assert packaged == folder
    assert "the engine 'gone', named by EDGE_EMBED_ENGINE, is not used: engine.json cannot be read" in said
    change(install("broken"))
    builds.choose("broken")
    folder, (said,) = loaded()
    assert packaged == folder
    assert "the engine 'broken', chosen by `edge-embed engine use`, is not used: " in said
    done = subprocess.run([*COMMAND, "embed", "a cat"], capture_output=True, text=True, check=True)
    assert 1 == done.stderr.count("note: the engine 'broken'")


def test_removing_the_chosen_one_goes_back_to_the_packaged() -> None:
    install("mine")
    builds.choose("mine")
    assert builds.Choice("mine", "chosen") == builds.choice()
    assert 0 == run("engine", "remove", "mine").exit_code
    assert builds.Choice("packaged", "default") == builds.choice()
    assert [] == left()


def test_doctor_shows_the_choice() -> None:
    def shown(**environment: str) -> dict[str, str]:
        command = [*COMMAND, "doctor", "--json", "-m", "no-such-model"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
        return next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "engine")

    assert ("ok", "packaged, nothing else was chosen") == (shown()["status"], shown()["detail"])
    install("mine", real=True)
    builds.choose("mine")
    assert "mine, chosen by `edge-embed engine use`" == shown()["detail"]
    gone = shown(EDGE_EMBED_ENGINE="gone")
    assert "slow" == gone["status"]
    assert "the packaged libraries, though 'gone' is named by EDGE_EMBED_ENGINE: engine.json cannot" in gone["detail"]


# A build, without compiling: what cmake is told, and what becomes of its result.


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sources are here already."""
    monkeypatch.setattr(build, "fetch_sources", lambda _: tmp_path / "sources")


Run = Callable[[list[str], dict[str, str], Path, build.Progress], int]


def compiler(commands: list[list[str]], *, code: int = 0, error: type[BaseException] | None = None) -> Run:
    """In the place of ``build.run``: keeps the commands; the second one makes libraries, fails or is interrupted."""

    def take(command: list[str], _environment: dict[str, str], log: Path, _progress: build.Progress) -> int:
        commands.append(command)
        log.write_text("step one\nfatal: No space left on device")
        if "--build" in command:
            if error is not None:
                raise error
            if not code:
                made(Path(command[command.index("--build") + 1]) / "bin", preset="cpu-portable")
            return code
        return 0

    return take


def test_a_preset_is_compiled_with_its_flags(sources: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(build, "run", compiler(commands))
    result = run("engine", "build", "cpu-portable", "--jobs", "3")
    assert 0 == result.exit_code, result.stderr
    configure, compile_ = commands
    assert set(build.preset_flags("cpu-portable")) < set(configure)
    assert f"-DEDGE_EMBED_SOURCES={tmp_path / 'sources'}" in configure
    assert str(build.PROJECT) == configure[configure.index("-S") + 1]
    assert ["--parallel", "3"] == compile_[-2:]
    assert ["cpu-portable"] == left()
    assert "edge-embed engine use cpu-portable" in result.stderr


def test_as_many_compilers_as_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5 GB each, on the physical cores; CMake's own variable comes first."""
    monkeypatch.setattr(builder, "default_threads", lambda: 8)
    for available, jobs in ((1e9, 1), (7e9, 4), (64e9, 8)):
        monkeypatch.setattr(builder, "memory", lambda n=available: Memory(None, int(n)))
        assert jobs == builder._jobs()
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "5")
    assert 5 == builder._jobs()


def test_a_failed_build_shows_its_log_with_a_hint_and_keeps_the_one_before(
    sources: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = install("cpu-portable")
    monkeypatch.setattr(build, "run", compiler([], code=1))
    result = run("engine", "build", "cpu-portable")
    assert 5 == result.exit_code
    assert "step one" in result.stderr
    assert "the disk is full" in result.stderr
    assert [before] == builds.installed()
    assert [".cpu-portable.log", "cpu-portable"] == left()  # the whole log is named, and there


def test_an_interrupted_build_leaves_what_was_there(sources: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = install("cpu-portable")
    monkeypatch.setattr(build, "run", compiler([], error=KeyboardInterrupt))
    assert 130 == run("engine", "build", "cpu-portable").exit_code
    assert [before] == builds.installed()
    assert ["cpu-portable"] == left()


def test_without_cmake_the_error_says_how_to_get_it(sources: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_tool", lambda _: "")
    result = run("engine", "build", "cpu-portable")
    assert (5, True) == (result.exit_code, "apt install cmake" in result.stderr)


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(home: Path) -> None:
    home.write_text("no folder")
    result = run("engine", "build", "cpu-portable")
    assert (5, True) == (result.exit_code, "EDGE_EMBED_HOME" in result.stderr)


# The sources: the pinned archive, or nothing.


def archive(path: Path) -> Path:
    """An archive laid out like the pinned one."""
    with tarfile.open(path, "w:gz") as tar:
        for name in ("vendor/llama.cpp/src/llama.cpp", "vendor/llama.cpp/tests/big.bin", "README.md"):
            info = tarfile.TarInfo(f"llama_cpp_python-0/{name}")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=f"its SHA-256 is [0-9a-f]{{64}}, not {build.ARCHIVE_SHA256}"):
        build.unpack_sources(archive(tmp_path / "x.tar.gz"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_the_pinned_archive_what_is_compiled_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "x.tar.gz")
    monkeypatch.setattr(build, "ARCHIVE_SHA256", builds.sha256(path))
    build.unpack_sources(path, tmp_path / "out")
    assert {"llama.cpp/src/llama.cpp", "archive.json"} == {
        file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()
    }
    assert {**SOURCES, "sha256": builds.sha256(path)} == json.loads((tmp_path / "out" / "archive.json").read_text())


def pip_that_downloads(tmp_path: Path) -> str:
    """An interpreter whose pip has this archive alone, and says when it is asked twice."""
    path = archive(tmp_path / "x.tar.gz")
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, shutil, sys\n"
        "assert sys.argv[1:4] == ['-m', 'pip', 'download'] and '--no-deps' in sys.argv\n"
        f"assert sys.argv[-1] == 'llama-cpp-python=={build.LLAMA_CPP_PYTHON}'\n"
        f"shutil.move({str(path)!r}, sys.argv[sys.argv.index('--dest') + 1])\n"
    )
    script.chmod(0o755)
    return str(script)


def test_the_sources_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = pip_that_downloads(tmp_path)
    monkeypatch.setattr(build, "ARCHIVE_SHA256", builds.sha256(tmp_path / "x.tar.gz"))
    folder = build.fetch_sources(python)
    assert (folder / "llama.cpp" / "src" / "llama.cpp").is_file()
    assert folder == build.fetch_sources(python)  # the archive is gone: a second download would fail
    assert [folder.name, f"{folder.name}.lock"] == sorted(path.name for path in folder.parent.iterdir())


def test_a_download_of_something_else_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", pip_that_downloads(tmp_path))
    result = run("engine", "build", "cpu-native")
    assert 5 == result.exit_code
    assert "is not the archive that this release was tested with" in result.stderr
    assert [] == [path for path in (tmp_path / "cache" / "sources").iterdir() if path.suffix not in (".lock", ".log")]
