"""LoRA adapters of what a reranker scores by: merged, and never left out in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_embed import errors
from edge_embed.convert import convert, convert_adapter
from tests.checkpoints import _normal, write_safetensors
from tests.converting import tensors
from tests.families import lora, qwen3_reranker

Unsupported = errors.UnsupportedCheckpointError
HEADS = {"untied": ("lm_head", 151669), "tied": ("model.embed_tokens", 151669), "one_output": ("score", 1)}


def head_adapter(folder: Path, kind: qwen3_reranker.Kind) -> tuple[Path, np.ndarray]:
    """An adapter that changes what a reranker scores by, and what it adds to the rows of yes and no (or to the one)."""
    module, n_rows = HEADS[kind]
    adapter = lora.build(folder, "qwen3") / "adapter"
    a, b = _normal(7, "a", (lora.RANK, 64), 0.1), _normal(7, "b", (n_rows, lora.RANK), 0.15)
    names = [f"base_model.model.{module}.lora_{half}.weight" for half in "AB"]
    write_safetensors(adapter / "adapter_model.safetensors", dict(zip(names, (a, b), strict=True)), "f32")
    rows = [0] if n_rows == 1 else [qwen3_reranker.YES, qwen3_reranker.NO]
    return adapter, lora.ALPHA / lora.RANK * b[rows] @ a


@pytest.mark.parametrize("kind", HEADS)
def test_an_adapter_of_a_rerankers_head_is_merged_and_the_notes_say_so(
    kind: qwen3_reranker.Kind, tmp_path: Path
) -> None:
    """What embedding models leave out (lm_head, score) is what these score by."""
    base = qwen3_reranker.build(tmp_path / "base", kind)
    adapter, added = head_adapter(tmp_path / "lora", kind)
    plain, merged = (
        convert(base, tmp_path / f"{i}.gguf", ftype="f32", reranker=True, merge_lora=lora_folder)
        for i, lora_folder in enumerate((None, adapter))
    )
    before, after = (np.array(tensors(report.path)["cls.output.weight"].data) for report in (plain, merged))
    np.testing.assert_allclose(after[: len(added)] - before[: len(added)], added, atol=1e-6)
    assert np.abs(added).max() > 0.1
    notes = [note for note in merged.notes if note.startswith("adapter:")]
    partly = "adapter: of lm_head only the rows that the reranker scores by are changed and kept"
    assert notes == ([partly] if kind == "untied" else [])


def test_an_adapter_of_lm_head_is_left_out_of_an_embedding_model_which_does_not_use_it(tmp_path: Path) -> None:
    base = qwen3_reranker.build(tmp_path / "base", "untied")
    adapter, _ = head_adapter(tmp_path / "lora", "untied")
    merged = convert(base, tmp_path / "m.gguf", ftype="f32", merge_lora=adapter)
    assert "adapter: lm_head is left out: the output matrix over the vocabulary" in "\n".join(merged.notes)


@pytest.mark.parametrize("kind", ["untied", "one_output"])
def test_an_adapter_of_a_rerankers_head_is_not_converted_without_its_base(
    kind: qwen3_reranker.Kind, tmp_path: Path
) -> None:
    """llama.cpp would score without it."""
    base = qwen3_reranker.build(tmp_path / "base", kind, sentence_transformers=True)
    adapter, _ = head_adapter(tmp_path / "lora", kind)
    with pytest.raises(Unsupported, match="changes what the reranker scores by") as caught:
        convert_adapter(adapter, base, tmp_path / "a.gguf")
    assert "--merge-lora" in caught.value.hint
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_of_lm_head_among_others_is_converted_with_a_warning_for_rerankers(tmp_path: Path) -> None:
    """The same weights are an embedding model's and a reranker's: the base alone does not tell."""
    base = qwen3_reranker.build(tmp_path / "base", "untied")
    adapter = lora.build(tmp_path / "lora", "qwen3") / "adapter"
    halves = {"lm_head": ((lora.RANK, 64), (151669, lora.RANK)), "model.layers.0.mlp.up_proj": ((8, 64), (192, 8))}
    arrays = {
        f"base_model.model.{module}.lora_{half}.weight": _normal(7, f"{module}{half}", shape, 0.1)
        for module, shapes in halves.items()
        for half, shape in zip("AB", shapes, strict=True)
    }
    write_safetensors(adapter / "adapter_model.safetensors", arrays, "f32")
    report = convert_adapter(adapter, base, tmp_path / "a.gguf")
    assert [tensor.name for tensor in report.tensors] == ["blk.0.ffn_up.weight.lora_a", "blk.0.ffn_up.weight.lora_b"]
    assert report.notes == (
        "lm_head is left out: embeddings do not use it; a reranker scores by it and needs the adapter merged",
    )
