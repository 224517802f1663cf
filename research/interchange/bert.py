"""BERT (Devlin et al. 2019) with its masked-language head, as transformers' BertForMaskedLM stores it.

Post-norm, two kinds of token, and a head of a dense layer, a norm and the embedding's transpose with a bias. The pooler
and the next-sentence head, which other classes of transformers save too, are left out.
"""

from typing import Any

from research.interchange.family import GELUS, PLAIN_LANGUAGE, Entry, Family, Fields, Row, dense, norm


def _rows(fields: Fields) -> list[Row]:
  width, hidden, vocabulary = fields["width"], fields["mlp_width"], fields["vocabulary"]
  block, ours, tied = "bert.encoder.layer.{}.", "transformer/layers/", fields["tied"]
  embeddings, head, decoder = "bert.embeddings.", "cls.predictions.", "cls.predictions.decoder."
  rows = [
    Row(
      f"{embeddings}word_embeddings.weight", (vocabulary, width), ("embed/embedding",),
      copies=(f"{decoder}weight",) if tied else (),
    ),
    Row(f"{embeddings}position_embeddings.weight", (fields["context"], width), ("position_embed/embedding",)),
    Row(f"{embeddings}token_type_embeddings.weight", (fields["token_types"], width), ("type_embed/embedding",)),
    *norm(f"{embeddings}LayerNorm", "embed_norm", width),
    *dense(f"{block}attention.self.query", f"{ours}attention/query", width, width),
    *dense(f"{block}attention.self.key", f"{ours}attention/key", width, width),
    *dense(f"{block}attention.self.value", f"{ours}attention/value", width, width),
    *dense(f"{block}attention.output.dense", f"{ours}attention/out", width, width),
    *norm(f"{block}attention.output.LayerNorm", f"{ours}attention_norm", width),
    *dense(f"{block}intermediate.dense", f"{ours}mlp/up", width, hidden),
    *dense(f"{block}output.dense", f"{ours}mlp/down", hidden, width),
    *norm(f"{block}output.LayerNorm", f"{ours}mlp_norm", width),
    *dense(f"{head}transform.dense", "transform_dense", width, width),
    *norm(f"{head}transform.LayerNorm", "transform_norm", width),
  ]  # fmt: skip
  if tied:
    return [*rows, Row(f"{head}bias", (vocabulary,), ("head_bias",), copies=(f"{decoder}bias",))]
  # Untied, version 5 adds the decoder's bias and version 4 the head's.
  bias = Row(f"{decoder}bias", (vocabulary,), ("head_bias",), also=(f"{head}bias",))
  return [*rows, Row(f"{decoder}weight", (vocabulary, width), ("head/kernel",), order=(1, 0)), bias]


def _needs(fields: Fields) -> dict[str, Any]:
  own = {"norm": "layer", "norm_first": False, "causal": False, "positions": "learned", "bias": True}
  heads = {"kv_heads": fields["heads"], "head_width": fields["width"] // fields["heads"]}
  return {**PLAIN_LANGUAGE, **own, **heads, "embedding_norm": True, "transform": True, "head_bias": True}


BERT = Family(
  model_type="bert",
  architecture="BertForMaskedLM",
  prefix="bert.",
  entries=(
    Entry("num_hidden_layers", "layers"),
    Entry("hidden_size", "width"),
    Entry("num_attention_heads", "heads"),
    Entry("intermediate_size", "mlp_width"),
    Entry("hidden_act", "mlp", str, "gelu_exact", GELUS),
    Entry("layer_norm_eps", "norm_epsilon", float, 1e-12),
    Entry("max_position_embeddings", "context"),
    Entry("vocab_size", "vocabulary"),
    Entry("type_vocab_size", "token_types", otherwise=2),
    Entry("tie_word_embeddings", "tied", bool, True),
  ),
  fixed={"position_embedding_type": ("absolute", None), "is_decoder": (False,), "add_cross_attention": (False,)},
  needs=_needs,
  rows=_rows,
  dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
  ignored=(r"bert\.embeddings\.position_ids", r"bert\.pooler\..*", r"(bert\.)?cls\.seq_relationship\..*"),
  renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)
