"""cuDNN's fused attention, for what it has: no documents, no soft cap, causal only among as many queries as keys.

jax's public door to it, `jax.nn.dot_product_attention(implementation="cudnn")`, rounds the log-sum-exp to 16 bits, has
no backward pass that can be called alone, and asks the devices of this process even where it compiles for others. So
the two primitives behind it are bound here, and `limits` says so where a version of jax has them otherwise. Their rule
for sharded batches and heads is jax's own. The backward pass adds in no fixed order unless XLA is told to
(--xla_gpu_exclude_nondeterministic_ops).
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.kernels.attention.masks import How
from research.kernels.attention.mosaic_gpu import capability

DTYPES = ("bfloat16", "float16")
WIDEST = {True: 256, False: 128}  # of a head: from Hopper on, and before
OLDEST = (8, 0)  # compute capability
LIBRARY = 90000  # cuDNN 9

_ARRAYS = (
  "query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "page_table_k", "page_table_v",
)  # fmt: skip
_MADE = ("activation", "fwd_output", "grad_output")
_OPTIONS = {"scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout", "sliding_window_length"}
_NEWER = {"score_mod", "score_mod_args"}  # from jax 0.12 on


def limits(shapes: Sequence[tuple], dtypes: Sequence[Any], platform: str, *, how: How, **options: Any) -> str | None:
  """Why it cannot run, or None. Where this process has no GPU, what is compiled for one is taken to be for a Hopper."""
  del platform
  (length, width), keys = (shapes[0][1], shapes[0][3]), shapes[1][1]
  device = tuple(int(part) for part in (capability() or "9.0").split("."))
  widest = WIDEST[device >= (9, 0)]
  reasons = {
    f"it takes {' and '.join(DTYPES)}, and this is {dtypes[0]}": str(dtypes[0]) not in DTYPES,
    f"it takes heads up to {widest} wide and a multiple of 8, and this one is {width}": width > widest or width % 8,
    "it has no segments": len(shapes) > 3,
    "it has no soft cap": how.softcap,
    "it has a window only before a token": how.window and not how.causal,
    f"{length} queries end where {keys} keys do, and it has them begin together": how.causal and length != keys,
    "it has no gradient of the log-sum-exp": "gradients" in options and how.sums,
    f"this device has compute capability {device[0]}.{device[1]}": device < OLDEST,
  }
  found = [reason for reason, is_so in reasons.items() if is_so]
  return found[0] if found else _missing()


def forward(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, *, how: How):
  """→ (output_BLHK, log_sum_exp_BLH, None)."""
  inner, options = _door(), _options(how)
  none = [jnp.zeros(0, q_BLHK.dtype)] * (len(_ARRAYS) - 3)
  arrays = (q_BLHK, k_BMGK, v_BMGK, *none)
  output_BLHK, log_sum_exp_BHL = inner._dot_product_attention_fwd_p_wrapper.bind(*arrays, **options, is_training=True)
  return output_BLHK, log_sum_exp_BHL.transpose(0, 2, 1), None


def backward(q_BLHK, k_BMGK, v_BMGK, *, how: How, made, gradients):
  """→ gradients to q, k and v; of the output's alone."""
  inner, options = _door(), _options(how)
  output_BLHK, log_sum_exp_BLH, _ = made
  none = [jnp.zeros(0, q_BLHK.dtype)] * (len(_ARRAYS) - 3)
  more = (log_sum_exp_BLH.transpose(0, 2, 1), output_BLHK, gradients[0].astype(q_BLHK.dtype))
  arrays = (q_BLHK, k_BMGK, v_BMGK, *none, *more)
  return tuple(inner._dot_product_attention_bwd_p_wrapper.bind(*arrays, **options)[:3])


def _options(how: How) -> dict[str, Any]:
  inner = _door()
  options = {
    "scale": how.scale,
    "seed": 0,
    "dropout_rate": 0.0,
    "variadic_args": (False, False),  # no bias, and none of its gradient
    "mask_type": inner.MaskType.CAUSAL if how.causal else inner.MaskType.NO_MASK,
    "layout": inner.AttentionLayout.BTNH.value,
    "sliding_window_length": how.window or None,
  }
  return options | ({"score_mod": None} if "score_mod" in _names(inner._dot_product_attention_fwd_impl) else {})


def _door() -> Any:
  from jax._src.cudnn import fused_attention_stablehlo

  return fused_attention_stablehlo


def _names(function: Any) -> set[str]:
  return set(inspect.signature(function).parameters)


@functools.cache
def _missing() -> str | None:
  """Why the private door, or the library, is not what is written for here."""
  try:
    inner = _door()
    forward_names = _names(inner._dot_product_attention_fwd_impl) - _NEWER
    backward_names = _names(inner._dot_product_attention_bwd_impl) - _NEWER
    there = all(hasattr(inner, f"_dot_product_attention_{way}_p_wrapper") for way in ("fwd", "bwd"))
    known = forward_names == {*_ARRAYS, *_OPTIONS, "is_training"} and backward_names == {*_ARRAYS, *_MADE, *_OPTIONS}
  except (ImportError, AttributeError):
    there = known = False
  if not (there and known):
    return f"jax {jax.__version__} has another door to cuDNN than this was written for"
  if capability() is None:  # compiled here for a device that is not here
    return None
  try:
    from jax._src.lib import cuda_versions

    version = cuda_versions.cudnn_get_version()
  except Exception as error:  # jaxlib's own; None where there is no plugin
    return f"no cuDNN was found: {error}"
  return None if version >= LIBRARY else f"it needs cuDNN {LIBRARY // 10000}, and this is {version}"
