"""The vision transformer (Dosovitskiy et al. 2021), as transformers' ViTForImageClassification stores it.

Its patches are a convolution (D, C, side, side); ours are rows of side·side·C values, channels last.
"""

from typing import Any

from research.interchange.family import GELUS, PLAIN, Entry, Family, Fields, Row, dense, named_classes, norm


def _rows(fields: Fields) -> list[Row]:
  width, hidden, side, channels = (fields[name] for name in ("width", "mlp_width", "patch", "channels"))
  patches = (fields["image_size"][0] // side) * (fields["image_size"][1] // side)
  block, ours, embeddings = "vit.encoder.layer.{}.", "transformer/layers/", "vit.embeddings."
  projection = f"{embeddings}patch_embeddings.projection"
  return [
    Row(f"{embeddings}cls_token", (1, 1, width), ("class_token",)),
    Row(f"{embeddings}position_embeddings", (1, patches + 1, width), ("positions",)),
    Row(f"{projection}.weight", (width, channels, side, side), ("embed/kernel",), order=(2, 3, 1, 0), joined=True),
    Row(f"{projection}.bias", (width,), ("embed/bias",)),
    *norm(f"{block}layernorm_before", f"{ours}attention_norm", width),
    *dense(f"{block}attention.attention.query", f"{ours}attention/query", width, width),
    *dense(f"{block}attention.attention.key", f"{ours}attention/key", width, width),
    *dense(f"{block}attention.attention.value", f"{ours}attention/value", width, width),
    *dense(f"{block}attention.output.dense", f"{ours}attention/out", width, width),
    *norm(f"{block}layernorm_after", f"{ours}mlp_norm", width),
    *dense(f"{block}intermediate.dense", f"{ours}mlp/up", width, hidden),
    *dense(f"{block}output.dense", f"{ours}mlp/down", hidden, width),
    *norm("vit.layernorm", "transformer/norm", width),
    *dense("classifier", "head", width, fields["classes"], head=True),
  ]


def _needs(fields: Fields) -> dict[str, Any]:
  own = {"norm": "layer", "norm_first": True, "positions": "learned", "pooling": "class", "bias": True}
  heads = {"kv_heads": fields["heads"], "head_width": fields["width"] // fields["heads"]}
  return {**PLAIN, **own, **heads, "causal": False}


VIT = Family(
  model_type="vit",
  architecture="ViTForImageClassification",
  prefix="vit.",
  entries=(
    Entry("num_hidden_layers", "layers"),
    Entry("hidden_size", "width"),
    Entry("num_attention_heads", "heads"),
    Entry("intermediate_size", "mlp_width"),
    Entry("hidden_act", "mlp", str, "gelu_exact", GELUS),
    Entry("layer_norm_eps", "norm_epsilon", float, 1e-12),
    Entry("patch_size", "patch"),
    Entry("image_size", "image_size", tuple),
    Entry("num_channels", "channels", otherwise=3),
    Entry("num_labels", "classes", otherwise=2),
  ),
  fixed={"qkv_bias": (True,)},
  needs=_needs,
  rows=_rows,
  dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
  ignored=(r"vit\.pooler\..*", r"vit\.embeddings\.mask_token"),
  heads=("classes",),
  plain=named_classes,
)
