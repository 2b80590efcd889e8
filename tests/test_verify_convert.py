"""Verification as a part of `convert`, its figures in the file, and the two commands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gguf import GGUFValueType

from edge_embed.cli import main
from edge_embed.convert import convert
from edge_embed.convert.architectures.bert import GELUS
from edge_embed.convert.container.entries import KeyValue
from edge_embed.convert.container.output import patch_numbers
from edge_embed.convert.verify import record, verify
from edge_embed.errors import InvalidOptionError, VerificationError
from tests.checkpoints import build_tiny_bert
from tests.converting import MISSING, converted_models, edited, metadata, small_qwen3
from tests.families import cross_bert

TEXTS = [
    "A cat sleeps on the warm windowsill.", "Über die Größe der Äpfel", "How do I bake bread?", "Кошка спит.",
    "the cat and the dog", "猫在窗台上睡觉", "def add(a, b): return a + b", "x", "yes, no, perhaps", "UPPER and lower",
    "one two three four five six seven eight nine ten",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return converted_models(tmp_path_factory.mktemp("verify"))


# ---------------------------------------------------------------- convert


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in set is a dozen texts; one of the tests below uses the real one."""
    monkeypatch.setattr("edge_embed.convert.verify.TEXTS", TEXTS)


@pytest.mark.parametrize("act", GELUS)
def test_every_activation_that_is_converted_has_a_reference(act: str, tmp_path: Path) -> None:
    folder = build_tiny_bert(tmp_path / "m")
    edited(folder / "config.json", hidden_act=act)
    found = convert(folder, tmp_path / "m.gguf", ftype="f16", verify=True).verification
    assert found is not None
    assert found.problems == ()


def test_a_config_that_names_its_class_alone(tmp_path: Path) -> None:
    """As config.json of 2019 does, without model_type: what the converter recognized, the reference computes."""
    folder = cross_bert.build(tmp_path / "m")
    edited(folder / "config.json", model_type=MISSING)
    found = convert(folder, tmp_path / "m.gguf", ftype="f16", verify=True).verification
    assert found is not None
    assert found.scores is not None
    assert found.problems == ()


@pytest.mark.usefixtures("few_texts")
def test_convert_records_the_figures_of_its_file(tmp_path: Path) -> None:
    source = small_qwen3(tmp_path / "source")
    plain = convert(source, tmp_path / "plain.gguf")
    report = convert(source, tmp_path / "verified.gguf", verify=True)
    found = report.verification
    assert found is not None
    assert found.vectors is not None
    assert report.sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()
    figures = {key: value for key, value in metadata(report.path).items() if key.startswith("edge_embed.verify.")}
    assert figures.pop("edge_embed.verify.texts") == found.n_texts == len(TEXTS)
    assert figures == {
        "edge_embed.verify.min_cosine": pytest.approx(found.vectors.min_cosine, abs=6e-6),
        "edge_embed.verify.mean_cosine": pytest.approx(found.vectors.mean_cosine, abs=6e-6),
        "edge_embed.verify.top10_overlap": pytest.approx(found.vectors.overlap, abs=6e-6),
    }
    assert found.path == report.path
    assert plain.verification is None
    assert not any("verify" in key for key in metadata(plain.path))
    again = convert(source, tmp_path / "again.gguf", verify=True, threads=1)
    assert again.sha256 == report.sha256


def test_a_file_that_does_not_fit_into_memory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small machine can make a file for a large one; what was left out is said, and no figure is recorded."""
    monkeypatch.setattr("edge_embed.convert.verify._free_memory", lambda: 1000)
    source = small_qwen3(tmp_path / "source")
    report = convert(source, tmp_path / "model.gguf", verify=True)
    found = report.verification
    assert found is not None
    assert (found.vectors, found.n_texts, found.n_tensors) == (None, 0, 24)
    assert (
        found.notes
        == report.notes[-1:]
        == (
            "ids and vectors were not compared: 0.0 GB of memory are free, too little to run the file; "
            "`edge-embed verify` compares them on a larger machine",
        )
    )
    assert metadata(report.path)["edge_embed.verify.texts"] == 0
    assert verify(report.path, source, texts=TEXTS).vectors is not None  # whoever asks for it gets it


@pytest.mark.usefixtures("few_texts")
def test_convert_keeps_no_file_that_fails(tmp_path: Path) -> None:
    source = small_qwen3(tmp_path / "source")
    target = tmp_path / "out" / "model.gguf"
    target.parent.mkdir()
    target.write_bytes(b"an older file")
    with pytest.raises(VerificationError, match=r"vectors: the least cosine is 0\.9") as error:
        convert(source, target, ftype="q4_0", verify=True, min_cosine=0.9999)
    assert "--no-verify" in error.value.hint
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]
    assert target.read_bytes() == b"an older file"


def test_a_wrong_conversion_is_found_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in a data sheet: keys under the name of queries and the other way round."""
    from dataclasses import replace

    from edge_embed.convert.architectures import bert

    names = {"attn_q": "attn_k", "attn_k": "attn_q"}
    layer = tuple(
        replace(row, target=".".join(names.get(part, part) for part in row.target.split(".")))
        for row in bert.BERT.layer
    )
    wrong = replace(bert.BERT, layer=layer)
    monkeypatch.setattr("edge_embed.convert.plan.family_of", lambda _: wrong)
    source = build_tiny_bert(tmp_path / "source")
    with pytest.raises(VerificationError, match="vectors: "):
        convert(source, tmp_path / "model.gguf", ftype="f32", verify=True)
    assert not (tmp_path / "model.gguf").exists()


def test_figures_can_be_recorded_later(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, unverified = made["bert"]
    path = convert(source, tmp_path / "model.gguf", verify=True).path
    before, size = metadata(path), path.stat().st_size
    record(path, verify(path, source, texts=TEXTS))
    after = metadata(path)
    assert path.stat().st_size == size
    assert before["edge_embed.verify.texts"] > 50
    assert after["edge_embed.verify.texts"] == len(TEXTS)
    assert {key for key in before if before[key] != after[key]} <= {key for key in before if "verify" in key}
    with pytest.raises(InvalidOptionError, match="no place for figures"):
        record(unverified, verify(unverified, source, texts=TEXTS))


def test_a_number_is_patched_where_it_stands(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(made["bert"][1].read_bytes())
    patch_numbers(path, [KeyValue("bert.block_count", 77, GGUFValueType.UINT32)])
    before, after = made["bert"][1].read_bytes(), path.read_bytes()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert metadata(path)["bert.block_count"] == 77
    with pytest.raises(KeyError):
        patch_numbers(path, [KeyValue("bert.block_count", 1.0, GGUFValueType.FLOAT32)])


# ---------------------------------------------------------------- the commands


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--no-progress"], prog_name="edge-embed")


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


def test_the_command_prints_figures_and_the_worst_texts(made: dict[str, tuple[Path, Path]], texts_file: Path) -> None:
    source, path = made["qwen3"]
    result = run("verify", path, "--reference", source, "-f", texts_file)
    assert result.exit_code == 0, result.output
    for part in (
        "ids          11 texts, all as the original tokenizer's",
        "tensors      24, relative error at most 0.00",
        "(Q8_0 breaks below 0.98)",
        "% of each text's nearest stay among them",
        "cosine   worst texts",
    ):
        assert part in result.stdout
    found = json.loads(run("verify", path, "--reference", source, "-f", texts_file, "--json").stdout)
    assert found["passed"] is True
    assert found["vectors"]["n_texts"] == len(TEXTS)
    assert len(found["vectors"]["worst"]) == 5


def test_the_command_fails_below_what_was_asked_for(made: dict[str, tuple[Path, Path]], texts_file: Path) -> None:
    source, path = made["qwen3"]
    result = run("verify", path, "--reference", source, "-f", texts_file, "--min-cosine", "0.99999")
    assert result.exit_code == 4
    assert "error: vectors: the least cosine is 0.99" in result.stderr
    assert run("verify", path, "--reference", source, "--min-cosine", "2").exit_code == 2
    assert run("verify", path).exit_code == 2
    assert run("verify", path.with_name("none.gguf"), "--reference", source).exit_code == 3
    assert run("verify", path, "--reference", path.parent / "none").exit_code == 4


@pytest.mark.usefixtures("few_texts")
def test_convert_verifies_unless_told_not_to(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, target = made["bert"][0], tmp_path / "model.gguf"
    result = run("convert", source, "-o", target)
    assert result.exit_code == 0, result.output
    assert "11 texts, all as the original tokenizer's" in result.stdout
    assert "edge_embed.verify.min_cosine" in metadata(target)
    target.unlink()
    result = run("convert", source, "-o", target, "--type", "q4_0", "--min-cosine", "0.9999")
    assert result.exit_code == 4
    assert "error: vectors: the least cosine is 0.9" in result.stderr
    assert not target.exists()
    result = run("convert", source, "-o", target, "--type", "q4_0", "--no-verify")
    assert result.exit_code == 0
    assert "verified in" not in result.stdout
    assert not any("verify" in key for key in metadata(target))
