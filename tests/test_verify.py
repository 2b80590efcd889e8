"""verify: sound files of every family pass, and whatever is broken on purpose fails with its cause named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from edge_embed.convert import convert
from edge_embed.convert.plan import opened_plan
from edge_embed.convert.verify import Scope, Verification, check, verify
from edge_embed.convert.verify.compare import score_loss, vector_loss
from edge_embed.convert.verify.limits import LIMITS
from edge_embed.errors import InvalidOptionError
from tests import families
from tests.checkpoints import build_tiny_bert
from tests.converting import converted_models, small_qwen3
from tests.families import lora, qwen3_reranker

TEXTS = [
    "A cat sleeps on the warm windowsill.", "Über die Größe der Äpfel", "How do I bake bread?", "Кошка спит.",
    "the cat and the dog", "猫在窗台上睡觉", "def add(a, b): return a + b", "x", "yes, no, perhaps", "UPPER and lower",
    "one two three four five six seven eight nine ten",
]  # fmt: skip

Entries = dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]]
Tensors = dict[str, tuple[np.ndarray, Any]]


def rewritten(source: Path, target: Path, change: Callable[[Entries, Tensors], None]) -> Path:
    """A copy of a GGUF whose metadata and tensors were changed in between."""
    reader = GGUFReader(source)
    entries: Entries = {}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            entries[name] = (field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
    tensors: Tensors = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    change(entries, tensors)
    writer = GGUFWriter(target, str(entries.pop("general.architecture")[0]))
    for name, (value, kind, items) in entries.items():
        writer.add_key_value(name, value, kind, items)
    for name, (data, tensor_type) in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def setting(key: str, value: Any) -> Callable[[Entries, Tensors], None]:
    def change(entries: Entries, _: Tensors) -> None:
        entries[key] = (value, *entries[key][1:])

    return change


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return converted_models(tmp_path_factory.mktemp("verify"))


def problems(found: Verification) -> str:
    return "\n".join(found.problems)


# ---------------------------------------------------------------- sound files


def _families() -> Mapping[str, tuple[Callable[[Path], Path], dict[str, Any]]]:
    others = {name: (module.build, {}) for name, module in families.modules().items()}
    for name in ("reference", "lora"):  # no tokenizer, and no single checkpoint
        del others[name]
    others["qwen3_reranker"] = (qwen3_reranker.build, {"reranker": True})
    return {"bert": (build_tiny_bert, {}), "qwen3": (small_qwen3, {}), **others}


FAMILIES = _families()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_in_f16_and_in_q4_0(family: str, tmp_path: Path) -> None:
    build, options = FAMILIES[family]
    source = build(tmp_path / "source")
    real_vocabulary = (source / "tokenizer.json").stat().st_size > 2**22  # seconds to read, so it is read once
    texts = TEXTS[:4] if real_vocabulary else TEXTS
    for ftype, cosine, score in (("f16", 0.99999, 0.005), ("q4_0", 0.9, 0.5))[: 1 if real_vocabulary else 2]:
        path = convert(source, tmp_path / f"{ftype}.gguf", ftype=ftype, **options).path
        found = verify(path, source, texts=texts, **options)
        assert found.passed, problems(found)
        assert found.n_texts == len(texts)
        assert found.n_tensors == len(GGUFReader(path).tensors)
        if found.scores is None:
            assert found.vectors is not None
            assert found.vectors.min_cosine > cosine
        else:
            assert found.scores.max_difference < score


def test_a_merged_adapter_is_part_of_the_reference(tmp_path: Path) -> None:
    lora.build(tmp_path)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    path = convert(base, tmp_path / "merged.gguf", ftype="f16", merge_lora=adapter).path
    assert verify(path, base, texts=TEXTS, merge_lora=adapter).passed
    assert "tensor blk.0.attn_q.weight: its relative error" in problems(verify(path, base, texts=TEXTS))


def test_another_converters_file_passes_without_our_keys(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Prompts are then put before the texts as they are."""

    def strip(entries: Entries, _: Tensors) -> None:
        for key in [key for key in entries if key.startswith("edge_embed.")]:
            del entries[key]

    source, path = made["qwen3"]
    found = verify(rewritten(path, tmp_path / "foreign.gguf", strip), source, texts=TEXTS)
    assert found.passed, problems(found)
    assert any("another converter" in note and "edge_embed.prompt.query" in note for note in found.notes)


# ---------------------------------------------------------------- broken files


def swap_layers(_: Entries, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        other = name.replace("blk.0.", "blk.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def transpose_q(_: Entries, tensors: Tensors) -> None:
    data, kind = tensors["blk.1.attn_q.weight"]
    tensors["blk.1.attn_q.weight"] = (data.T, kind)


def permute_q(_: Entries, tensors: Tensors) -> None:
    """Rows of each head interleaved, as llama.cpp's llama wants them and its qwen3 does not."""
    data, kind = tensors["blk.1.attn_q.weight"]
    heads = data.reshape(4, 2, len(data) // 8, -1)
    tensors["blk.1.attn_q.weight"] = (heads.swapaxes(1, 2).reshape(data.shape), kind)


def swap_gate_and_up(_: Entries, tensors: Tensors) -> None:
    gate, up = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def put_nan(_: Entries, tensors: Tensors) -> None:
    tensors["blk.0.attn_output.bias"][0][3] = np.nan


def lose_tensor(_: Entries, tensors: Tensors) -> None:
    del tensors["blk.1.attn_output_norm.bias"]


def add_tensor(_: Entries, tensors: Tensors) -> None:
    tensors["blk.0.attn_q_norm.bias"] = tensors["blk.0.attn_q_norm.weight"]


def swap_tokens(entries: Entries, _: Tensors) -> None:
    tokens = list(entries["tokenizer.ggml.tokens"][0])
    a, b = tokens.index("\u2581cat"), tokens.index("\u2581dog")
    tokens[a], tokens[b] = tokens[b], tokens[a]
    setting("tokenizer.ggml.tokens", tokens)(entries, {})


def lose_merges(entries: Entries, _: Tensors) -> None:
    setting("tokenizer.ggml.merges", entries["tokenizer.ggml.merges"][0][:4])(entries, {})


def lose_eds(entries: Entries, _: Tensors) -> None:
    """Nothing says which token ends a text, and none of that name is left to fall back on."""
    tokens = ["<|gone|>" if token == "<|endoftext|>" else token for token in entries["tokenizer.ggml.tokens"][0]]
    setting("tokenizer.ggml.tokens", tokens)(entries, {})
    setting("tokenizer.ggml.add_eos_token", False)(entries, {})
    del entries["edge_embed.eds_token_id"]


def change_eds(entries: Entries, _: Tensors) -> None:
    """The end of a chat turn in its place, as early conversions had it."""
    for key in ("edge_embed.eds_token_id", "tokenizer.ggml.eos_token_id"):
        setting(key, 278)(entries, {})


def lose_prompt(entries: Entries, _: Tensors) -> None:
    del entries["edge_embed.prompt.query"]


BROKEN: dict[str, tuple[str, Callable[[Entries, Tensors], None], tuple[str, ...]]] = {
    "layers swapped": ("bert", swap_layers, ("tensor blk.0.attn_q.weight: its relative error is 1.", "vectors: ")),
    "layers of a decoder swapped": ("qwen3", swap_layers, ("tensor blk.1.ffn_down.weight: ", "vectors: ")),
    "q transposed": ("bert", transpose_q, ("tensor blk.1.attn_q.weight: its relative error is 1.", "vectors: ")),
    "q permuted": ("qwen3", permute_q, ("tensor blk.1.attn_q.weight: its relative error is 1.",)),
    "gate for up": ("qwen3", swap_gate_and_up, ("tensor blk.0.ffn_gate.weight: ", "vectors: ")),
    "a value is not a number": ("bert", put_nan, ("tensor blk.0.attn_output.bias: its relative error is nan",)),
    "a tensor missing": (
        "bert",
        lose_tensor,
        ("tensor blk.1.attn_output_norm.bias: it is missing", "the runtime cannot use the file: "),
    ),
    "a tensor too many": ("qwen3", add_tensor, ("tensor blk.0.attn_q_norm.bias: the checkpoint has nothing",)),
    "another pooling": ("bert", setting("bert.pooling_type", 2), ("settings: bert.pooling_type is 2, ", "vectors: ")),
    "another epsilon": (
        "bert",
        setting("bert.attention.layer_norm_epsilon", 0.1),
        ("settings: bert.attention.layer_norm_epsilon is 0.1", "vectors: "),
    ),
    "another rotation": (
        "qwen3",
        setting("qwen3.rope.freq_base", 100.0),
        ("settings: qwen3.rope.freq_base is 100.0, the checkpoint makes it 1000000.0", "vectors: "),
    ),
    "capitals kept": (
        "bert",
        setting("edge_embed.wordpiece.lowercase", False),
        ("settings: edge_embed.wordpiece.lowercase is False", "ids: ", "should be 'r' ("),
    ),
    "tokens swapped": ("bert", swap_tokens, ("ids: ", "should be 'cat' (")),
    "merges lost": ("qwen3", lose_merges, ("ids: ", "texts get other token ids")),
    "EDS token lost": ("qwen3", lose_eds, ("settings: missing in", "ids: 11 of 11 texts", "(276) and is nothing")),
    "another EDS token": (
        "qwen3",
        change_eds,
        ("settings: edge_embed.eds_token_id is 278", "'<|endoftext|>' (276) and"),
    ),
    "another prompt": (
        "bert",
        setting("edge_embed.prompt.query", "Embed this: "),
        ("settings: edge_embed.prompt.query is 'Embed this: '", "ids: ", "'Represent this: "),
    ),
    "prompt lost": ("bert", lose_prompt, ("settings: missing in the metadata: edge_embed.prompt.query",)),
    "a limit raised": ("qwen3", setting("edge_embed.max_tokens", 99), ("settings: edge_embed.max_tokens is 99, ",)),
    "not normalized": ("bert", setting("edge_embed.normalize", False), ("settings: edge_embed.normalize is False",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_fails_with_its_cause(name: str, made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, change, expected = BROKEN[name]
    source, path = made[model]
    found = verify(rewritten(path, tmp_path / "broken.gguf", change), source, texts=TEXTS)
    assert not found.passed
    for part in expected:
        assert part in problems(found)


def test_an_untouched_copy_passes(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """What fails above fails by the change and not by the copying."""
    for model, (source, path) in made.items():
        found = verify(rewritten(path, tmp_path / f"{model}.gguf", lambda *_: None), source, texts=TEXTS)
        assert found.passed, problems(found)


def test_a_rerankers_rows_swapped_fail(tmp_path: Path) -> None:
    source = qwen3_reranker.build(tmp_path / "source", "one_output", real_tokenizer=False)
    path = convert(source, tmp_path / "sound.gguf", ftype="f16", reranker=True).path
    assert verify(path, source, texts=TEXTS[:3], reranker=True).passed

    def swap(_: Entries, tensors: Tensors) -> None:
        data, kind = tensors["cls.output.weight"]
        tensors["cls.output.weight"] = (data[::-1], kind)

    found = verify(rewritten(path, tmp_path / "broken.gguf", swap), source, texts=TEXTS[:3], reranker=True)
    assert "tensor cls.output.weight: its relative error is 1." in problems(found)
    assert "scores: one differs by " in problems(found)
    with pytest.raises(InvalidOptionError, match="this is a reranker"):
        verify(path, source, texts=TEXTS[:3], reranker=True, min_cosine=0.9)


def test_another_models_file_fails(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Other weights, another size, another architecture."""
    other = build_tiny_bert(tmp_path / "other", seed=1)
    wide = build_tiny_bert(tmp_path / "wide", hidden=96, prompts={})
    path = made["bert"][1]
    assert "tensor token_embd.weight: its relative error is 1." in problems(verify(path, other, texts=TEXTS))
    found = problems(verify(path, wide, texts=TEXTS))
    assert "its shape is [64, 64], expected [96, 96]" in found
    assert "vectors: they have 64 values, and the checkpoint's 96" in found
    found = problems(verify(path, made["qwen3"][0], texts=TEXTS))
    assert "settings: general.architecture is 'bert', the checkpoint makes it 'qwen3'" in found


# ---------------------------------------------------------------- how much, how strict


def test_a_stricter_cosine_can_be_asked_for(made: dict[str, tuple[Path, Path]]) -> None:
    source, path = made["qwen3"]
    assert verify(path, source, texts=TEXTS).passed
    found = verify(path, source, texts=TEXTS, min_cosine=0.99999)
    assert "vectors: the least cosine is 0.99" in problems(found)
    assert "asked for is 0.99999" in problems(found)
    with pytest.raises(InvalidOptionError, match="min_cosine is 2"):
        verify(path, source, min_cosine=2)


def test_a_large_models_reference_takes_few_short_texts(made: dict[str, tuple[Path, Path]]) -> None:
    source, path = made["bert"]
    texts = ["word " * n for n in range(1, 60)]
    with opened_plan(source) as plan:
        found = check(path, plan, Scope(flops=1.0, tensor_parts=1), texts=texts)
    assert found.passed
    assert found.vectors is not None
    assert found.vectors.n_tokens <= 160
    assert 1 < found.n_texts < 59
    assert found.notes == (f"{found.n_texts} of 59 texts, the shortest: the reference of a large model is slow",)


def test_limits_grow_with_coarseness() -> None:
    limits = list(LIMITS.values())
    for finer, coarser in itertools.pairwise(limits):
        assert finer.cosine >= coarser.cosine
        assert finer.tensor <= coarser.tensor
        assert finer.score <= coarser.score


def test_figures_of_vectors_and_scores() -> None:
    expected = np.eye(4, dtype=np.float32)
    found = np.array([[2, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 0, np.nan, 0], [0, 0, 0, 1]], np.float32)
    loss = vector_loss(expected, found, ["a", "b", "c", "d"], 9)
    assert [(text, round(cosine, 5)) for text, cosine in loss.worst] == [("c", -1), ("b", 0.6), ("a", 1), ("d", 1)]
    assert (loss.min_cosine, round(loss.mean_cosine, 5)) == (-1, 0.4)
    scores = score_loss(np.float32([0, 0]), np.float32([0, np.log(3)]), ["a", "b"], 9)
    assert scores.worst[0] == ("b", pytest.approx(0.25))
    assert vector_loss(expected, expected, ["a", "b", "c", "d"], 9).overlap == 1.0
    assert vector_loss(expected, np.zeros_like(expected), ["a", "b", "c", "d"], 9).mean_cosine == -1
