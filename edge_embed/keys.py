"""Names of the GGUF metadata that edge-embed adds to the standard ones.

The converter writes them and the runtime reads them; nothing else is shared between the two.
A file without them still runs, from the architecture's defaults.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "edge_embed."

VERSION: Final = "edge_embed.version"  # uint32, 1
MAX_TOKENS: Final = "edge_embed.max_tokens"  # uint32, special tokens included
NORMALIZE: Final = "edge_embed.normalize"  # bool
EDS_TOKEN_ID: Final = "edge_embed.eds_token_id"  # uint32
UNICODE_NORMALIZATION: Final = "edge_embed.unicode_normalization"  # string: none, NFC, NFKC
DENSE: Final = "edge_embed.dense."  # + number + .in_features, .activation, .weight (float32, [out, in]), .bias
# A projection learned on a user's texts; beside a model the two arrays are tensors, without the prefix.
PROJECTION: Final = "edge_embed.projection."
PROJECTION_IN_FEATURES: Final = "edge_embed.projection.in_features"  # uint32
PROJECTION_WEIGHT: Final = "edge_embed.projection.weight"  # array of float32, [out, in]
PROJECTION_MEAN: Final = "edge_embed.projection.mean"  # array of float32, [in]; absent where the mean is kept
PROJECTION_POOLING: Final = "edge_embed.projection.pooling"  # string: mean, cls, last
PROJECTION_TEXTS: Final = "edge_embed.projection.texts"  # uint32, how many it was fit on
PROJECTION_MODEL: Final = "edge_embed.projection.model"  # string, what tells its model from others; only beside one
MRL_DIMENSIONS: Final = "edge_embed.mrl_dimensions"  # array of uint32
PROMPT: Final = "edge_embed.prompt."  # + name: string
DEFAULT_PROMPT_NAME: Final = "edge_embed.default_prompt_name"  # string
INSTRUCTION_TEMPLATE: Final = "edge_embed.instruction_template"  # string with {instruction}
RERANK_TEMPLATE: Final = "edge_embed.rerank.template"  # string with {query}, {document} and perhaps {instruction}
RERANK_INSTRUCTION: Final = "edge_embed.rerank.instruction"  # string, for calls that give none
RERANK_ACTIVATION: Final = "edge_embed.rerank.activation"  # string: sigmoid, identity
RECIPE: Final = "edge_embed.quantization.recipe"  # string, the type asked for: q8_0, ...
FALLBACKS: Final = "edge_embed.quantization.fallbacks"  # array of strings "tensor: asked -> got (why)"
IMATRIX_SHA256: Final = "edge_embed.quantization.imatrix_sha256"  # string, digest of the importance matrix
MEASURED: Final = "edge_embed.quantization.measured"  # string, what a recipe chosen by measurement loses
SOURCE_SHA256: Final = "edge_embed.source.sha256"  # string, digest of the source safetensors
SOURCE_LORA_SHA256: Final = "edge_embed.source.lora_sha256"  # string, digest of the adapter that was merged
SOURCE_REPOSITORY: Final = "edge_embed.source.repository"  # string
SOURCE_REVISION: Final = "edge_embed.source.revision"  # string

# How close the file's vectors (a reranker's scores) came to the original model's, float32, rounded to 5 digits.
VERIFY: Final = "edge_embed.verify."
VERIFY_TEXTS: Final = "edge_embed.verify.texts"  # uint32, how many were compared
VERIFY_MIN_COSINE: Final = "edge_embed.verify.min_cosine"  # float32, of the worst text
VERIFY_MEAN_COSINE: Final = "edge_embed.verify.mean_cosine"  # float32
VERIFY_OVERLAP: Final = "edge_embed.verify.top10_overlap"  # float32, share of each text's 10 nearest that stay so
VERIFY_SCORE_DIFFERENCE: Final = "edge_embed.verify.max_score_difference"  # float32

# WordPiece settings of the original tokenizer, needed for equal ids.
WORDPIECE_LOWERCASE: Final = "edge_embed.wordpiece.lowercase"  # bool
WORDPIECE_STRIP_ACCENTS: Final = "edge_embed.wordpiece.strip_accents"  # bool
WORDPIECE_CHINESE_CHARS: Final = "edge_embed.wordpiece.handle_chinese_chars"  # bool
WORDPIECE_CLEAN_TEXT: Final = "edge_embed.wordpiece.clean_text"  # bool
WORDPIECE_MAX_WORD_CHARS: Final = "edge_embed.wordpiece.max_input_chars_per_word"  # uint32

# What the original tokenizer does and the standard keys do not say.
TOKENIZER_PIPELINE: Final = "edge_embed.tokenizer.pipeline"  # string, a name of pipelines.PIPELINES
PAIR_SEPARATOR: Final = "edge_embed.tokenizer.pair_separator"  # array of uint32, ids between two texts
ADDED_LSTRIP: Final = "edge_embed.tokenizer.added.lstrip"  # array of uint32, tokens that take the spaces before them
ADDED_RSTRIP: Final = "edge_embed.tokenizer.added.rstrip"  # array of uint32, tokens that take the spaces after them
ADDED_SINGLE_WORD: Final = "edge_embed.tokenizer.added.single_word"  # array of uint32, tokens only found as words
ADDED_NORMALIZED: Final = "edge_embed.tokenizer.added.normalized"  # array of uint32, found in the normalized text
UNIGRAM_SCORES: Final = "edge_embed.tokenizer.unigram_scores"  # array of float64, where float32 does not hold them
