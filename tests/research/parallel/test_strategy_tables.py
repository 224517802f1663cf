"""Tables from axis names to mesh axes: what they say of each kind of tensor, and what they refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.models.mlp import MLP
from research.parallel import activations, tables
from research.parallel.mesh import make_mesh
from research.parallel.tables import STRATEGIES, Layout

MESHES = {
  "dp": "data:8", "fsdp": "data:8", "tp": "data:4,model:2", "fsdp_tp": "data:4,model:2", "sp": "data:2,sequence:4",
  "pp": "data:4,stage:2", "ep": "data:4,expert:2",
}  # fmt: skip
TENSORS = {
  # axes: what each strategy makes of them, in the order of MESHES
  ("embed", "mlp"): (P(), P("data", None), P(None, "model"), P("data", "model"), P(), P(), P()),
  ("mlp", "embed"): (P(), P(None, "data"), P("model", None), P("model", "data"), P(), P(), P()),
  ("layers", "embed", "heads"): (
    P(), P(None, "data"), P(None, None, "model"), P(None, "data", "model"), P(), P("stage"), P(),
  ),
  ("layers", "heads", "embed"): (
    P(), P(None, None, "data"), P(None, "model"), P(None, "model", "data"), P(), P("stage"), P(),
  ),
  ("layers", "experts", "embed", "mlp"): (
    P(), P(None, None, "data"), P(None, None, None, "model"), P(None, None, "data", "model"), P(), P("stage"),
    P(None, "expert"),
  ),
  ("layers", "embed", "kv_heads"): (
    P(), P(None, "data"), P(None, None, "model"), P(None, "data", "model"), P(), P("stage"), P(),
  ),
  ("vocab", "embed"): (P(), P(None, "data"), P(), P(None, "data"), P(), P(), P()),
  ("features", "mlp"): (P(), P(None, "data"), P(None, "model"), P(None, "model"), P(), P(), P()),
  (None, None, "conv_in", "conv_out"): (
    P(), P(None, None, None, "data"), *[P(None, None, None, "model")] * 2, P(), P(), P(),
  ),
  (None, None, "features", "channels"): (P(),) * 7,
  ("embed", "classes"): (P(), P("data", None), P(), P("data", None), P(), P(), P()),
  ("mlp",): (P(), P("data"), P("model"), P("model"), P(), P(), P()),
  ("norm",): (P(),) * 7,
  ("batch", "length", "mlp"): (
    P("data"), P("data"), *[P("data", None, "model")] * 2, P("data", "sequence"), P(("data", "stage")),
    P(("data", "expert")),
  ),
  ("batch", "stream_length", None): (
    P("data"), P("data"), *[P("data", "model")] * 2, P("data", "sequence"), P(("data", "stage")), P(("data", "expert")),
  ),
  ("expert_batch", "experts", None, None): (*[P("data")] * 5, P(), P("data", "expert")),
}  # fmt: skip


def test_eight_devices_are_here():
  """What is said of many devices in these tests is said of eight; with fewer they would say nothing."""
  assert jax.device_count() >= 8


def full(spec, rank):
  return P(*spec, *[None] * (rank - len(spec)))


@pytest.mark.parametrize("strategy", MESHES)
@pytest.mark.parametrize("axes", TENSORS, ids=lambda axes: "-".join(map(str, axes)))
def test_what_each_table_says(strategy, axes):
  expected = TENSORS[axes][list(MESHES).index(strategy)]
  found = tables.partition(axes, STRATEGIES[strategy].rules, make_mesh(MESHES[strategy]))
  assert full(found, len(axes)) == full(expected, len(axes))


def test_every_strategy_is_in_these_tests():
  assert MESHES.keys() == STRATEGIES.keys()


def state_of(optimizer, width=16):
  model = MLP(outputs=3, widths=(width, width))
  variables = model.init(jax.random.key(0), jnp.zeros((1, 5)), train=False)
  axes, params = tables.logical_axes(variables["params"]), nn.meta.unbox(variables)["params"]
  state = {"params": params, "opt_state": optimizer.init(params), "extra": {"ema": {"average": params}}}
  return state, axes


OPTIMIZERS = (optax.adamw(1e-3), optax.chain(optax.clip(1.0), optax.trace(0.9)), optax.contrib.muon(1e-3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["adamw", "momentum", "muon"])
def test_moments_and_averages_lie_where_their_parameters_do(optimizer):
  state, axes = state_of(optimizer)
  layout = Layout(make_mesh("data:8"), "fsdp")
  found = layout.shardings(state, axes)
  kernel = found["params"]["hidden_1"]["kernel"].spec
  assert kernel == P("data", None)
  spread = [
    sharding.spec
    for path, sharding in jax.tree_util.tree_flatten_with_path(found)[0]
    if tables.parts(path)[-2:] == ("hidden_1", "kernel")
  ]
  copies = sum(
    tables.parts(path)[-2:] == ("hidden_1", "kernel") and leaf.ndim == 2
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
  )
  assert spread == [kernel] * copies
  assert copies >= 3  # the parameter, a moment and the average


def test_arrays_are_where_the_table_says_and_have_the_same_numbers():
  state, axes = state_of(optax.adam(1e-3))
  layout = Layout(make_mesh("data:4,model:2"), "fsdp_tp")
  placed = jax.device_put(state, layout.shardings(state, axes))
  kernel = placed["params"]["hidden_1"]["kernel"]
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 8)}
  jax.tree.map(np.testing.assert_array_equal, placed, state)


def test_what_does_not_divide_is_named():
  state, axes = state_of(optax.adam(1e-3), width=12)
  with pytest.raises(UserError) as told:
    Layout(make_mesh("data:8"), "fsdp").shardings(state, axes)
  assert "head/kernel [12, 3] has 12 of embed, which --parallel.strategy=fsdp cannot divide" in str(told.value)
  assert "over data:8; --parallel.mesh=…data:4 would" in str(told.value)
  Layout(make_mesh("data:4"), "fsdp").shardings(state, axes)
  with pytest.raises(UserError, match=r"12 of embed.*over data:7; another --parallel.mesh or strategy may"):
    Layout(make_mesh("data:7"), "fsdp").shardings(state, axes)


def test_activations_are_cut_where_that_divides_and_nowhere_outside():
  x = jnp.ones((8, 6, 4))
  assert activations.constrain(x, "batch", "length", "mlp") is x
  layout = Layout(make_mesh("data:4,model:2"), "tp")

  def run(x):
    with activations.laid_out(layout):
      return activations.constrain(x, "batch", "length", "mlp"), activations.constrain(x[:3], "batch", "length", None)

  whole, part = jax.jit(run)(x)
  assert whole.sharding.spec == P("data", None, "model")
  assert part.sharding.is_fully_replicated  # three rows


def test_a_length_that_does_not_divide_is_told_the_devices_that_would():
  with activations.laid_out(Layout(make_mesh("data:1,sequence:8"), "sp")):
    with pytest.raises(UserError, match=r"have 12 of length.*over sequence:8; --parallel\.mesh=…sequence:4 would$"):
      activations.constrain(jnp.ones((8, 12, 4)), "batch", "length", None)
    with pytest.raises(UserError, match=r"have 33 of length.*over sequence:8; another --parallel\.mesh or strat"):
      activations.constrain(jnp.ones((8, 33, 4)), "batch", "length", None)
