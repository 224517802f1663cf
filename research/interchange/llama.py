"""Llama (Touvron et al. 2023) and what shares its tensors: Mistral with a sliding window, Qwen3 with normalised queries
and keys.

Hugging Face's rotary positions turn the pair (i, i + K/2), as ours do, so no weight is permuted.
"""

from typing import Any

from research.interchange.family import PLAIN_LANGUAGE, Entry, Family, Fields, Row, dense, norm


def _rows(fields: Fields) -> list[Row]:
  width, hidden, vocabulary = fields["width"], fields["mlp_width"], fields["vocabulary"]
  head_width, ours = fields["head_width"], "transformer/layers/"
  queries, keys = fields["heads"] * head_width, fields["kv_heads"] * head_width

  def linear(theirs: str, path: str, width_in: int, width_out: int) -> list[Row]:
    return dense(f"model.layers.{{}}.{theirs}", f"{ours}{path}", width_in, width_out, bias=False)

  def scale(theirs: str, path: str, size: int) -> list[Row]:
    return norm(f"model.layers.{{}}.{theirs}", f"{ours}{path}", size, bias=False)

  copies = ("lm_head.weight",) if fields["tied"] else ()
  rows = [
    Row("model.embed_tokens.weight", (vocabulary, width), ("embed/embedding",), copies=copies),
    *scale("input_layernorm", "attention_norm", width),
    *linear("self_attn.q_proj", "attention/query", width, queries),
    *linear("self_attn.k_proj", "attention/key", width, keys),
    *linear("self_attn.v_proj", "attention/value", width, keys),
    *linear("self_attn.o_proj", "attention/out", queries, width),
    *scale("post_attention_layernorm", "mlp_norm", width),
    *linear("mlp.gate_proj", "mlp/gate", width, hidden),
    *linear("mlp.up_proj", "mlp/up", width, hidden),
    *linear("mlp.down_proj", "mlp/down", hidden, width),
    *norm("model.norm", "transformer/norm", width, bias=False),
  ]
  if fields["qk_norm"]:
    rows += scale("self_attn.q_norm", "attention/query_norm", head_width)
    rows += scale("self_attn.k_norm", "attention/key_norm", head_width)
  head = Row("lm_head.weight", (vocabulary, width), ("head/kernel",), order=(1, 0))
  return rows if fields["tied"] else [*rows, head]


def _needs(fields: Fields) -> dict[str, Any]:
  own = {"norm": "rms", "norm_first": True, "causal": True, "positions": "rotary", "bias": False}
  return {**PLAIN_LANGUAGE, **own}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
  """rope_theta and what scales it on the first level: version 5 of transformers has them in an entry of their own."""
  nested = config.get("rope_parameters")
  if not isinstance(nested, dict):
    return config
  scaled = nested.get("rope_type", "default") != "default" or set(nested) - {"rope_type", "rope_theta"}
  return {
    **config,
    "rope_theta": nested.get("rope_theta", config.get("rope_theta")),
    "rope_scaling": nested if scaled else config.get("rope_scaling"),
  }


def _more(fields: Fields) -> dict[str, Any]:
  return {"rope_parameters": {"rope_theta": fields["rotary_base"], "rope_type": "default"}}


_ENTRIES = (
  Entry("num_hidden_layers", "layers"),
  Entry("hidden_size", "width"),
  Entry("num_attention_heads", "heads"),
  Entry("num_key_value_heads", "kv_heads", otherwise=lambda fields: fields["heads"]),
  Entry("head_dim", "head_width", otherwise=lambda fields: fields["width"] // fields["heads"]),
  Entry("intermediate_size", "mlp_width"),
  Entry("hidden_act", "mlp", str, "swiglu", {"silu": "swiglu"}),
  Entry("rms_norm_eps", "norm_epsilon", float, 1e-6),
  Entry("rope_theta", "rotary_base", float, 10_000.0),
  Entry("max_position_embeddings", "context"),
  Entry("vocab_size", "vocabulary"),
  Entry("tie_word_embeddings", "tied", bool, False),
)
_FIXED = {"attention_bias": (False, None), "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"})}
_SHARED = {
  "prefix": "model.",
  "rows": _rows,
  "ignored": (r".*\.rotary_emb\.inv_freq",),  # which early versions saved
  "plain": _plain,
  "more": _more,
}

LLAMA = Family(
  model_type="llama",
  architecture="LlamaForCausalLM",
  entries=_ENTRIES,
  fixed={**_FIXED, "mlp_bias": (False, None)},
  needs=_needs,
  **_SHARED,
)
MISTRAL = Family(
  model_type="mistral",
  architecture="MistralForCausalLM",
  entries=(*_ENTRIES, Entry("sliding_window", "window", otherwise=0)),
  fixed=_FIXED,
  needs=_needs,
  **_SHARED,
)
QWEN3 = Family(
  model_type="qwen3",
  architecture="Qwen3ForCausalLM",
  entries=_ENTRIES,
  fixed={**_FIXED, "use_sliding_window": (False, None)},
  needs=lambda fields: {**_needs(fields), "qk_norm": True},
  **_SHARED,
)
