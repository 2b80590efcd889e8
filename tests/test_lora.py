"""LoRA: an adapter merged while converting and one added at run time give the vectors of PEFT's own merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge_embed import Embedder, errors, keys
from edge_embed.cli.app import main
from edge_embed.cli.options import lora_file
from edge_embed.convert import convert, convert_adapter
from edge_embed.convert.lora.merge import product
from tests.converting import MISSING, edited, metadata, tensors
from tests.families import golden, lora
from tests.tiny_gguf import gguf_bytes

Broken = errors.CheckpointError
Unsupported = errors.UnsupportedCheckpointError
GOLDEN = golden("lora")
ADDED_AT_RUN_TIME = ("qwen3", "qwen3_patterns", "llama", "bert")


def lowest_cosine(model: Path, expected: str, **options: Any) -> float:
    """Of the vectors of the golden texts."""
    with Embedder(model, n_threads=1, **options) as embedder:
        return float((embedder.encode(list(lora.TEXTS_USED)) * GOLDEN[expected]).sum(axis=1).min())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base and adapter of every case."""
    folder = tmp_path_factory.mktemp("lora")
    return {case: lora.build(folder / case, case) for case in lora.CASES}


@pytest.fixture
def qwen3(built: dict[str, Path], tmp_path: Path) -> Path:
    """Base and adapter to change."""
    return Path(shutil.copytree(built["qwen3"], tmp_path / "qwen3"))


# ---------------------------------------------------------------- right vectors


@pytest.mark.parametrize("case", lora.CASES)
def test_the_adapter_changes_the_vectors(case: str) -> None:
    """So that the comparisons below say something."""
    base = GOLDEN[f"{lora.CASES[case].family}_base"]
    assert float((GOLDEN[case] * base).sum(axis=1).max()) < 0.95


@pytest.mark.parametrize("case", lora.CASES)
@pytest.mark.parametrize(("ftype", "least"), [("f32", 0.99999), ("f16", 0.9999), ("q8_0", 0.998)])
def test_a_merged_model_gives_the_vectors_of_pefts_merge(
    case: str, ftype: str, least: float, built: dict[str, Path], tmp_path: Path
) -> None:
    report = convert(built[case] / "base", tmp_path / "m.gguf", ftype=ftype, merge_lora=built[case] / "adapter")
    assert lowest_cosine(report.path, case) >= least


@pytest.mark.parametrize("case", ADDED_AT_RUN_TIME)
@pytest.mark.parametrize(
    ("ftype", "adapter_type", "least"),
    [("f16", "f32", 0.9999), ("f16", "f16", 0.9999), ("f16", "bf16", 0.9995), ("q8_0", "f32", 0.998)],
)
def test_an_adapter_added_at_run_time_gives_the_vectors_of_pefts_merge(
    case: str, ftype: str, adapter_type: str, least: float, built: dict[str, Path], tmp_path: Path
) -> None:
    base = convert(built[case] / "base", tmp_path / "base.gguf", ftype=ftype)
    adapter = convert_adapter(
        built[case] / "adapter", built[case] / "base", tmp_path / "adapter.gguf", ftype=adapter_type
    )
    assert lowest_cosine(base.path, case, lora=adapter.path) >= least
    assert lowest_cosine(base.path, f"{lora.CASES[case].family}_base") >= least


def test_a_longer_text_does_not_lose_the_adapter(built: dict[str, Path], tmp_path: Path) -> None:
    """The context is made anew when it grows."""
    base = convert(built["qwen3"] / "base", tmp_path / "base.gguf", ftype="f32")
    adapter = convert_adapter(built["qwen3"] / "adapter", built["qwen3"] / "base", tmp_path / "adapter.gguf")
    with Embedder(base.path, n_threads=1, n_batch=64, lora=adapter.path) as embedder:
        embedder.encode("a long text " * 100)
        vectors = embedder.encode(list(lora.TEXTS_USED))
    assert float((vectors * GOLDEN["qwen3"]).sum(axis=1).min()) >= 0.9999


@pytest.mark.parametrize(("scale", "expected"), [(0.0, "qwen3_base"), (1.0, "qwen3")])
def test_the_scale_says_how_much_is_added(scale: float, expected: str, built: dict[str, Path], tmp_path: Path) -> None:
    base = convert(built["qwen3"] / "base", tmp_path / "base.gguf", ftype="f32")
    adapter = convert_adapter(built["qwen3"] / "adapter", built["qwen3"] / "base", tmp_path / "adapter.gguf")
    assert lowest_cosine(base.path, expected, lora=adapter.path, lora_scale=scale) >= 0.9999


@pytest.mark.parametrize("base_prefix", ["", "model."])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_prefixes_of_base_and_adapter_may_differ(base_prefix: str, prefix: str, tmp_path: Path) -> None:
    """An adapter of ``Qwen3ForCausalLM`` beside a checkpoint of ``Qwen3Model``, and the other way round."""
    folder = lora.build(tmp_path / "x", base_prefix=base_prefix, prefix=prefix)
    merged = convert(folder / "base", tmp_path / "m.gguf", ftype="f16", merge_lora=folder / "adapter")
    assert lowest_cosine(merged.path, "qwen3") >= 0.9999
    assert len(convert_adapter(folder / "adapter", folder / "base", tmp_path / "a.gguf").tensors) == 28


def test_shards_and_chunks_do_not_change_a_bit_of_the_merge(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_embed.convert.blocks import rows

    options = {"ftype": "q8_0", "merge_lora": qwen3 / "adapter"}
    first = convert(qwen3 / "base", tmp_path / "1.gguf", threads=1, **options).path.read_bytes()
    monkeypatch.setattr(rows, "CHUNK_VALUES", 700)
    assert convert(qwen3 / "base", tmp_path / "2.gguf", threads=4, **options).path.read_bytes() == first


def test_the_sum_is_taken_in_a_fixed_order() -> None:
    """Rows do not depend on which others are asked for, unlike those of a BLAS."""
    random = np.random.Generator(np.random.PCG64(1))
    left = random.standard_normal((50, 8)).astype(np.float32)
    right = random.standard_normal((8, 4099)).astype(np.float32)
    whole = product(left, right)
    np.testing.assert_allclose(whole, left.astype(np.float64) @ right, rtol=1e-4, atol=1e-4)
    for first, count in ((0, 1), (7, 3), (49, 1)):
        assert np.array_equal(product(left[first : first + count], right), whole[first : first + count])


def test_what_is_recorded(built: dict[str, Path], tmp_path: Path) -> None:
    folder = built["qwen3"]
    merged = convert(folder / "base", tmp_path / "m.gguf", merge_lora=folder / "adapter")
    adapter = convert_adapter(
        folder / "adapter", folder / "base", tmp_path, name="Mine", license="mit", repository="a/b", revision="c"
    )
    assert (merged.name, adapter.path.name) == ("base-adapter", "Mine-lora-F32.gguf")
    found, recorded = metadata(merged.path), metadata(adapter.path)
    assert found[keys.SOURCE_LORA_SHA256] == recorded[keys.SOURCE_SHA256]
    assert len(found[keys.SOURCE_LORA_SHA256]) == 64
    assert recorded["general.type"], recorded["adapter.type"] == ("adapter", "lora")
    assert (recorded["general.architecture"], recorded["adapter.lora.alpha"]) == ("qwen3", 16.0)
    assert (recorded["general.name"], recorded["general.license"]) == ("Mine", "mit")
    assert (recorded[keys.SOURCE_REPOSITORY], recorded[keys.SOURCE_REVISION]) == ("a/b", "c")
    pair = [tensors(adapter.path)[f"blk.0.ffn_down.weight.lora_{half}"] for half in "ab"]
    assert [tuple(t.shape) for t in pair] == [(192, 8), (8, 64)]


def test_settings_beside_the_adapter_that_differ_from_the_bases_are_named(qwen3: Path, tmp_path: Path) -> None:
    """Trainers put a tokenizer and prompts there; the base's are used."""
    for name in ("tokenizer.json", "config_sentence_transformers.json"):
        shutil.copy(qwen3 / "base" / name, qwen3 / "adapter" / name)
    assert convert(qwen3 / "base", tmp_path / "m.gguf", merge_lora=qwen3 / "adapter").notes == ()
    edited(qwen3 / "adapter" / "config_sentence_transformers.json", prompts={"query": "find: "})
    (note,) = convert(qwen3 / "base", tmp_path / "m.gguf", merge_lora=qwen3 / "adapter").notes
    assert note == "adapter: config_sentence_transformers.json is not that of the base, which is used"


# ---------------------------------------------------------------- what PEFT would compute otherwise


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is True.*DoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["score"]}, r"modules_to_save is \['score'\]"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [7]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow is 3.*not known"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ],
)
def test_more_than_a_sum_of_two_matrices_is_refused_by_name(
    fields: dict[str, Any], message: str, qwen3: Path, tmp_path: Path
) -> None:
    edited(qwen3 / "adapter" / "adapter_config.json", **fields)
    refused(qwen3, tmp_path, Unsupported, rf"adapter_config\.json: {message}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 4}, "has ranks 8 and 8, and adapter_config.json says 4"),
        ({"r": 0}, "'r' is 0"),
        ({"r": MISSING}, "'r' is missing"),
        ({"lora_alpha": MISSING}, "'lora_alpha' is missing"),
        ({"lora_alpha": 0}, "would change nothing"),
        ({"lora_alpha": "16"}, "'lora_alpha' is '16'"),
        ({"rank_pattern": {"q_proj": 3}}, "has ranks 8 and 8.*says 3"),
        ({"alpha_pattern": {"q_proj": "x"}}, "'q_proj' is 'x'"),
        ({"alpha_pattern": {"(": 3}}, "is not a regular expression"),
        ({"rank_pattern": []}, "'rank_pattern' is"),
    ],
)
def test_a_configuration_that_does_not_fit_its_tensors(
    fields: dict[str, Any], message: str, qwen3: Path, tmp_path: Path
) -> None:
    edited(qwen3 / "adapter" / "adapter_config.json", **fields)
    refused(qwen3, tmp_path, Broken, message)


def reheader(path: Path, rename: dict[str, str]) -> None:
    """Rename tensors of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = {rename.get(name, name): entry for name, entry in json.loads(data[8 : 8 + length]).items()}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


Q = "base_model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("rename", "kind", "message"),
    [
        ({f"{Q}.lora_A.weight": f"{Q}.lora_magnitude_vector"}, Unsupported, "lora_magnitude_vector' is no half"),
        ({f"{Q}.lora_A.weight": f"{Q}.base_layer.weight"}, Unsupported, "base_layer.weight' is no half"),
        ({f"{Q}.lora_A.weight": "q_proj.lora_A.weight"}, Unsupported, "'q_proj.lora_A.weight' is no half"),
        ({f"{Q}.lora_A.weight": "base_model.model.other.lora_A.weight"}, Broken, "has no counterpart"),
        (
            {f"{Q}.lora_{h}.weight": f"base_model.model.layers.7.self_attn.q_proj.lora_{h}.weight" for h in "AB"},
            Broken,
            r"'layers\.7\.self_attn\.q_proj' has no weight in the base model(.|\n)*example/base",
        ),
        (
            {f"{Q}.lora_{h}.weight": f"base_model.model.layers.0.mlp.dense.lora_{h}.weight" for h in "AB"},
            Broken,
            "has no weight in the base model",
        ),
        (
            {f"{Q}.lora_{h}.weight": f"base_model.model.norm.lora_{h}.weight" for h in "AB"},
            Broken,
            r"shape \[128, 64\], and 'norm.weight' in model.safetensors has shape \[64\]",
        ),
        (
            {f"{Q}.lora_{h}.weight": f"base_model.model.model.layers.0.self_attn.k_proj.lora_{h}.weight" for h in "AB"},
            Broken,
            "shape",
        ),
    ],
)
def test_tensors_that_are_no_updates_of_the_base(
    rename: dict[str, str], kind: type[errors.ConversionError], message: str, qwen3: Path, tmp_path: Path
) -> None:
    reheader(qwen3 / "adapter" / "adapter_model.safetensors", rename)
    refused(qwen3, tmp_path, kind, message)


def test_weights_that_are_missing_pickled_or_not_finite(qwen3: Path, tmp_path: Path) -> None:
    path = qwen3 / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    refused(qwen3, tmp_path, Broken, r"adapter_model\.safetensors: tensor '.*lora_B\.weight' has NaN")
    path.write_bytes(data[:100])
    refused(qwen3, tmp_path, Broken, r"adapter_model\.safetensors is truncated")
    path.rename(path.with_suffix(".bin"))
    refused(qwen3, tmp_path, Unsupported, "only as pickle")
    path.with_suffix(".bin").unlink()
    refused(qwen3, tmp_path, Broken, r"adapter_model\.safetensors is missing")
    (qwen3 / "adapter" / "adapter_config.json").unlink()
    refused(qwen3, tmp_path, Broken, r"adapter_config\.json is missing")


def refused(folder: Path, tmp_path: Path, kind: type[errors.ConversionError], message: str) -> None:
    """Merging and converting alone are both refused so, and neither leaves a file."""
    target = tmp_path / "refused" / "x.gguf"
    target.parent.mkdir(exist_ok=True)
    with pytest.raises(kind, match=message):
        convert(folder / "base", target, merge_lora=folder / "adapter")
    with pytest.raises(kind, match=message):
        convert_adapter(folder / "adapter", folder / "base", target)
    assert list(target.parent.iterdir()) == []


def test_an_update_of_the_embeddings_is_merged_and_not_written_as_an_adapter(
    built: dict[str, Path], tmp_path: Path
) -> None:
    folder = built["bert_embedding"]
    with pytest.raises(Unsupported, match=r"token_embd\.weight, and llama\.cpp does not add(.|\n)*--merge-lora"):
        convert_adapter(folder / "adapter", folder / "base", tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_f32_f16_or_bf16(built: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidOptionError, match="an adapter cannot be 'q8_0'"):
        convert_adapter(built["bert"] / "adapter", built["bert"] / "base", tmp_path / "a.gguf", ftype="q8_0")


# ---------------------------------------------------------------- adapter files that do not fit their model


ADAPTER = {
    "general.architecture": "qwen3",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": np.float32(16),
}
A, B = np.ones((2, 64), np.float32), np.ones((128, 2), np.float32)
PAIR = {"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B}


@pytest.fixture(scope="module")
def base(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the adapters below."""
    return convert(built["qwen3"] / "base", tmp_path_factory.mktemp("base") / "base.gguf", ftype="f16").path


@pytest.mark.parametrize("alpha", [{}, {"adapter.lora.alpha": np.float32(0)}])
def test_an_adapter_that_fits(alpha: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """Also without an alpha."""
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({**ADAPTER, **alpha}, PAIR))
    with Embedder(base, n_threads=1, lora=path) as embedder:
        assert np.isfinite(embedder.encode("a text")).all()


@pytest.mark.parametrize(
    ("changed", "pair", "kind", "message"),
    [
        ({"general.type": "model"}, PAIR, errors.UnsupportedModelError, "not a LoRA adapter: general.type is 'model'"),
        ({"general.type": np.uint32(1)}, PAIR, errors.UnsupportedModelError, "not a LoRA adapter"),
        ({"adapter.type": "control_vector"}, PAIR, errors.UnsupportedModelError, "not a LoRA adapter"),
        ({"general.architecture": "bert"}, PAIR, errors.UnsupportedModelError, "architecture 'bert'.* is 'qwen3'"),
        ({"adapter.lora.alpha": np.float64(16)}, PAIR, errors.ModelFileError, "expected a float32"),
        ({"adapter.lora.alpha": np.uint32(16)}, PAIR, errors.ModelFileError, "expected a float32"),
        ({"adapter.lora.alpha": np.float32(np.nan)}, PAIR, errors.ModelFileError, "expected a float32"),
        (
            {"adapter.alora.invocation_tokens": np.array([1], np.uint32)},
            PAIR,
            errors.UnsupportedModelError,
            "an activated LoRA",
        ),
        ({}, {}, errors.ModelFileError, "has no tensors"),
        ({}, {"blk.0.attn_q.weight.lora_a": A}, errors.ModelFileError, "has lora_a alone"),
        ({}, {**PAIR, "blk.0.attn_norm.weight": A[0]}, errors.UnsupportedModelError, "cannot be used"),
        ({}, {"output.weight.lora_a": A, "output.weight.lora_b": B}, errors.UnsupportedModelError, "cannot be used"),
        (
            {},
            {"blk.9.attn_q.weight.lora_a": A, "blk.9.attn_q.weight.lora_b": B},
            errors.ModelFileError,
            "which .* does not have",
        ),
        ({}, {**PAIR, "blk.0.attn_q.weight.lora_a": A[:, :32]}, errors.ModelFileError, "do not fit"),
        ({}, {**PAIR, "blk.0.attn_q.weight.lora_a": A[:1]}, errors.ModelFileError, "do not fit"),
        ({}, {**PAIR, "blk.0.attn_q.weight.lora_b": B[:64]}, errors.ModelFileError, "do not fit"),
        ({}, {**PAIR, "blk.0.attn_q.weight.lora_a": A[0]}, errors.ModelFileError, "expected a matrix"),
        ({}, {**PAIR, "blk.0.attn_q.weight.lora_a": np.ones((3, 2, 64), np.float32)}, errors.ModelFileError, "matrix"),
        (
            {},
            {"token_embd.weight.lora_a": np.ones((279, 2), np.float32), "token_embd.weight.lora_b": A.T.copy()},
            errors.UnsupportedModelError,
            "cannot be used",  # the library would end the process
        ),
    ],
)
def test_an_adapter_file_that_does_not_fit_is_refused_before_the_library_sees_it(
    changed: dict[str, Any],
    pair: dict[str, np.ndarray],
    kind: type[errors.ModelError],
    message: str,
    base: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({**ADAPTER, **changed}, pair))
    with pytest.raises(kind, match=message):
        Embedder(base, n_threads=1, lora=path)


def test_an_adapter_that_is_missing_or_is_no_gguf(base: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError):
        Embedder(base, lora=tmp_path / "nowhere.gguf")
    (tmp_path / "a.gguf").write_bytes(b"no")
    with pytest.raises(errors.ModelFileError):
        Embedder(base, lora=tmp_path / "a.gguf")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e39, 10**400, "2", None, True])
def test_a_scale_that_is_no_number(scale: Any, base: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(ADAPTER, PAIR))
    with pytest.raises(errors.InvalidOptionError, match="the scale"):
        Embedder(base, lora=tmp_path / "a.gguf", lora_scale=scale)


def test_a_scale_without_an_adapter_is_refused(base: Path) -> None:
    with pytest.raises(errors.InvalidOptionError, match=r"lora_scale is 0\.5, and there is no lora"):
        Embedder(base, lora_scale=0.5)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(ADAPTER, PAIR))
    with pytest.raises(errors.UnsupportedModelError, match=r"is an adapter(.|\n)*--lora"):
        Embedder(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.gguf", ("a.gguf", 1.0)),
        ("a.gguf:0.5", ("a.gguf", 0.5)),
        ("C:\\a.gguf", ("C:\\a.gguf", 1.0)),
        ("C:\\a.gguf:2", ("C:\\a.gguf", 2.0)),
        ("a:b.gguf", ("a:b.gguf", 1.0)),
        ("", ("", 1.0)),
    ],
)
def test_file_and_scale_of_the_option(value: str, expected: tuple[str, float]) -> None:
    assert lora_file(value) == expected


def test_the_command_line_converts_an_adapter_and_adds_it(built: dict[str, Path], tmp_path: Path) -> None:
    """And says what became of it; options that an adapter alone cannot have are refused."""
    folder, base, adapter = built["qwen3"], tmp_path / "base.gguf", tmp_path / "a.gguf"

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    for result in (
        run("convert", folder / "base", "-o", base, "--type", "f16", "--no-verify"),
        run("convert", folder / "adapter", "--base", folder / "base", "-o", adapter),
    ):
        assert result.exit_code == 0, result.output
    for option, expected in (("", "qwen3"), (":1.0", "qwen3"), (":0", "qwen3_base")):
        result = run("embed", "-m", base, "--threads", 1, "--lora", f"{adapter}{option}", *lora.TEXTS_USED)
        assert result.exit_code == 0, result.output
        assert float((np.array(json.loads(result.stdout)) * GOLDEN[expected]).sum(axis=1).min()) >= 0.9999
    assert run("convert", folder / "adapter", "--base", folder / "base", "--pooling", "cls").exit_code == 2
    alone = run("convert", folder / "adapter", "-o", tmp_path / "x.gguf")
    assert alone.exit_code == 4
    assert "--merge-lora ADAPTER" in alone.stderr
    assert "--base DIR" in alone.stderr
