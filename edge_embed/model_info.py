"""What a GGUF's metadata means for embeddings: pooling, prompts, limits, the EDS token.

Standard keys come first, ``edge_embed.*`` keys add what the standard has no name for, and the architecture's own
default fills a gap where there is only one sensible answer. What cannot be resolved is an error that names the
option to pass, never a guess. What the engine would crash on is refused first (``soundness``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final, cast

from edge_embed import catalogue, keys
from edge_embed.architectures import DECODERS, ENCODERS, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, POOLING_BY_ID
from edge_embed.catalogue import CatalogueEntry
from edge_embed.errors import InvalidOptionError, ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader
from edge_embed.metadata import Metadata, bos_token
from edge_embed.model_shape import shape_of
from edge_embed.projection_file import check_pooling, has_projection, projected, projection_inside
from edge_embed.prompts import INSTRUCTION_SLOT
from edge_embed.rerank_info import read_rerank_info
from edge_embed.soundness import check_tensors, check_tokenizer
from edge_embed.types import Dense, DenseActivation, ModelInfo, Pooling, RerankInfo

# general.type, what that is, and the option that takes it.
_BESIDE_A_MODEL: Final = (
    ("adapter", "an adapter", "--lora (lora=)"),
    ("projection", "a projection", "--projection (projection=)"),
)


def read_model_info(header: GgufHeader, *, pooling: Pooling | None = None, max_tokens: int | None = None) -> ModelInfo:
    """Resolve what the runtime needs to know.

    Args:
        header: the file's table of contents.
        pooling: overrides what the file says.
        max_tokens: lowers the most tokens of one text (never above what the model can hold).

    Raises:
        ModelFileError: metadata that is missing, of the wrong type, or contradicts the tensors.
        UnsupportedModelError: an architecture or pooling that is not run faithfully, or cannot be resolved.
        InvalidOptionError: ``max_tokens`` or ``pooling`` outside what the model allows.
    """
    read = Metadata(header)
    arch = read.text("general.architecture")
    for kind, what, option in _BESIDE_A_MODEL:
        if header.metadata.get("general.type") == kind:
            raise UnsupportedModelError(
                f"{read.path} is {what}, not a model of its own", hint=f"pass it beside its model, with {option}"
            )
    if arch not in ENCODERS and arch not in DECODERS:
        raise UnsupportedModelError(
            f"the architecture {arch!r} is not supported",
            hint=f"supported: {', '.join([*ENCODERS, *DECODERS])}",
        )
    n_embd = read.count(f"{arch}.embedding_length", MAX_WIDTH)
    n_ctx_train = read.count(f"{arch}.context_length", MAX_CONTEXT)
    n_layer = read.count(f"{arch}.block_count", MAX_LAYERS)
    n_vocab = check_tensors(header, read, arch, n_embd, n_ctx_train)
    check_tokenizer(read)
    known = catalogue.identify(header.path, header.metadata)
    repairs: list[str] = []
    resolved, source = _pooling(read, arch, pooling, known, repairs)
    called = f"{known.repository}, a reranker," if known and source == "catalogue" else "said to be a reranker"
    rerank = read_rerank_info(header, read, arch, n_embd, called=called) if resolved == "rank" else None
    dense = _dense(read, n_embd)
    n_vector = dense[-1].n_out if dense else n_embd
    projection = projection_inside(read, n_vector)
    if rerank and (dense or projection):
        raise UnsupportedModelError(
            f"{read.path}: a reranker with Dense layers ({keys.DENSE}*) or a projection is not supported"
        )
    if projection is not None:
        check_pooling(projection, resolved, read.path)
    limit = min(read.count(keys.MAX_TOKENS, MAX_CONTEXT, default=n_ctx_train), n_ctx_train)
    if limit < 4:
        raise ModelFileError(f"{read.path}: {keys.MAX_TOKENS} or context_length is {limit}: no room for text")
    if max_tokens is not None:
        if type(max_tokens) is not int or not 4 <= max_tokens <= n_ctx_train:
            raise InvalidOptionError(
                f"max_tokens is {max_tokens!r}", hint=f"give 4 to {n_ctx_train}, the model's positions"
            )
        limit = max_tokens
    eds = None if rerank and rerank.template else _eds_token(read, n_vocab, resolved, repairs)
    info = ModelInfo(
        path=str(header.path),
        architecture=arch,
        name=read.text("general.name", header.path.stem),
        n_embd=n_vector,
        n_ctx_train=n_ctx_train,
        n_layer=n_layer,
        n_vocab=n_vocab,
        pooling=resolved,
        pooling_source=source,
        causal=arch in DECODERS and read.flag(f"{arch}.attention.causal", True),
        max_tokens=limit,
        normalize=read.flag(keys.NORMALIZE, True),
        prompts={
            key[len(keys.PROMPT) :]: read.text(key) for key in sorted(header.metadata) if key.startswith(keys.PROMPT)
        },
        default_prompt_name=read.text(keys.DEFAULT_PROMPT_NAME, "") or None,
        instruction_template=_template(read),
        mrl_dimensions=tuple(sorted(d for d in read.integers(keys.MRL_DIMENSIONS) if 1 <= d <= n_vector)),
        eds_token_id=eds,
        unicode_normalization=_normalization(read, arch, repairs),
        types=dict(Counter(tensor.type_name for tensor in header.tensors.values()).most_common()),
        size_bytes=header.size_bytes,
        license=read.text("general.license", ""),
        repairs=tuple(repairs),
        rerank=rerank,
        dense=dense,
        shape=shape_of(header.metadata, header.tensors.values(), header.size_bytes, decoder=arch in DECODERS),
    )
    if projection is not None:
        info = projected(info, projection)
    return info if known is None else _completed(info, known)


def _completed(info: ModelInfo, known: CatalogueEntry) -> ModelInfo:
    """With the prompts, the template and the sizes of the known model that the file is, where it has none itself."""
    notes = []
    prompts, template, sizes = info.prompts, info.instruction_template, info.mrl_dimensions
    if not prompts and known.prompts:
        prompts = dict(known.prompts)
        notes.append(f"the file has no prompts; those of {known.repository} are used")
    if template is None and known.instruction_template is not None:
        template = known.instruction_template
        if prompts is info.prompts:  # else it is said already
            notes.append(f"the file has no template for instructions; that of {known.repository} is used")
    if not sizes and known.mrl_dimensions and not has_projection(info):
        sizes = known.mrl_dimensions
        notes.append(f"the file does not say to which sizes vectors can be cut; those of {known.repository} are used")
    if not notes:
        return info
    return replace(
        info,
        prompts=prompts,
        instruction_template=template,
        mrl_dimensions=sizes,
        repairs=(*info.repairs, *notes),
    )


def _pooling(
    read: Metadata, arch: str, asked: Pooling | None, known: CatalogueEntry | None, repairs: list[str]
) -> tuple[Pooling, str]:
    """How hidden states are pooled, and who says so: caller, file, catalogue, architecture.

    llama.cpp's converter takes the pooling from a file that some uploads leave out, and takes none or the mean where it
    is not there. So what is known of a model by name counts more than its file does, unless our own converter wrote
    that, which refuses to guess; or the file has a head for pairs, which is no slip.
    """
    stored = read.integer(f"{arch}.pooling_type", default=-1)
    if stored != -1 and stored not in POOLING_BY_ID:
        raise ModelFileError(f"{read.path}: {arch}.pooling_type is {stored}, not 0 to 4")
    said = POOLING_BY_ID.get(stored)
    if asked is not None:
        if asked not in ("mean", "cls", "last") and not (asked == "rank" == said):
            raise InvalidOptionError(f"unknown pooling {asked!r}", hint="one of mean, cls, last")
        return asked, "caller"
    found, whose = {**ENCODERS, **DECODERS}[arch], f"all models of the architecture {arch!r}"
    source = "architecture"
    if known is not None:
        found, whose, source = cast(Pooling, known.pooling), known.repository, "catalogue"
    trusted = known is None or said == "rank" or read.has(keys.VERSION)
    if said is not None and said != "none" and (trusted or said == found):
        return said, "file"
    if found is None:
        raise UnsupportedModelError(
            f"{read.path} does not say how hidden states are pooled, and models of the architecture {arch!r} differ",
            hint='pass pooling="mean", "cls" or "last" (--pooling), as the model\'s card says',
        )
    wrong = {None: "does not say how hidden states are pooled", "none": "says that hidden states are not pooled"}
    was = wrong.get(said, f"says that hidden states are pooled by {said!r}")
    repairs.append(f"the file {was}; {found!r} is used, as in {whose}")
    return found, source


def require_embeddings(info: ModelInfo) -> None:
    """Refuse a reranker where vectors are wanted.

    Raises:
        UnsupportedModelError: it is one.
    """
    if info.rerank is not None:
        raise UnsupportedModelError(
            f"{info.path} is a reranker: it scores pairs and has no embeddings",
            hint="score with it (edge_embed.Reranker, `edge-embed rerank`), or choose an embedding model",
        )


def require_scores(info: ModelInfo) -> RerankInfo:
    """The head of a reranker; an embedding model is refused.

    Raises:
        UnsupportedModelError: it is no reranker.
    """
    if info.rerank is None:
        raise UnsupportedModelError(
            f"{info.path} is an embedding model: it has no head that scores pairs",
            hint="embed with it (edge_embed.Embedder, `edge-embed embed`), or choose a reranker; a Qwen3-Reranker "
            "checkpoint becomes one with `edge-embed convert --reranker`",
        )
    return info.rerank


def _eds_token(read: Metadata, n_vocab: int, pooling: Pooling, repairs: list[str]) -> int | None:
    """The id that ends every text: design order [EDS], the recorded id, <|endoftext|>, else the file's own flags.

    A mean or a first token needs no such end, so there <|endoftext|> is not assumed where the file does not say so.
    """
    if read.text("tokenizer.ggml.model") == "bert":
        return None  # [SEP], see tokenizer.wordpiece
    tokens = read.tokens
    recorded = read.integer(keys.EDS_TOKEN_ID, default=-1)
    if recorded >= n_vocab:
        raise ModelFileError(f"{read.path}: {keys.EDS_TOKEN_ID} is {recorded}, and there are {n_vocab} tokens")
    flagged = read.integer("tokenizer.ggml.eos_token_id", default=-1)
    is_unigram = read.text("tokenizer.ggml.model") == "t5"  # llama.cpp's default for it
    appended = flagged if read.flag("tokenizer.ggml.add_eos_token", is_unigram) else -1
    if "[EDS]" in tokens:
        eds = tokens.index("[EDS]")
    elif recorded >= 0:
        eds = recorded
    elif (
        pooling not in ("mean", "cls") and read.text("tokenizer.ggml.pre", "") == "qwen2" and "<|endoftext|>" in tokens
    ):
        eds = tokens.index("<|endoftext|>")
    else:
        return appended if 0 <= appended < n_vocab else None
    if appended != eds:
        said = f"appends token {appended}" if appended >= 0 else "appends no token"
        repairs.append(f"the file's flags say that the tokenizer {said}; {tokens[eds]!r} ({eds}) is appended instead")
    if bos_token(read.values, None) != bos_token(read.values, eds):
        repairs.append(
            f"the file's flags say that {tokens[eds]!r} ({eds}) begins a text, too; it ends texts, and begins none"
        )
    return eds


def _template(read: Metadata) -> str | None:
    template = read.text(keys.INSTRUCTION_TEMPLATE, "") or None
    if template is not None and INSTRUCTION_SLOT not in template:
        raise ModelFileError(f"{read.path}: {keys.INSTRUCTION_TEMPLATE} has no {INSTRUCTION_SLOT}")
    return template


def _normalization(read: Metadata, arch: str, repairs: list[str]) -> str:
    form = read.text(keys.UNICODE_NORMALIZATION, "")
    if form:
        if form not in ("none", "NFC", "NFKC"):
            raise ModelFileError(f"{read.path}: {keys.UNICODE_NORMALIZATION} is {form!r}, not none, NFC or NFKC")
        return form
    pre = read.text("tokenizer.ggml.pre", "")
    if (pre == "qwen2" and arch.startswith("qwen")) or (pre == arch == "modern-bert"):
        whose = "Qwen" if pre == "qwen2" else "ModernBERT"
        repairs.append(f"the file does not record Unicode normalization; NFC is used, as {whose} tokenizers do")
        return "NFC"
    return "none"


def _dense(read: Metadata, n_embd: int) -> tuple[Dense, ...]:
    """The linear layers that the metadata holds, in order; each takes what the one before it gives."""
    layers: list[Dense] = []
    while read.has(f"{keys.DENSE}{len(layers)}.weight"):
        prefix = f"{keys.DENSE}{len(layers)}."
        n_in = read.count(prefix + "in_features", MAX_WIDTH)
        weight, bias = read.reals(prefix + "weight"), read.reals(prefix + "bias")
        expected = layers[-1].n_out if layers else n_embd
        if n_in != expected or weight.size % n_in or bias.size not in (0, weight.size // n_in):
            raise ModelFileError(
                f"{read.path}: {prefix}* has {weight.size} weights and {bias.size} biases for {n_in} values, "
                f"and vectors of {expected} come in"
            )
        activation = read.text(prefix + "activation")
        if activation not in ("identity", "tanh"):
            raise UnsupportedModelError(f"{read.path}: {prefix}activation is {activation!r}, not identity or tanh")
        matrix = weight.reshape(weight.size // n_in, n_in)
        layers.append(Dense(matrix, bias if bias.size else None, cast(DenseActivation, activation)))
    return tuple(layers)
