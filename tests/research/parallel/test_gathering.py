"""Parameters that are kept in parts: gathered whole in any order of devices, and what an update sends for them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.parallel import activations, gathering, hlo
from research.parallel.activations import Kept, spread, with_whole
from research.parallel.mesh import make_mesh
from research.parallel.tables import Layout


def line_of(places, platform="tpu"):
  """A mesh whose devices are at these places of a network."""
  devices = np.empty(len(places), object)
  devices[:] = [types.SimpleNamespace(platform=platform, coords=place, core_on_chip=0) for place in places]
  return types.SimpleNamespace(devices=devices, axis_names=("data",))


def grid(*sizes):
  return [tuple(int(each) for each in place) for place in np.ndindex(*sizes)]


@pytest.mark.parametrize(
  ("places", "expected"),
  [
    (grid(4, 2, 1), (4, 2)),
    ([(x, y, 0) for y in range(8) for x in range(8)], (8, 8)),
    (grid(2, 4, 8), (2, 4, 8)),
    ([(x, 2 * y, 0) for x in range(8) for y in range(4)], (8, 4)),  # an axis model has every second chip
    (grid(1, 8, 1), (8,)),
    ([(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)], (4,)),  # a snake: the second row goes back
    ([(0, 0, 0), (0, 1, 0), (1, 0, 0), (2, 2, 0), (3, 0, 0), (3, 1, 0)], (6,)),
    ([(0, 0, 0)], (1,)),
  ],
)
def test_directions_of_a_network(places, expected):
  assert gathering.directions(line_of(places)) == expected


def test_other_devices_are_one_line():
  assert gathering.directions(line_of(grid(4, 2, 1), "gpu")) == (8,)
  assert gathering.directions(make_mesh("data:8")) == (8,)


@pytest.mark.parametrize("sizes", [(8,), (2, 4), (4, 2), (2, 2, 2)])
@pytest.mark.parametrize("place", [0, 1])
def test_parts_come_together_in_their_order_and_gradients_are_sums(sizes, place, monkeypatch):
  monkeypatch.setattr(gathering, "directions", lambda mesh: sizes)
  mesh = make_mesh("data:8")
  x = jnp.arange(16.0 * 24).reshape(16, 24)
  spec = P(*[None] * place, "data")

  def wholes(x):
    run = lambda part: gathering.whole(part, place, mesh)[None]  # noqa: E731
    return jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=P("data"), check_vma=False)(x)

  np.testing.assert_array_equal(jax.jit(wholes)(x), np.broadcast_to(x, (8, 16, 24)))
  weights = jax.random.normal(jax.random.key(0), (8, 16, 24))
  gradient = jax.jit(jax.grad(lambda x: (weights * wholes(x)).sum()))(x)
  np.testing.assert_allclose(gradient, weights.sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("strategy", "mesh"), [("fsdp", "data:8"), ("fsdp_tp", "data:4,model:2")])
def test_a_product_and_its_gradients_are_those_of_one_device_and_lie_where_the_table_says(strategy, mesh):
  layout = Layout(make_mesh(mesh), strategy)
  keys = jax.random.split(jax.random.key(0), 2)
  x_BD, kernel_DF = jax.random.normal(keys[0], (16, 32)), jax.random.normal(keys[1], (32, 64))

  def loss(x_BD, kernel_DF):
    return jnp.square(with_whole(jnp.matmul, x_BD, kernel_DF, "embed", "mlp")).sum()

  def laid(x_BD, kernel_DF):
    with activations.laid_out(layout):
      return jax.grad(loss, argnums=(0, 1))(x_BD, kernel_DF)

  kept = jax.sharding.NamedSharding(layout.mesh, layout.spec("kernel", ("embed", "mlp"), (32, 64)))
  program = jax.jit(laid, in_shardings=(layout.rows, kept), out_shardings=(layout.rows, kept))
  for ours, theirs in zip(program(x_BD, kernel_DF), jax.grad(loss, argnums=(0, 1))(x_BD, kernel_DF), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  sent = {each.kind for each in hlo.collectives(program.lower(x_BD, kernel_DF).compile().as_text())}
  assert {"all-gather", "reduce-scatter"} <= sent
  assert strategy == "fsdp_tp" or "all-reduce" not in sent  # of fsdp_tp it is the gradient to x, over model


def test_rows_that_do_not_divide_are_left_to_xla():
  layout = Layout(make_mesh("data:8"), "fsdp")
  x_BD, kernel_DF = jnp.ones((3, 16)), jnp.ones((16, 8))

  def laid(x_BD, kernel_DF):
    with activations.laid_out(layout):
      return with_whole(jnp.matmul, x_BD, kernel_DF, "embed", "mlp")

  np.testing.assert_array_equal(jax.jit(laid)(x_BD, kernel_DF), 16 * np.ones((3, 8)))


def test_a_parameter_of_what_is_spread_comes_whole_only_where_it_is_but_kept_in_parts():
  seen = {}

  def shapes(strategy, mesh):
    def function(cut, x_BD, kernel_DF):
      seen[strategy] = kernel_DF.shape
      return x_BD @ kernel_DF

    def laid(x_BD, kernel_DF):
      with activations.laid_out(Layout(make_mesh(mesh), strategy)):
        axes = ("batch", "mlp")
        return spread(function, (("batch", None), Kept((None, "mlp"))), axes)(x_BD, kernel_DF)

    np.testing.assert_array_equal(jax.jit(laid)(jnp.ones((16, 16)), jnp.ones((16, 8))), 16 * np.ones((16, 8)))

  shapes("fsdp", "data:8")
  shapes("tp", "data:4,model:2")
  assert seen == {"fsdp": (16, 8), "tp": (16, 4)}
