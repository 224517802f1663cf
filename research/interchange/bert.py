"""BERT (Devlin et al. 2019) as transformers stores it: with its masked-language head, with a classifier, or alone.

Post-norm, two kinds of token, and a head of a dense layer, a norm and the embedding's transpose with a bias; or what a
classifier reads, [CLS] through the pooler. Each layout leaves out the others' heads, and the next-sentence head.
"""

import dataclasses
from typing import Any

from research.interchange.family import GELUS, PLAIN_LANGUAGE, Entry, Family, Fields, Row, dense, named_classes, norm

_MASKED, _POOLER, _CLASSIFIER = r"(bert\.)?cls\..*", r"bert\.pooler\..*", r"(bert\.)?classifier\..*"
_PLACES = r"bert\.embeddings\.position_ids"


def _encoder(fields: Fields, copies: tuple[str, ...] = ()) -> list[Row]:
  width, hidden, vocabulary = fields["width"], fields["mlp_width"], fields["vocabulary"]
  block, ours, embeddings = "bert.encoder.layer.{}.", "transformer/layers/", "bert.embeddings."
  kinds = (fields["token_types"] or 1, width)  # none is one of zeros
  return [
    Row(f"{embeddings}word_embeddings.weight", (vocabulary, width), ("embed/embedding",), copies=copies),
    Row(f"{embeddings}position_embeddings.weight", (fields["context"], width), ("position_embed/embedding",)),
    Row(f"{embeddings}token_type_embeddings.weight", kinds, ("type_embed/embedding",), zeros=not fields["token_types"]),
    *norm(f"{embeddings}LayerNorm", "embed_norm", width),
    *dense(f"{block}attention.self.query", f"{ours}attention/query", width, width),
    *dense(f"{block}attention.self.key", f"{ours}attention/key", width, width),
    *dense(f"{block}attention.self.value", f"{ours}attention/value", width, width),
    *dense(f"{block}attention.output.dense", f"{ours}attention/out", width, width),
    *norm(f"{block}attention.output.LayerNorm", f"{ours}attention_norm", width),
    *dense(f"{block}intermediate.dense", f"{ours}mlp/up", width, hidden),
    *dense(f"{block}output.dense", f"{ours}mlp/down", hidden, width),
    *norm(f"{block}output.LayerNorm", f"{ours}mlp_norm", width),
  ]


def _with_masked_head(fields: Fields) -> list[Row]:
  width, vocabulary, tied = fields["width"], fields["vocabulary"], fields["tied"]
  head, decoder = "cls.predictions.", "cls.predictions.decoder."
  rows = [
    *_encoder(fields, (f"{decoder}weight",) if tied else ()),
    *dense(f"{head}transform.dense", "transform_dense", width, width, head=True),
    *norm(f"{head}transform.LayerNorm", "transform_norm", width, head=True),
  ]
  if tied:
    return [*rows, Row(f"{head}bias", (vocabulary,), ("head_bias",), copies=(f"{decoder}bias",), head=True)]
  # Untied, version 5 adds the decoder's bias and version 4 the head's.
  bias = Row(f"{decoder}bias", (vocabulary,), ("head_bias",), also=(f"{head}bias",), head=True)
  return [*rows, Row(f"{decoder}weight", (vocabulary, width), ("head/kernel",), order=(1, 0), head=True), bias]


def _with_classifier(fields: Fields) -> list[Row]:
  width, classes = fields["width"], fields["classes"]
  pooler = dense("bert.pooler.dense", "pooler", width, width, head=True)
  return [*_encoder(fields), *pooler, *dense("classifier", "head", width, classes, head=True)]


def _needs(fields: Fields) -> dict[str, Any]:
  own = {"norm": "layer", "norm_first": False, "causal": False, "positions": "learned", "bias": True}
  heads = {"kv_heads": fields["heads"], "head_width": fields["width"] // fields["heads"]}
  return {**PLAIN_LANGUAGE, **own, **heads, "embedding_norm": True}


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
    Entry("type_vocab_size", "token_types", otherwise=2, nothing=1),
    Entry("tie_word_embeddings", "tied", bool, True),
  ),
  fixed={"position_embedding_type": ("absolute", None), "is_decoder": (False,), "add_cross_attention": (False,)},
  needs=lambda fields: {**_needs(fields), "transform": True, "head_bias": True},
  rows=_with_masked_head,
  dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
  ignored=(_PLACES, _POOLER, _CLASSIFIER, r"(bert\.)?cls\.seq_relationship\..*"),
  renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
  heads=("transform", "head_bias"),
)
BERT_CLASSIFIER = dataclasses.replace(
  BERT,
  architecture="BertForSequenceClassification",
  entries=(*BERT.entries, Entry("num_labels", "classes", otherwise=2)),
  needs=lambda fields: {**_needs(fields), "pooling": "first"},
  rows=_with_classifier,
  ignored=(_PLACES, _MASKED),
  heads=("transform", "head_bias", "tied", "classes", "pooling"),
  plain=named_classes,
)
# What classifies from the mean over a text has no head that transformers' BERT has.
BERT_ENCODER = dataclasses.replace(
  BERT_CLASSIFIER,
  architecture="BertModel",
  needs=lambda fields: {**_needs(fields), "pooling": "mean"},
  rows=_encoder,
  ignored=(_PLACES, _MASKED, _POOLER, _CLASSIFIER),
  leaves=("head",),
)
