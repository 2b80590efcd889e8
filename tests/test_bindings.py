"""The native library is checked before its first use: another layout is refused by field, never called."""

from __future__ import annotations

import builtins
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_embed.engine import bindings
from edge_embed.errors import EngineUnavailableError

KINDS = {
    "u4": ctypes.c_uint32, "i4": ctypes.c_int32, "f4": ctypes.c_float, "b1": ctypes.c_bool, "p8": ctypes.c_void_p,
}  # fmt: skip


def struct(fields: list[str]) -> Any:
    """A ctypes structure from ``name:kind`` entries."""
    pairs = [field.split(":") for field in fields]
    return type("Struct", (ctypes.Structure,), {"_fields_": [(name, KINDS[kind]) for name, kind in pairs]})


def layouts(**changes: Any) -> SimpleNamespace:
    """A module with the structures that are expected, some of them replaced."""
    return SimpleNamespace(**{name: struct(text.split()) for name, text in bindings.LAYOUTS.items()} | changes)


def test_the_installed_library_loads_and_fits() -> None:
    lib = bindings.load()
    assert lib.library.is_file()
    assert lib.version.count(".") >= 2


def test_the_library_is_loaded_once() -> None:
    assert bindings.load() is bindings.load()


def test_the_expected_layout_is_accepted() -> None:
    assert None is bindings.check_layout(layouts())  # type: ignore[func-returns-value]


@pytest.mark.parametrize("name", bindings.LAYOUTS)
def test_a_missing_structure_is_refused_by_its_first_field(name: str) -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        bindings.check_layout(layouts(**{name: None}))
    assert f"{name} differently: field {bindings.LAYOUTS[name].split()[0]}, found nothing" in caught.value.message
    assert bindings.TESTED in caught.value.hint


@pytest.mark.parametrize("name", bindings.LAYOUTS)
def test_every_missing_field_is_noticed(name: str) -> None:
    fields = bindings.LAYOUTS[name].split()
    for index, field in enumerate(fields):
        with pytest.raises(EngineUnavailableError, match=f"{name} differently: field {field}, found"):
            bindings.check_layout(layouts(**{name: struct(fields[:index] + fields[index + 1 :])}))


@pytest.mark.parametrize("name", bindings.LAYOUTS)
def test_a_new_field_is_noticed_wherever_it_is(name: str) -> None:
    fields = bindings.LAYOUTS[name].split()
    for index in range(len(fields) + 1):
        with pytest.raises(EngineUnavailableError, match="new_field:i4"):
            bindings.check_layout(layouts(**{name: struct([*fields[:index], "new_field:i4", *fields[index:]])}))


def test_a_field_of_another_type_is_refused_by_name() -> None:
    fields = bindings.LAYOUTS["llama_context_params"].replace("n_batch:u4", "n_batch:p8").split()
    with pytest.raises(EngineUnavailableError, match="field n_batch:u4, found n_batch:p8"):
        bindings.check_layout(layouts(llama_context_params=struct(fields)))


def defaults(**changes: Any) -> SimpleNamespace:
    """A library that reports the expected defaults, some of them replaced."""
    params = {name: SimpleNamespace(**fields) for name, fields in bindings.DEFAULTS.items()}
    for field, item in changes.items():
        for reported in params.values():
            if hasattr(reported, field):
                setattr(reported, field, item)
    return SimpleNamespace(
        llama_context_default_params=lambda: params["llama_context_params"],
        llama_model_default_params=lambda: params["llama_model_params"],
    )


def test_the_expected_defaults_are_accepted() -> None:
    assert None is bindings.check_defaults(defaults())  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("struct_name", "field"), [(name, field) for name, fields in bindings.DEFAULTS.items() for field in fields]
)
def test_a_library_that_reports_another_default_is_refused_by_field(struct_name: str, field: str) -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        bindings.check_defaults(defaults(**{field: 12345}))
    assert f"{struct_name}.{field} is 12345" in caught.value.message
    assert "LLAMA_CPP_LIB_PATH" in caught.value.hint


def test_a_folder_without_the_library_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="there is no libllama in"):
        bindings.library_file(tmp_path, "llama")


@pytest.mark.parametrize("name", ["libllama.so", "libllama.dylib", "llama.dll"])
def test_the_library_is_found_under_every_platforms_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert tmp_path / name == bindings.library_file(tmp_path, "llama")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped where")
def test_no_library_of_a_wheel_is_loaded_twice(tmp_path: Path) -> None:
    """A wheel holds no links: opened by another of its three names, ggml would be a copy with its own kernels alone."""
    shutil.copytree(bindings.load().library.parent, tmp_path, dirs_exist_ok=True)  # follows links
    (tmp_path / "libggml-cpu-none.so").touch()  # a variant, so that the best one is asked for
    code = """if True:
        from edge_embed.engine import backends, bindings
        bindings.load().ggml.ggml_get_name, backends.registry()
        for path in sorted({line.split()[-1] for line in open("/proc/self/maps") if "ggml" in line}):
            print(path)
    """
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = [Path(path) for path in answer.stdout.splitlines()]
    assert {path.parent for path in loaded} == {tmp_path}
    names = [path.name.partition(".")[0] for path in loaded]
    assert {"libggml", "libggml-base"} <= set(names)
    assert len(names) == len(set(names))


def test_functions_of_ggml_are_found_where_each_library_has_its_own_alone(tmp_path: Path) -> None:
    """As under Windows, where a library is not asked for what it needs."""
    for number, stem in enumerate(("llama", "ggml", "ggml-base")):
        (tmp_path / "source.c").write_text(f"int own_{number}(void) {{ return {number}; }}\n")
        subprocess.run(["cc", "-shared", "-o", tmp_path / f"lib{stem}.so", tmp_path / "source.c"], check=True)
    ggml = bindings.Ggml(tmp_path)
    assert [ggml.own_0(), ggml.own_1(), ggml.own_2()] == [0, 1, 2]
    with pytest.raises(AttributeError, match=r"no library in .* has own_3"):
        ggml.own_3  # noqa: B018


@pytest.fixture
def fresh_load() -> Iterator[None]:
    """``load`` without the result of earlier tests, which comes back afterwards."""
    before = bindings.load()
    bindings.load.cache_clear()
    yield
    bindings.load.cache_clear()
    assert before.library == bindings.load().library


@pytest.mark.parametrize(
    ("error", "said"),
    [(ImportError("no module"), "cannot be imported: no module"), (OSError("libgomp"), "cannot be loaded: libgomp"),
     (RuntimeError("bad"), "cannot be loaded: bad")],
)  # fmt: skip
def test_a_library_that_cannot_be_imported_is_an_error_with_the_command_to_install_it(
    error: Exception, said: str, fresh_load: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "llama_cpp":
            raise error
        return real(name, *args, **kwargs)

    for module in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EngineUnavailableError, match=said) as caught:
        bindings.load()
    assert "pip install" in caught.value.hint


def test_the_librarys_complaint_is_kept_for_our_messages_and_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    c = bindings.load().c
    bindings.last_complaint()
    assert not c.llama_model_load_from_file(b"/no/such/file.gguf", c.llama_model_default_params())
    assert ("", "") == capfd.readouterr()
    assert "" != bindings.last_complaint()
    assert "" == bindings.last_complaint()


def test_a_complaint_of_many_lines_is_one() -> None:
    """OpenVINO's have several, and stand in the midst of our sentences."""
    bindings.load()
    bindings.last_complaint()
    bindings._complaints.append((4, "Check 'x' failed at y.cpp:1:\nWhile validating node z:\nAxis 2 out of range."))
    assert bindings.last_complaint() == "Check 'x' failed at y.cpp:1: While validating node z: Axis 2 out of range"
