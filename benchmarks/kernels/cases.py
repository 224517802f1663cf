"""Operations on sizes from the experiments: by kernels of ours, as a script in JAX writes them, and in PyTorch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from research.kernels.attention import attention
from research.kernels.bias_act import bias_act
from research.kernels.conv import convolution
from research.kernels.conv_transpose import conv_transpose
from research.kernels.dense import product
from research.kernels.depthwise_conv import depthwise_conv
from research.kernels.dropout import dropout
from research.kernels.linear_cross_entropy import linear_cross_entropy
from research.kernels.max_over_time import greatest
from research.kernels.max_pool import max_pool
from research.kernels.norm import norm
from research.kernels.sums import add_last
from research.kernels.upfirdn2d import upfirdn2d

SAME = ((1, 1), (1, 1))
BLUR = (0.125, 0.375, 0.375, 0.125)


@dataclasses.dataclass(frozen=True)
class Case:
  """An operation on arrays of a size.

  Attributes:
    what: the size, in words.
    kernel: (*arrays) → an array; what is timed are it and its gradients to all floating arrays, of random cotangents.
    plain: the same, as a script has it.
    torch: the same of PyTorch's functional module and tensors: images are (B, C, H, W) with channels last in memory,
      kernels (O, C, h, w), sequences (B, C, L).
    shapes: of the arrays: normal ones, and then for an entry (function) what it gives.
    axes: what each is to PyTorch: "image", "kernel", "sequence" or "" for an array as it is.
    form: of the kernel; "" leaves it to the table.
    dtype: of the arrays.
  """

  what: str
  kernel: Callable[..., jax.Array]
  plain: Callable[..., jax.Array]
  torch: Callable[..., Any]
  shapes: tuple[Any, ...]
  axes: tuple[str, ...] = ("image", "kernel")
  form: str = ""
  dtype: str = "float32"


def labels(count: int, below: int) -> Callable[[], np.ndarray]:
  return lambda: np.random.default_rng(7).integers(0, below, count).astype(np.int32)


def scored(x, kernel, labels_N):
  return linear_cross_entropy(x, kernel, labels_N, jnp.full(len(x), 1.0 / len(x))).total


def all_logits(x, kernel, labels_N):
  return optax.softmax_cross_entropy_with_integer_labels(x @ kernel, labels_N).mean()


def all_scores(q, k, v, window: int = 0):
  """Causal attention with its L² scores, and a window."""
  places = jnp.arange(q.shape[1])
  mask_LL = places[None, :] <= places[:, None]
  if window:
    mask_LL &= places[None, :] > places[:, None] - window
  return jax.nn.dot_product_attention(q, k, v, mask=mask_LL[None, None])


def normalised(x, scale, bias):
  centred = x - x.mean(axis=-1, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
  return centred / deviation * scale[None, None] + bias[None, None]


def dropped(x):
  """A tenth of the values, by the bytes of jax's words."""
  words = jax.random.bits(jax.random.key(0), (x.shape[0], x[0].size // 4), jnp.uint32)
  return jnp.where(lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape) >= 26, x * (256 / 230), 0.0)


def by_channel(x, kernel, strides=(1, 1), pads=SAME, **options):
  """A convolution of each channel with (h, w, C)."""
  kernel_HW1C = kernel[:, :, None]
  groups = {"feature_group_count": x.shape[3], "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  return lax.conv_general_dilated(x, kernel_HW1C, strides, pads, **groups, **options)


def blurred(x, pads, down=1, up=1):
  kernel_HWC = jnp.asarray(np.broadcast_to(np.outer(BLUR, BLUR)[..., None], (4, 4, x.shape[3])), x.dtype)
  return by_channel(x, kernel_HWC, (down, down), pads, lhs_dilation=(up, up))


def activated(x, bias):
  return jnp.clip(jax.nn.leaky_relu(x + bias[None, None, None], 0.2) * jnp.asarray(2**0.5, x.dtype), -256, 256)


def fused_attention(F, q, k, v, window: int = 0, **options):
  """PyTorch's own, of (B, L, H, K)."""
  if window:
    import torch

    places = torch.arange(q.shape[1])
    options["attn_mask"] = (places[None] <= places[:, None]) & (places[None] > places[:, None] - window)
  return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), **options).transpose(1, 2)


def pooled(F, x, side: int):
  return F.max_pool2d(x, side, 2, side // 2 if side == 3 else 0)


def blur(x):
  """A kernel for each of 64 channels."""
  line = x.new_tensor(BLUR)
  return (line[:, None] * line).expand(64, 1, 4, 4)


CASES = {
  "conv": Case(
    "3×3, 64 to 64 channels, 64 images of 16×16",
    lambda x, kernel: convolution(x, kernel, (1, 1), SAME, None),
    lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), SAME, dimension_numbers=("NHWC", "HWIO", "NHWC")),
    lambda F, x, kernel: F.conv2d(x, kernel, padding=1),
    ((64, 16, 16, 64), (3, 3, 64, 64)),
  ),
  "conv_transpose": Case(
    "DCGAN's 4×4, 128 to 64 channels, 64 images of 7×7 to 14×14",
    lambda x, kernel: conv_transpose(x, kernel, (2, 2), "SAME"),
    lambda x, kernel: lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    lambda F, x, kernel: F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1),
    ((64, 7, 7, 128), (4, 4, 128, 64)),
  ),
  "dense": Case(
    "12 texts of 64 tokens, 128 to 512",
    lambda x, kernel: product(x, kernel, None),
    lambda x, kernel: x @ kernel,
    lambda F, x, kernel: x @ kernel,
    ((12, 64, 128), (128, 512)),
    axes=("", ""),
  ),
  "norm": Case(
    "64 images of 64 patches, width 192",
    lambda x, scale, bias: norm(x, scale, bias, kind="layer", epsilon=1e-5),
    normalised,
    lambda F, x, scale, bias: F.layer_norm(x, (192,), scale, bias),
    ((64, 64, 192), (192,), (192,)),
    axes=("", "", ""),
  ),
  "sums, of a bias in bfloat16": Case(
    "64 images of 64 patches, width 768",
    add_last,
    lambda x, bias: x + bias[None, None],
    lambda F, x, bias: x + bias,
    ((64, 64, 768), (768,)),
    axes=("", ""),
    dtype="bfloat16",
  ),
  "max_over_time": Case(
    "64 texts of 100 words, width 128, 100 filters over 5 words",
    lambda x, kernel: greatest(x, kernel, jnp.ones(x.shape[:2], bool)),
    lambda x, kernel: lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")).max(1),
    lambda F, x, kernel: F.conv1d(x, kernel, padding=2).amax(2),
    ((64, 100, 128), (5, 128, 100)),
    axes=("sequence", "kernel"),
  ),
  "linear_cross_entropy": Case(
    "4,096 tokens, width 256, 16,384 words",
    scored,
    all_logits,
    lambda F, x, kernel, labels: F.cross_entropy(x @ kernel, labels),
    ((4096, 256), (256, 16_384), labels(4096, 16_384)),
    axes=("", "", ""),
  ),
  "attention": Case(
    "causal, 1 text of 4,096 tokens, 4 heads of 64",
    lambda q, k, v: attention(q, k, v, causal=True)[0],
    all_scores,
    functools.partial(fused_attention, is_causal=True),
    ((1, 4096, 4, 64),) * 3,
    axes=("", "", ""),
  ),
  "attention, many short texts": Case(
    "64 images of 64 patches, 3 heads of 64",
    lambda q, k, v: attention(q, k, v)[0],
    jax.nn.dot_product_attention,
    fused_attention,
    ((64, 64, 3, 64),) * 3,
    axes=("", "", ""),
  ),
  "attention, a window": Case(
    "of 256, 1 text of 4,096 tokens, 4 heads of 64",
    lambda q, k, v: attention(q, k, v, causal=True, window=256)[0],
    functools.partial(all_scores, window=256),
    functools.partial(fused_attention, window=256),
    ((1, 4096, 4, 64),) * 3,
    axes=("", "", ""),
  ),
  "dropout": Case(
    "a tenth, 64 texts of 64 tokens, width 768",
    lambda x: dropout(x, jax.random.key(0), 0.1),
    dropped,
    lambda F, x: F.dropout(x, 0.1),
    ((64, 64, 768),),
    axes=("",),
  ),
  "depthwise_conv": Case(
    "3×3, 128 channels, 32 images of 28×28",
    lambda x, kernel: depthwise_conv(x, kernel, (1, 1), SAME, None),
    by_channel,
    lambda F, x, kernel: F.conv2d(x, kernel, padding=1, groups=128),
    ((32, 28, 28, 128), (3, 3, 128)),
  ),
  "depthwise_conv, halving": Case(
    "3×3, 128 channels, 32 images of 28×28",
    lambda x, kernel: depthwise_conv(x, kernel, (2, 2), SAME, None),
    functools.partial(by_channel, strides=(2, 2)),
    lambda F, x, kernel: F.conv2d(x, kernel, stride=2, padding=1, groups=128),
    ((32, 28, 28, 128), (3, 3, 128)),
  ),
  **{
    f"max_pool, {side}×{side}{', bfloat16' if dtype == 'bfloat16' else ''}": Case(
      "halving 256 images of 28×28, 32 channels",
      functools.partial(max_pool, window=(side, side), strides=(2, 2), pads=pads),
      functools.partial(nn.max_pool, window_shape=(side, side), strides=(2, 2), padding=pads),
      functools.partial(pooled, side=side),
      ((256, 28, 28, 32),),
      axes=("image",),
      dtype=dtype,
    )
    for side, pads in ((2, ((0, 0), (0, 0))), (3, SAME))
    for dtype in ("float32", "bfloat16")
  },
  "upfirdn2d, doubling": Case(
    "a blur of 4×4, 16 images of 32×32, 64 channels",
    lambda x: upfirdn2d(x, BLUR, (2, 2), (1, 1), ((2, 1), (2, 1))),
    functools.partial(blurred, up=2, pads=((2, 2), (2, 2))),
    lambda F, x: F.conv_transpose2d(x, blur(x), stride=2, padding=1, groups=64),
    ((16, 32, 32, 64),),
    axes=("image",),
  ),
  "upfirdn2d, halving": Case(
    "a blur of 4×4, 16 images of 64×64, 64 channels",
    lambda x: upfirdn2d(x, BLUR, (1, 1), (2, 2), SAME),
    functools.partial(blurred, down=2, pads=SAME),
    lambda F, x: F.conv2d(x, blur(x), stride=2, padding=1, groups=64),
    ((16, 64, 64, 64),),
    axes=("image",),
  ),
  **{
    f"bias_act{', bfloat16' if dtype == 'bfloat16' else ''}": Case(
      "leaky ReLU and a clamp, 16 images of 64×64, 64 channels",
      lambda x, bias: bias_act(x, bias, "leaky_relu", 2**0.5, 256.0),
      activated,
      lambda F, x, bias: (F.leaky_relu(x + bias[None, :, None, None], 0.2) * 2**0.5).clamp(-256, 256),
      ((16, 64, 64, 64), (64,)),
      axes=("image", ""),
      dtype=dtype,
    )
    for dtype in ("float32", "bfloat16")
  },
}
