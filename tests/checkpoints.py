"""Tiny checkpoints of each family, written as Hugging Face and sentence-transformers write them.

Random weights with fixed seeds, small enough to build in a test and shaped so that ``transformers`` loads the
folder. Every tensor has its own generator, seeded by its name, so that a tensor does not change when others
are added; values are drawn as float64 by NumPy's PCG64, which is stable across versions, and cast afterwards.
"""

from __future__ import annotations

import functools
import json
import lzma
import string
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"
QWEN3_EDS = 151643
QWEN3_QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

_WORDS = """
a about above after again air all also always am an and animal another any are around as ask at away baby back ball
band be beach because been before being below between big bike bird black blue boat book both box boy bread bridge
brown brush building bus but by call came can car cat chair change child children city close cloud cold color come
could country cow cut dance day deep did different do dog door down drink drive each earth eat end engine even every
eye face family far fast father feed feet few field find fire first fish five floor flower fly follow food foot for
found four friend from front full game garden get girl give glass go gold good grass great green ground group grow
guitar hair half hand happy hard hat have he head hear heart help her here high hill him his hold home horse hot
hour house how hundred i ice idea if in into is island it its jump just keep kind king kitchen know lake land large
last late laugh learn leave left letter life light like line little live long look love machine made make man many
map market mean men milk money month moon more morning most mother mountain mouth move much music must my name near
new next night no north not note number ocean of off often oil old on once one onion only open or orange order other
our out over own page paint paper park part people person phone piano picture place plan plane plant play player
please point potato power put question quick rain read red rest rice ride right river road rock room round run said
same sand say school sea second see seed seven she ship shoe shop short should show side sing sit six sleep slice
slow small snow so soccer some song soon south stand star start state still stone stop store story street strong
such summer sun swim table take talk tall team tell ten than that the their them then there these they thing think
this three through time tiger to today together tomato too train tree true truck turn two under until up us use very
video violin voice walk wall want was watch water way we well went were west what wheel when where which while white
who why will wind window winter with woman women wood word work world would write year yellow yes yesterday you young
your zebra zero
""".split()
_SUFFIXES = "s es ed er est ing ly ness ment tion able ful less ish al ic ous ive ity ism ist th en y".split()
_OTHERS = "äöüßéèñçøåαβγдежи中文你好世界日本語한국어。，！？€£°–—“”‘’…"


def wordpiece_vocabulary() -> list[str]:
    """Special tokens, every ASCII character whole and as a continuation, common words, endings, some others."""
    characters = [c for c in string.printable if not c.isspace()] + list(_OTHERS)
    letters = list(string.ascii_lowercase + string.ascii_uppercase + string.digits)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    pieces += ["##" + c for c in letters + [c for c in _OTHERS if c.isalpha()]]
    pieces += _WORDS + ["##" + suffix for suffix in _SUFFIXES]
    return list(dict.fromkeys(pieces))


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _normal(seed: int, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> npt.NDArray[Any]:
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    return (mean + std * generator.standard_normal(shape)).astype(np.float32)


def write_safetensors(path: Path, tensors: dict[str, npt.NDArray[Any]], dtype: str = "f32") -> None:
    """float32 arrays as a safetensors file of that dtype (``f32``, ``f16`` or ``bf16``, rounded to nearest even)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks: list[bytes] = []
    offset = 0
    for name, values in tensors.items():
        array = np.ascontiguousarray(values, dtype=np.float32)
        if dtype == "f32":
            data = array.astype("<f4").tobytes()
        elif dtype == "f16":
            data = array.astype("<f2").tobytes()
        elif dtype == "bf16":
            bits = array.view(np.uint32)
            data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            raise ValueError(f"unknown dtype {dtype}")
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(chunks))


def _write_weights(folder: Path, tensors: dict[str, npt.NDArray[Any]], dtype: str, sharded: bool) -> None:
    if not sharded:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(halves, start=1):
        file = f"model-{number:05d}-of-{len(halves):05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.size for t in tensors.values()) * (4 if dtype == "f32" else 2)
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def _write_sentence_transformers(
    folder: Path,
    *,
    hidden: int,
    pooling: str,
    spelling: str,
    normalize: bool,
    prompts: dict[str, str] | None,
    default_prompt_name: str | None = None,
    max_seq_length: int | None = None,
) -> None:
    prefix = "sentence_transformers.models."
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    _write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": prefix + kind} for i, (path, kind) in enumerate(kinds)],
    )
    if spelling == "booleans":
        flags = {
            "cls": "pooling_mode_cls_token",
            "mean": "pooling_mode_mean_tokens",
            "max": "pooling_mode_max_tokens",
            "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
            "weightedmean": "pooling_mode_weightedmean_tokens",
            "lasttoken": "pooling_mode_lasttoken",
        }
        config: dict[str, Any] = {"word_embedding_dimension": hidden}
        config |= {flag: mode == pooling for mode, flag in flags.items()}
    elif spelling == "string":
        config = {"embedding_dimension": hidden, "pooling_mode": pooling}
    else:
        raise ValueError(f"unknown spelling {spelling}")
    _write_json(folder / "1_Pooling" / "config.json", config | {"include_prompt": True})
    _write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": default_prompt_name, "similarity_fn_name": "cosine"},
    )
    if max_seq_length is not None:
        _write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": max_seq_length, "do_lower_case": False},
        )


def wordpiece_tokenizer(vocab: list[str], *, lowercase: bool = True) -> dict[str, Any]:
    """``tokenizer.json`` of a BERT model over this vocabulary, as the ``tokenizers`` library serializes it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {piece: i for i, piece in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    return result


def build_tiny_bert(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    vocab: list[str] | None = None,
    max_pos: int = 128,
    seed: int = 0,
    pooling: str = "mean",
    spelling: str = "booleans",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    dtype: str = "f32",
    sharded: bool = False,
    prefix: str = "",
    lowercase: bool = True,
    max_seq_length: int | None = None,
) -> Path:
    """A BERT encoder with mean or CLS pooling; returns the folder.

    ``prefix`` is put before every tensor name (``bert.`` in checkpoints of models with a head).
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = wordpiece_vocabulary() if vocab is None else vocab
    ffn = 4 * hidden
    tensors: dict[str, npt.NDArray[Any]] = {}

    def weight(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        tensors[prefix + name] = _normal(seed, name, shape, std, mean)

    def linear(name: str, n_out: int, n_in: int) -> None:
        weight(f"{name}.weight", n_out, n_in, std=0.9 / n_in**0.5)
        weight(f"{name}.bias", n_out, std=0.05)

    def norm(name: str) -> None:
        weight(f"{name}.weight", hidden, std=0.05, mean=1.0)
        weight(f"{name}.bias", hidden, std=0.05)

    weight("embeddings.word_embeddings.weight", len(pieces), hidden, std=0.1)
    weight("embeddings.position_embeddings.weight", max_pos, hidden, std=0.03)
    weight("embeddings.token_type_embeddings.weight", 2, hidden, std=0.03)
    norm("embeddings.LayerNorm")
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", ffn, hidden)
        linear(f"{layer}.output.dense", hidden, ffn)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    _write_weights(folder, tensors, dtype, sharded)

    _write_json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": max_pos,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": len(pieces),
        },
    )
    _write_json(folder / "tokenizer.json", wordpiece_tokenizer(pieces, lowercase=lowercase))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": lowercase,
            "model_max_length": max_pos,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            **{f"{k}_token": f"[{k.upper()}]" for k in ("unk", "sep", "pad", "cls", "mask")},
        },
    )
    _write_sentence_transformers(
        folder,
        hidden=hidden,
        pooling=pooling,
        spelling=spelling,
        normalize=normalize,
        prompts=prompts,
        max_seq_length=max_seq_length,
    )
    return folder


@functools.lru_cache(maxsize=1)
def qwen3_tokenizer_text() -> str:
    """The real ``tokenizer.json`` of Qwen3 with the embedding models' post-processor, which appends the EDS token."""
    tokenizer = json.loads(lzma.decompress((DATA / "qwen3-tokenizer.json.xz").read_bytes()))
    _append_eds(tokenizer, "<|endoftext|>", QWEN3_EDS)
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def _append_eds(tokenizer: dict[str, Any], token: str, token_id: int) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    eds = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer["post_processor"] = {
        "type": "Sequence",
        "processors": [
            byte_level,
            {
                "type": "TemplateProcessing",
                "single": [first, eds],
                "pair": [first, eds, second, eds],
                "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
            },
        ],
    }


def small_bpe_tokenizer() -> dict[str, Any]:
    """``tokenizer.json`` of Qwen3's kind with 256 bytes, a few merges and three added tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    pairs = "Ġ t,Ġ a,h e,i n,r e,o n,Ġt he,e r,Ġ s,a t,e n,o r,Ġ w,n d,Ġ o,in g,Ġa nd,i s,Ġ c,o u"
    merges = [pair.split(" ") for pair in pairs.split(",")]
    tokens += ["".join(pair) for pair in merges]
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(tokens) + i,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, content in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    _append_eds(tokenizer, "<|endoftext|>", len(tokens))
    return tokenizer


def build_tiny_qwen3(
    folder: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    seed: int = 0,
    tied: bool = True,
    prefix: str = "",
    real_tokenizer: bool = True,
    dtype: str = "bf16",
    sharded: bool = False,
    max_pos: int = 2048,
    prompts: dict[str, str] | None = None,
    sentence_transformers: bool = True,
    n_rows: int | None = None,
) -> Path:
    """A Qwen3 decoder as an embedding model; returns the folder.

    Args:
        prefix: put before tensor names: ``model.`` as in ``Qwen3ForCausalLM``, or nothing.
        real_tokenizer: Qwen3's own 151,669 tokens; otherwise about 280, which is faster.
        prompts: the query instruction of Qwen3-Embedding and an empty document prompt where None.
        sentence_transformers: write modules.json and its companions.
        n_rows: rows of the embedding matrix, where more than there are tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = qwen3_tokenizer_text() if real_tokenizer else json.dumps(small_bpe_tokenizer(), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    eds = QWEN3_EDS if real_tokenizer else 276
    rows = n_rows or (151669 if real_tokenizer else 279)
    ffn = 3 * hidden
    tensors: dict[str, npt.NDArray[Any]] = {}

    def weight(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        tensors[prefix + name] = _normal(seed, name, shape, std, mean)

    def linear(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        weight(f"{name}.weight", n_out, n_in, std=gain / n_in**0.5)

    weight("embed_tokens.weight", rows, hidden, std=0.5)
    for i in range(layers):
        layer = f"layers.{i}"
        linear(f"{layer}.self_attn.q_proj", heads * head_dim, hidden)
        linear(f"{layer}.self_attn.k_proj", kv_heads * head_dim, hidden)
        linear(f"{layer}.self_attn.v_proj", kv_heads * head_dim, hidden, gain=2.0)
        linear(f"{layer}.self_attn.o_proj", hidden, heads * head_dim, gain=2.0)
        weight(f"{layer}.self_attn.q_norm.weight", head_dim, std=0.05, mean=1.0)
        weight(f"{layer}.self_attn.k_norm.weight", head_dim, std=0.05, mean=1.0)
        linear(f"{layer}.mlp.gate_proj", ffn, hidden)
        linear(f"{layer}.mlp.up_proj", ffn, hidden)
        linear(f"{layer}.mlp.down_proj", hidden, ffn)
        weight(f"{layer}.input_layernorm.weight", hidden, std=0.05, mean=1.0)
        weight(f"{layer}.post_attention_layernorm.weight", hidden, std=0.05, mean=1.0)
    weight("norm.weight", hidden, std=0.05, mean=1.0)
    if not tied:
        tensors["lm_head.weight"] = _normal(seed, "lm_head.weight", (rows, hidden), 0.1)
    _write_weights(folder, tensors, dtype, sharded)

    _write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM" if prefix or not tied else "Qwen3Model"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": eds,
            "eos_token_id": eds,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "max_position_embeddings": max_pos,
            "max_window_layers": layers,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": tied,
            "torch_dtype": {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype],
            "use_sliding_window": False,
            "vocab_size": rows,
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer" if real_tokenizer else "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "unk_token": None,
        },
    )
    if sentence_transformers:
        _write_sentence_transformers(
            folder,
            hidden=hidden,
            pooling="lasttoken",
            spelling="booleans",
            normalize=True,
            prompts={"query": QWEN3_QUERY_PROMPT, "document": ""} if prompts is None else prompts,
        )
    return folder
