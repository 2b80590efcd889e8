"""Cross-encoders with their whole head: scores of the originals, what the file says, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from edge_embed.batching import alone, pack
from edge_embed.convert.convert import convert
from edge_embed.errors import (
    ConversionError,
    InvalidOptionError,
    ModelFileError,
    UnsupportedCheckpointError,
    UnsupportedModelError,
)
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.reranker import Reranker
from edge_embed.types import Batch, Encoding
from tests import families
from tests.converting import edited, metadata, tensors
from tests.families import cross_bert, cross_modern_bert, cross_roberta, cross_xlm_roberta
from tests.families._encoders import PAIRS

FAMILIES = [cross_bert, cross_roberta, cross_xlm_roberta, cross_modern_bert]
NAMES = [family.NAME for family in FAMILIES]
# transformers' logits lie between -2 and 2.5; 8-bit activations alone move these tiny models by as much as this
FTYPES = {"f32": 0.002, "f16": 0.01, "bf16": 0.03, "q8_0": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(family, type) -> the file, converted once."""
    cache: dict[tuple[str, str], Path] = {}

    def make(name: str, ftype: str) -> Path:
        if (name, ftype) not in cache:
            root = tmp_path_factory.mktemp(name)
            folder = families.modules()[name].build(root / "checkpoint")
            cache[name, ftype] = convert(folder, root / "model.gguf", ftype=ftype).path
        return cache[name, ftype]

    return make


@pytest.mark.parametrize("ftype", FTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_originals(name: str, ftype: str, made: Callable[[str, str], Path]) -> None:
    golden = families.golden(name)
    with Reranker(made(name, ftype), n_threads=1) as reranker:
        found = reranker.predict(PAIRS, raw_scores=True)
    assert np.abs(found - golden["scores"]).max() < FTYPES[ftype]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_joined_as_the_original_tokenizer_joins_them(name: str, made: Callable[[str, str], Path]) -> None:
    expected = families.unpacked(families.golden(name))
    with Reranker(made(name, "f16"), n_threads=1) as reranker:
        assert [reranker.tokenize(*pair).token_ids.tolist() for pair in PAIRS] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_alone_has_its_score_in_any_batch(name: str, made: Callable[[str, str], Path]) -> None:
    with Reranker(made(name, "f16"), n_batch=200, n_threads=1) as reranker:
        together = reranker.predict(PAIRS, raw_scores=True)
        alone = [reranker.predict([pair], raw_scores=True)[0] for pair in PAIRS]
    assert np.abs(together - alone).max() < 0.003


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_recorded_scores_are_what_transformers_computes_now(name: str) -> None:
    found, golden = families.modules()[name].record(), families.golden(name)
    assert np.abs(found["scores"] - golden["scores"]).max() < 1e-4
    assert families.unpacked(found) == families.unpacked(golden)


# The second text's token type, which llama.cpp does not know


def test_the_second_texts_token_type_counts(made: Callable[[str, str], Path]) -> None:
    """The golden scores tell it: with type 0 for all tokens, as llama.cpp has it, they would be others."""
    golden = families.golden("cross_bert")["scores"]
    with Reranker(made("cross_bert", "f32")) as reranker:
        encodings = [reranker.tokenize(*pair) for pair in PAIRS]
        plain = [Encoding(encoding.token_ids, encoding.n_original) for encoding in encodings]
        untyped = np.empty(len(PAIRS), dtype=np.float32)
        for batch in pack(plain, n_batch=256, n_seq_max=8):
            untyped[list(batch.indices)] = reranker.backend.engine.decode(batch)[:, 0]
    assert np.abs(untyped - golden).mean() > 0.3


@pytest.mark.parametrize(("n_types", "said"), [(2, True), (1, False)])
def test_the_conversion_says_what_llama_cpp_does_with_token_types(n_types: int, said: bool, tmp_path: Path) -> None:
    folder = cross_bert.build(tmp_path / "m", types=n_types)
    notes = convert(folder, tmp_path / "m.gguf", ftype="f16").notes
    assert any("token type 0 for both texts" in note for note in notes) == said


@pytest.mark.parametrize("ftype", ["q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m"])
def test_token_embeddings_of_every_type_are_read(ftype: str, tmp_path: Path) -> None:
    """Embeddings handed over by us are the rows that llama.cpp reads itself: one text, type 0 throughout."""
    folder = cross_bert.build(tmp_path / "m", hidden=256)
    with Reranker(convert(folder, tmp_path / "m.gguf", ftype=ftype).path) as reranker:
        ids = reranker.tokenize(*PAIRS[4]).token_ids
        (by_id,) = pack([Encoding(ids, len(ids))], n_batch=512, n_seq_max=1)
        (by_row,) = pack([Encoding(ids, len(ids), n_first=len(ids))], n_batch=512, n_seq_max=1)
        assert by_id.second is None
        assert by_row.second is not None
        assert not by_row.second.any()
        a, b = reranker.backend.engine.decode(by_id), reranker.backend.engine.decode(by_row)
    assert np.abs(a - b).max() < 1e-5


def test_a_batch_says_of_each_token_which_text_it_belongs_to() -> None:
    def encoding(n: int, n_first: int) -> Encoding:
        return Encoding(np.arange(n, dtype=np.int32), n, n_first=n_first)

    (batch,) = pack([encoding(3, 2), encoding(5, 0), encoding(4, 1)], n_batch=64, n_seq_max=8)
    assert batch.second is not None
    assert batch.second.astype(int).tolist() == [*[0, 0, 0, 0, 0], *[0, 1, 1, 1], *[0, 0, 1]]
    singles = [single.second for single in alone(batch)]
    assert [part.astype(int).tolist() for part in singles if part is not None] == [[0] * 5, [0, 1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("second", [np.zeros(3, np.bool_), np.zeros(4, np.int8), np.zeros((4, 1), np.bool_)])
def test_a_batch_whose_second_texts_do_not_fit_its_tokens_is_refused(
    second: Any, made: Callable[[str, str], Path]
) -> None:
    with (
        Reranker(made("cross_bert", "f16"), n_threads=1) as reranker,
        pytest.raises(InvalidOptionError, match="a bool for each token"),
    ):
        reranker.backend.engine.decode(Batch(np.arange(4, dtype=np.int32), np.array([4], dtype=np.int32), (0,), second))


# The file


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cross_bert", {"cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"}),
        ("cross_xlm_roberta", {"cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"}),
        ("cross_modern_bert", {"cls.weight", "cls.norm.weight", "cls.output.weight", "cls.output.bias"}),
    ],
)
def test_the_whole_head_is_in_the_file(name: str, names: set[str], made: Callable[[str, str], Path]) -> None:
    path = made(name, "f16")
    assert {tensor for tensor in tensors(path) if tensor.startswith("cls.")} == names
    found = metadata(path)
    arch = found["general.architecture"]
    assert found[f"{arch}.pooling_type"] == 4
    assert found[f"{arch}.classifier.output_labels"] == ["LABEL_0"]


@pytest.mark.parametrize(("pooling", "value"), [("mean", 1), ("cls", 2)])
def test_modern_bert_pools_before_its_head_as_config_json_says(pooling: str, value: int, tmp_path: Path) -> None:
    folder = cross_modern_bert.build(tmp_path / "m", config={"classifier_pooling": pooling})
    path = convert(folder, tmp_path / "m.gguf", ftype="f16").path
    assert metadata(path)["modern-bert.classifier.pooling_type"] == value
    expected = families.golden("cross_modern_bert")[{"mean": "scores", "cls": "cls_scores"}[pooling]]
    with Reranker(path, n_threads=1) as reranker:
        assert np.abs(reranker.predict(PAIRS, raw_scores=True) - expected).max() < 0.01


_SIGMOID, _IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "whole", "expected"),
    [
        ({}, None, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": _IDENTITY}}, None, "identity"),
        ({"sbert_ce_default_activation_function": _IDENTITY}, None, "identity"),
        ({"sentence_transformers": {"activation_fn": _SIGMOID}}, None, "sigmoid"),
        ({}, {"activation_fn": _IDENTITY, "model_type": "CrossEncoder"}, "identity"),
        ({"sentence_transformers": {"activation_fn": _IDENTITY}}, {"activation_fn": _SIGMOID}, "sigmoid"),
    ],
)
def test_the_activation_is_the_one_that_sentence_transformers_would_apply(
    config: dict[str, Any], whole: dict[str, Any] | None, expected: str, tmp_path: Path
) -> None:
    folder = cross_xlm_roberta.build(tmp_path / "m")
    edited(folder / "config.json", **config)
    if whole is not None:
        edited(folder / "config_sentence_transformers.json", **whole)
    path = convert(folder, tmp_path / "m.gguf", ftype="f16").path
    assert metadata(path)["edge_embed.rerank.activation"] == expected
    with Reranker(path) as reranker:
        logit, score = reranker.predict([PAIRS[0]], raw_scores=True)[0], reranker.predict([PAIRS[0]])[0]
    assert score == pytest.approx(logit if expected == "identity" else 1 / (1 + np.exp(-logit)), abs=1e-6)


def test_what_sentence_transformers_6_writes_beside_a_cross_encoder(tmp_path: Path) -> None:
    folder = cross_xlm_roberta.build(tmp_path / "m")
    entry = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (folder / "modules.json").write_text(json.dumps([entry]))
    edited(folder / "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn=_IDENTITY, prompts={})
    edited(folder / "sentence_bert_config.json", transformer_task="sequence-classification", max_seq_length=256)
    found = metadata(convert(folder, tmp_path / "m.gguf").path)
    assert found["edge_embed.rerank.activation"] == "identity"
    assert found["edge_embed.max_tokens"] == 256


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, "sorts into 2 classes"),
        ({"id2label": None}, "sorts into 2 classes"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.ReLU"}}, "ReLU"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_a_head_that_would_not_be_computed_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = cross_bert.build(tmp_path / "m")
    edited(folder / "config.json", **fields)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"classifier_activation": "relu"}, "classifier_activation is 'relu'"),
        ({"classifier_bias": True}, "classifier_bias is True"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    ],
)
def test_a_head_of_modern_bert_that_would_not_be_computed(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = cross_modern_bert.build(tmp_path / "m", config=config)
    with pytest.raises(UnsupportedCheckpointError, match=message):
        convert(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", NAMES)
def test_a_head_without_one_of_its_tensors_is_an_error(name: str, tmp_path: Path) -> None:
    folder = families.modules()[name].build(tmp_path / "m")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].replace(b'"classifier', b'"classifiex')
    (folder / "model.safetensors").write_bytes(raw[:8] + header + raw[8 + size :])
    with pytest.raises(ConversionError, match=r"tensor 'classifier.* is missing"):
        convert(folder, tmp_path / "m.gguf")


def test_another_pooling_cannot_be_asked_of_a_cross_encoder(tmp_path: Path) -> None:
    folder = cross_bert.build(tmp_path / "m")
    with pytest.raises(InvalidOptionError, match="scores by its head"):
        convert(folder, tmp_path / "m.gguf", pooling="mean")


@pytest.mark.parametrize("missing", ["cls.weight", "cls.bias"])
def test_a_file_without_the_dense_layer_is_refused(
    missing: str, made: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """llama.cpp's own converter leaves BERT's pooler out, and would score with the rest."""
    path = tmp_path / "m.gguf"
    path.write_bytes(_renamed(made("cross_bert", "f16"), missing))
    with pytest.raises(ModelFileError, match=f"the tensor '{missing}' is missing"):
        Reranker(path)


@pytest.mark.parametrize(("name", "said"), [("cross_bert", 1), ("cross_modern_bert", None), ("cross_modern_bert", 3)])
def test_what_the_head_takes_is_not_assumed(name: str, said: int | None, made: Callable[[str, str], Path]) -> None:
    """llama.cpp takes the mean for ModernBERT where the file does not say, and for BERT where it says so."""
    header = read_header(made(name, "f16"))
    assert read_model_info(header).rerank is not None
    key = f"{header.metadata['general.architecture']}.classifier.pooling_type"
    if said is None:
        del header.metadata[key]
    else:
        header.metadata[key] = said
    with pytest.raises(ModelFileError, match=f"{key} is {said or 'missing'}"):
        read_model_info(header)


def test_an_architecture_without_a_compared_head_is_refused(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    from tests.families import nomic_bert

    path = convert(nomic_bert.build(tmp_path / "m"), tmp_path / "m.gguf", ftype="f16").path
    header = read_header(path)
    header.metadata["nomic-bert.pooling_type"] = 4
    header.tensors["cls.output.weight"] = read_header(made("cross_bert", "f16")).tensors["cls.output.weight"]
    with pytest.raises(UnsupportedModelError, match="rerankers of the architecture 'nomic-bert'"):
        read_model_info(header)


def _renamed(path: Path, tensor: str) -> bytes:
    """The file with a tensor's name misspelled, at the same length."""
    assert any(found.name == tensor for found in GGUFReader(path).tensors)
    name = len(tensor).to_bytes(8, "little") + tensor.encode()
    return path.read_bytes().replace(name, name[:-1] + b"X", 1)
