"""The parameter table's names, axes and sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.mlp import MLP
from research.models.table import Row, parameter_count, parameter_table


def test_rows_name_shapes_axes_and_bytes_of_boxed_and_unboxed_trees():
  model = MLP(3, (5,))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4)), train=False))["params"]
  rows = parameter_table(params)
  assert rows == [
    Row("head/bias", (3,), "float32", ("classes",), 3, 12),
    Row("head/kernel", (5, 3), "float32", ("embed", "classes"), 15, 60),
    Row("hidden_0/bias", (5,), "float32", ("mlp",), 5, 20),
    Row("hidden_0/kernel", (4, 5), "float32", ("features", "mlp"), 20, 80),
  ]
  assert parameter_table(nn.unbox(params)) == [row._replace(axes=()) for row in rows]
  assert parameter_count(params) == 43


def test_bytes_follow_the_dtype_and_scalars_count_one():
  rows = parameter_table({"a": jnp.zeros((), jnp.bfloat16)})
  assert rows == [Row("a", (), "bfloat16", (), 1, 2)]
