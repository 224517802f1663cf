"""Spectral normalisation as a function of parameters: every kernel is divided by its largest singular value.

Miyato et al. 2018, section 2 and appendix A: a kernel is the matrix of its last axis against all others, and one power
iteration an update keeps an estimate of its leading singular vector. It works on any model's tree of parameters.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
Vectors = Any  # the tree of params, with u_O float32 for each kernel and None elsewhere


def init_vectors(params: Params, key: jax.Array) -> Vectors:
  """A random unit vector for each array of two or more axes, of its last axis' size."""

  def vector(path, param):
    if param.ndim < 2:
      return None
    own_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
    return _unit(jax.random.normal(own_key, (param.shape[-1],), jnp.float32))

  return jax.tree_util.tree_map_with_path(vector, params)


def normalise(params: Params, vectors: Vectors, steps: int = 1) -> tuple[Params, Vectors]:
  """Divides each kernel by σ = ‖W u‖ after `steps` power iterations; → (normalised parameters, newer vectors).

  u is held constant when the result is differentiated and σ is not: ∂σ/∂W = v uᵀ, as in appendix A of the paper.
  """

  def divide(param, u_O):
    if u_O is None:
      return param, None
    matrix_IO = param.reshape(-1, param.shape[-1])
    constant_IO = jax.lax.stop_gradient(matrix_IO)
    for _ in range(steps):
      u_O = _unit(_unit(constant_IO @ u_O) @ constant_IO)
    return param / jnp.linalg.norm(matrix_IO @ u_O), u_O

  leaves, structure = jax.tree.flatten(params)
  known = structure.flatten_up_to(vectors)
  pairs = [divide(param, u_O) for param, u_O in zip(leaves, known, strict=True)]
  return structure.unflatten([first for first, _ in pairs]), structure.unflatten([second for _, second in pairs])


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
