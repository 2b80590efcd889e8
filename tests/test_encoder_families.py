"""Encoders beside BERT: ids and vectors of the originals, of stock llama.cpp, and what is refused.

The originals' vectors were recorded by ``tests/make_golden.py`` from the checkpoints of ``tests/families``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.convert import ConversionReport, convert, reference
from edge_embed.convert.checkpoint import Checkpoint
from edge_embed.convert.reference import Tokens
from edge_embed.errors import CheckpointError, ModelFileError, UnsupportedCheckpointError, UnsupportedModelError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.rebuild import rebuilt
from tests import families
from tests.converting import MISSING, edited, metadata, tensors
from tests.families import bert_unigram, camembert, distilbert, modern_bert, nomic_bert, roberta, xlm_roberta
from tests.families._encoders import write_sentence_transformers
from tests.golden_texts import TEXTS

FTYPES = {"f32": 0.99999, "f16": 0.9999, "bf16": 0.9999, "q8_0": 0.999}
FAMILIES = [modern_bert, nomic_bert, xlm_roberta, bert_unigram, roberta, distilbert, camembert]
NAMES = [family.NAME for family in FAMILIES]


@dataclass(frozen=True)
class Family:
    """A checkpoint, what the original makes of the texts, and the files that the converter makes of it."""

    folder: Path
    golden: families.Arrays
    reports: dict[str, ConversionReport]

    @property
    def arch(self) -> str:
        return self.reports["f16"].architecture


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Families by name, each converted once."""
    cache: dict[str, Family] = {}

    def make(name: str) -> Family:
        if name not in cache:
            root = tmp_path_factory.mktemp(name)
            folder = families.modules()[name].build(root / "checkpoint")
            reports = {ftype: convert(folder, root / f"{ftype}.gguf", ftype=ftype) for ftype in FTYPES}
            cache[name] = Family(folder, families.golden(name), reports)
        return cache[name]

    return make


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b).sum(axis=1)


# Against transformers


@pytest.mark.parametrize("ftype", FTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_the_originals(name: str, ftype: str, made: Callable[[str], Family]) -> None:
    family = made(name)
    with Embedder(family.reports[ftype].path, n_threads=1) as embedder:
        found = cosines(embedder.encode(TEXTS, normalize=True), family.golden["vectors"])
    assert found.min() >= FTYPES[ftype], TEXTS[found.argmin()][:60]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_original_tokenizers(name: str, made: Callable[[str], Family]) -> None:
    """Special tokens, white space and truncation included."""
    family = made(name)
    expected = families.unpacked(family.golden)
    with Embedder(family.reports["f16"].path, n_threads=1) as embedder:
        for text, ids in zip(TEXTS, expected, strict=True):
            assert embedder.tokenize(text).token_ids.tolist() == ids, text


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_recorded_vectors_are_what_transformers_computes_now(name: str) -> None:
    found = families.modules()[name].record()
    assert cosines(found["vectors"], families.golden(name)["vectors"]).min() > 0.999999
    assert families.unpacked(found) == families.unpacked(families.golden(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_of_verify_computes_the_originals_vectors(name: str, made: Callable[[str], Family]) -> None:
    family = made(name)
    chosen = range(0, len(TEXTS), 6)
    tokens = Tokens.pack([families.unpacked(family.golden)[i] for i in chosen])
    pooling = "mean" if metadata(family.reports["f16"].path)[f"{family.arch}.pooling_type"] == 1 else "cls"
    with Checkpoint(family.folder) as checkpoint:
        found = reference.vectors(checkpoint, tokens, pooling=pooling, normalize=True)
    assert cosines(found, family.golden["vectors"][list(chosen)]).min() > 0.99999


# Against stock llama.cpp


@pytest.mark.parametrize("name", NAMES)
def test_stock_llama_cpp_gives_the_same_vectors(name: str, made: Callable[[str], Family]) -> None:
    """For the texts on which its tokenizer agrees with the original one: most of them."""
    path = made(name).reports["f16"].path
    llama = llama_cpp.Llama(
        str(path), embedding=True, verbose=False, n_threads=1, n_threads_batch=1, n_ctx=512, n_ubatch=512
    )
    with Embedder(path, n_threads=1) as embedder:
        agreed = [
            text
            for text in TEXTS[::3]
            if len(ids := embedder.tokenize(text).token_ids) < 512
            and llama.tokenize(text.encode(), add_bos=True, special=False) == ids.tolist()
        ]
        ours = embedder.encode(agreed, normalize=True)
    theirs = np.array([llama.embed(text, normalize=True) for text in agreed])
    llama.close()
    assert len(agreed) >= 11  # of 18
    assert cosines(ours, theirs).min() > 0.9999


# ModernBERT


def test_modern_berts_window_and_bases_are_in_the_file(made: Callable[[str], Family]) -> None:
    found = metadata(made("modern_bert").reports["f16"].path)
    assert found["modern-bert.attention.sliding_window"] == 128
    assert found["modern-bert.attention.sliding_window_pattern"] == 3
    assert found["modern-bert.rope.freq_base"] == 160000.0
    assert found["modern-bert.rope.freq_base_swa"] == 10000.0


def test_the_long_texts_reach_beyond_the_window(made: Callable[[str], Family], tmp_path: Path) -> None:
    """So the golden vectors tell a local layer from a global one, and one rotary base from the other."""
    family = made("modern_bert")
    longest = int(family.golden["ids_lengths"].argmax())
    assert family.golden["ids_lengths"][longest] > 3 * 128
    for change in ({"local_attention": 4096}, {"global_attn_every_n_layers": 2}, {"local_rope_theta": 160000.0}):
        folder = modern_bert.build(tmp_path / "changed", config=change)
        with Embedder(convert(folder, tmp_path / "changed.gguf", ftype="f32").path, n_threads=1) as embedder:
            vector = embedder.encode(TEXTS[longest], normalize=True)
        assert float(vector @ family.golden["vectors"][longest]) < 0.99999, change


def test_transformers_5_spells_modern_bert_otherwise(made: Callable[[str], Family], tmp_path: Path) -> None:
    folder = modern_bert.build(tmp_path / "m", spelling=5)
    five = convert(folder, tmp_path / "m.gguf", ftype="f16", name="checkpoint")
    four = made("modern_bert").reports["f16"]
    assert metadata(five.path) == metadata(four.path)


def test_a_modern_bert_with_silu(tmp_path: Path) -> None:
    """Granite's embedding models have it in the place of GELU."""
    folder = modern_bert.build(tmp_path / "m", config={"hidden_activation": "silu"})
    with Embedder(convert(folder, tmp_path / "m.gguf", ftype="f16").path, n_threads=1) as embedder:
        vectors = embedder.encode(TEXTS[::6], normalize=True)
    assert cosines(vectors, families.golden("modern_bert")["silu"]).min() > 0.9999


def test_a_null_base_of_local_layers_is_that_of_the_global_ones(tmp_path: Path) -> None:
    folder = modern_bert.build(tmp_path / "m", config={"local_rope_theta": None})
    assert metadata(convert(folder, tmp_path / "m.gguf", ftype="f16").path)["modern-bert.rope.freq_base_swa"] == 160000


def test_the_first_layer_of_modern_bert_has_no_norm(made: Callable[[str], Family]) -> None:
    names = tensors(made("modern_bert").reports["f16"].path).keys()
    assert "blk.0.attn_norm.weight" not in names
    assert "blk.1.attn_norm.weight" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"norm_bias": True}, "norm_bias is True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types .* not full_attention in every n-th layer"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "only rope_type default"),
        ({"architectures": ["ModernBertForTokenClassification"]}, "labels tokens"),
        ({"num_attention_heads": 64}, "heads of even size"),
    ],
)
def test_a_modern_bert_that_would_not_be_computed_faithfully(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = modern_bert.build(tmp_path / "m", config=change)
    with pytest.raises((UnsupportedCheckpointError, CheckpointError), match=message):
        convert(folder, tmp_path / "m.gguf")


# NomicBERT


@pytest.mark.parametrize("spelling", ["own", "native"])
def test_both_spellings_of_nomic_bert_give_one_file(
    spelling: str, made: Callable[[str], Family], tmp_path: Path
) -> None:
    folder = nomic_bert.build(tmp_path / "m", spelling=spelling)
    report = convert(folder, tmp_path / "m.gguf", ftype="f16", name="checkpoint")
    assert metadata(report.path) == metadata(made("nomic_bert").reports["f16"].path)


def test_positions_beyond_nomic_berts_training_are_left_out_and_said(made: Callable[[str], Family]) -> None:
    report = made("nomic_bert").reports["f16"]
    assert report.notes == ("512 of 2048 positions are used: those that the model was trained with",)
    assert metadata(report.path)["nomic-bert.context_length"] == 512


def test_nomic_berts_prompts_are_kept(made: Callable[[str], Family]) -> None:
    with Embedder(made("nomic_bert").reports["f16"].path, n_threads=1) as embedder:
        assert embedder.info.prompts == nomic_bert.PROMPTS
        query = embedder.encode_query("cats", normalize=True)
        assert float(query @ embedder.encode("search_query: cats", normalize=True)) > 0.99999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "somebody/else--modeling_hf_nomic_bert.OtherModel"}}, "auto_map"),
        ({"auto_map": {"AutoModel": "modeling.NomicBertModel"}}, "auto_map"),
        ({"auto_map": {}}, "auto_map"),
        ({"moe_every_n_layers": 2}, "mixtures of experts"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ({"rotary_emb_scale_base": 512}, "rotary_emb_scale_base"),
        ({"qkv_proj_bias": True}, "qkv_proj_bias"),
        ({"mlp_fc1_bias": None}, "mlp_fc1_bias is missing"),
        ({"prenorm": True}, "prenorm"),
        ({"use_rms_norm": True}, "use_rms_norm"),
        ({"causal": True}, "causal"),
        ({"hidden_size": 32}, "'n_embd' is 64, expected as hidden_size, 32"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "'rotary_emb_base' is 1000"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0}}, "only rope_type default"),
        ({"head_dim": 8}, "head_dim is 8"),
        ({"architectures": ["NomicBertForSequenceClassification"]}, "its classifier is not converted"),
    ],
)
def test_a_nomic_bert_that_would_not_be_computed_faithfully(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = nomic_bert.build(tmp_path / "m", config=change)
    with pytest.raises((UnsupportedCheckpointError, CheckpointError), match=message):
        convert(folder, tmp_path / "m.gguf")


# RoBERTa and XLM-RoBERTa


@pytest.mark.parametrize("name", ["xlm_roberta", "roberta"])
def test_positions_before_the_padding_tokens_are_left_out(name: str, made: Callable[[str], Family]) -> None:
    path = made(name).reports["f32"].path
    positions = tensors(path)["position_embd.weight"].data
    original = families.modules()[name].build(path.parent / "again")
    weights = np.fromfile(original / "model.safetensors", np.uint8)
    assert metadata(path)["bert.context_length"] == len(positions) == 512
    assert positions[0].tobytes() in weights.tobytes()
    assert metadata(path)["edge_embed.max_tokens"] == 512


@pytest.mark.parametrize("pad", [0, 5])
def test_positions_begin_behind_the_padding_token_whatever_its_id(pad: int, tmp_path: Path) -> None:
    folder = xlm_roberta.build(tmp_path / "m")
    edited(folder / "config.json", pad_token_id=pad)
    found = metadata(convert(folder, tmp_path / "m.gguf", ftype="f16").path)
    assert found["bert.context_length"] == xlm_roberta.POSITIONS - 1 - pad


def test_a_position_matrix_of_another_size_is_an_error(tmp_path: Path) -> None:
    folder = xlm_roberta.build(tmp_path / "m")
    edited(folder / "config.json", max_position_embeddings=512)
    with pytest.raises(CheckpointError, match=r"position_embeddings.* has shape \[514, 64\].* makes it \[512, 64\]"):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("names", [["XLMRobertaForMaskedLM"], MISSING])
def test_classes_of_xlm_roberta_that_are_converted(names: Any, tmp_path: Path) -> None:
    folder = xlm_roberta.build(tmp_path / "m")
    edited(folder / "config.json", architectures=names)
    assert convert(folder, tmp_path / "m.gguf").architecture == "bert"


def test_a_bert_with_a_unigram_vocabulary_has_rows_without_tokens(made: Callable[[str], Family]) -> None:
    found = metadata(made("bert_unigram").reports["f16"].path)
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{len(found['tokenizer.ggml.tokens']) - 1}]"
    assert found["bert.context_length"] == 512


# DistilBERT


def test_distilbert_with_its_pre_training_head_is_the_same_model(made: Callable[[str], Family], tmp_path: Path) -> None:
    folder = distilbert.build(tmp_path / "m", prefix="distilbert.")
    report = convert(folder, tmp_path / "m.gguf", ftype="f16", name="checkpoint")
    assert [tensor.name for tensor in report.skipped] == [
        "vocab_layer_norm.bias", "vocab_layer_norm.weight", "vocab_projector.bias", "vocab_transform.bias",
        "vocab_transform.weight",
    ]  # fmt: skip
    ours = {name: tensor.data.tobytes() for name, tensor in tensors(report.path).items()}
    assert ours.keys() == tensors(made("distilbert").reports["f16"].path).keys()


def test_distilberts_classifier_is_refused(tmp_path: Path) -> None:
    folder = distilbert.build(tmp_path / "m")
    edited(folder / "config.json", architectures=["DistilBertForSequenceClassification"])
    with pytest.raises(UnsupportedCheckpointError, match="its head has a ReLU"):
        convert(folder, tmp_path / "m.gguf")


# Files on which llama.cpp would end the process, or compute another model


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("modern_bert", "modern-bert.hidden_activation", "relu", "hidden_activation is 'relu'"),
        ("modern_bert", "modern-bert.rope.scaling.type", "yarn", "rope.scaling.type is 'yarn'"),
        ("nomic_bert", "nomic-bert.rope.scaling.type", "nonsense", "rope.scaling.type is 'nonsense'"),
        ("nomic_bert", "nomic-bert.rope.dimension_count", 6, "of which 6 values would be rotated"),
        ("modern_bert", "modern-bert.attention.key_length", 8, "key_length is 8, expected 16"),
        ("xlm_roberta", "bert.attention.value_length", 32, "value_length is 32, expected 16"),
        ("roberta", "bert.context_length", 514, "'position_embd.weight' has shape"),
    ],
)
def test_a_file_that_llama_cpp_would_not_survive_is_refused(
    name: str, key: str, value: Any, message: str, made: Callable[[str], Family]
) -> None:
    header = read_header(made(name).reports["f16"].path)
    header.metadata[key] = value
    with pytest.raises((ModelFileError, UnsupportedModelError), match=message):
        read_model_info(header)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("xlm_roberta", "edge_embed.tokenizer.pipeline", [0]),
        ("xlm_roberta", "edge_embed.tokenizer.unigram_scores", 7),
        ("xlm_roberta", "edge_embed.tokenizer.unigram_scores", ["a"]),
        ("xlm_roberta", "tokenizer.ggml.precompiled_charsmap", [0.5]),
        ("roberta", "tokenizer.ggml.merges", [1]),
        ("modern_bert", "tokenizer.ggml.merges", "a b"),
    ],
)
def test_a_key_of_the_tokenizer_of_another_type_is_refused(
    name: str, key: str, value: Any, made: Callable[[str], Family]
) -> None:
    found = {**read_header(made(name).reports["f16"].path).metadata, key: value}
    with pytest.raises(ModelFileError, match=key):
        rebuilt("m.gguf", found, "none")


# By name


@pytest.mark.parametrize(
    ("model_type", "name", "reason"),
    [
        ("mpnet", "MPNetModel", "relative position bias"),
        ("deberta-v2", "DebertaV2Model", "disentangled attention"),
        ("albert", "AlbertModel", "share weights"),
        ("electra", "ElectraModel", "width of their own"),
        ("xlm-roberta-xl", "XLMRobertaXLModel", "normalizes before attention"),
        ("t5", "T5EncoderModel", "encoder-decoders"),
    ],
)
def test_a_family_that_is_not_computed_faithfully_is_refused_by_name(
    model_type: str, name: str, reason: str, tmp_path: Path
) -> None:
    folder = roberta.build(tmp_path / "m")
    edited(folder / "config.json", model_type=model_type, architectures=[name])
    with pytest.raises(UnsupportedCheckpointError, match=f"'{model_type}' models are not converted: .*{reason}"):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_the_tanh_approximation_of_gelu_is_what_llama_cpp_computes(act: str, tmp_path: Path) -> None:
    folder = bert_unigram.build(tmp_path / "m", act=act)
    path = convert(folder, tmp_path / "m.gguf", ftype="f32").path
    with Embedder(path, n_threads=1) as embedder:
        vectors = embedder.encode(TEXTS[::6], normalize=True)
    assert cosines(vectors, families.golden("bert_unigram")["gelu_new"]).min() > 0.999999


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_either_pooling_of_the_checkpoint_is_in_the_file(pooling: str, tmp_path: Path) -> None:
    folder = xlm_roberta.build(tmp_path / "m", pooling=pooling)
    write_sentence_transformers(folder, hidden=64, pooling=pooling)
    found = metadata(convert(folder, tmp_path / "m.gguf").path)
    assert found["bert.pooling_type"] == {"mean": 1, "cls": 2}[pooling]
