"""GPT-2 (Radford et al. 2019), as transformers' GPT2LMHeadModel stores it.

Its Conv1D keeps a weight as (in, out), as our kernels are, and queries, keys and values are one.
"""

from typing import Any

from research.interchange.family import GELUS, PLAIN_LANGUAGE, Entry, Family, Fields, Row, norm


def _rows(fields: Fields) -> list[Row]:
  width, hidden, vocabulary = fields["width"], fields["mlp_width"], fields["vocabulary"]
  block, ours = "transformer.h.{}.", "transformer/layers/"

  def conv1d(theirs: str, width_in: int, width_out: int, *paths: str) -> list[Row]:
    return [
      Row(f"{block}{theirs}.weight", (width_in, width_out), tuple(f"{ours}{path}/kernel" for path in paths)),
      Row(f"{block}{theirs}.bias", (width_out,), tuple(f"{ours}{path}/bias" for path in paths)),
    ]

  copies = ("lm_head.weight",) if fields["tied"] else ()
  rows = [
    Row("transformer.wte.weight", (vocabulary, width), ("embed/embedding",), copies=copies),
    Row("transformer.wpe.weight", (fields["context"], width), ("position_embed/embedding",)),
    *norm(f"{block}ln_1", f"{ours}attention_norm", width),
    *conv1d("attn.c_attn", width, 3 * width, "attention/query", "attention/key", "attention/value"),
    *conv1d("attn.c_proj", width, width, "attention/out"),
    *norm(f"{block}ln_2", f"{ours}mlp_norm", width),
    *conv1d("mlp.c_fc", width, hidden, "mlp/up"),
    *conv1d("mlp.c_proj", hidden, width, "mlp/down"),
    *norm("transformer.ln_f", "transformer/norm", width),
  ]
  head = Row("lm_head.weight", (vocabulary, width), ("head/kernel",), order=(1, 0))
  return rows if fields["tied"] else [*rows, head]


def _needs(fields: Fields) -> dict[str, Any]:
  own = {"norm": "layer", "norm_first": True, "causal": True, "positions": "learned", "bias": True}
  heads = {"kv_heads": fields["heads"], "head_width": fields["width"] // fields["heads"]}
  return {**PLAIN_LANGUAGE, **own, **heads}


GPT2 = Family(
  model_type="gpt2",
  architecture="GPT2LMHeadModel",
  prefix="transformer.",
  entries=(
    Entry("n_layer", "layers"),
    Entry("n_embd", "width"),
    Entry("n_head", "heads"),
    Entry("n_inner", "mlp_width", otherwise=lambda fields: 4 * fields["width"]),
    Entry("activation_function", "mlp", str, "gelu", GELUS),
    Entry("layer_norm_epsilon", "norm_epsilon", float, 1e-5),
    Entry("n_positions", "context"),
    Entry("vocab_size", "vocabulary"),
    Entry("tie_word_embeddings", "tied", bool, True),
  ),
  fixed={
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)
  },
  needs=_needs,
  rows=_rows,
  dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
  ignored=(r".*\.attn\.(bias|masked_bias)",),  # the causal mask, which early versions saved
)  # fmt: skip
