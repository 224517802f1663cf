"""Collectives read from compiled programs whose collectives are known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.parallel import hlo
from research.parallel.mesh import make_mesh


def compiled(body, x, mesh, axes="data"):
  spec = P(axes)
  mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  return jax.jit(mapped).lower(x).compile().as_text()


def found(text):
  return {(each.kind, each.devices): (each.count, each.bytes) for each in hlo.collectives(text)}


X = jax.ShapeDtypeStruct((64, 32), jnp.float32)  # 8 × 32 numbers a device, 1,024 bytes


@pytest.mark.parametrize(
  ("body", "kind", "size"),
  [
    (lambda x: lax.psum(x, "data"), "all-reduce", 1024),
    (lambda x: lax.all_gather(x, "data").sum(axis=0), "all-gather", 8 * 1024),
    (lambda x: jnp.tile(lax.psum_scatter(x, "data", tiled=True), (8, 1)), "reduce-scatter", 1024),
    (lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True), "all-to-all", 1024),
    (lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), "collective-permute", 1024),
  ],
)
def test_each_kind_and_its_bytes(body, kind, size):
  (collective,) = hlo.collectives(compiled(body, X, make_mesh("data:8")))
  assert (collective.kind, collective.count, collective.bytes) == (kind, 1, size)
  if kind != "collective-permute":
    assert collective.devices == 8


def test_a_loop_counts_as_often_as_it_runs_and_one_inside_another_too():
  def inner(x, _):
    return jnp.sin(lax.psum(x, "data")), None

  def outer(x, _):
    return lax.scan(inner, x, length=3)[0], None

  text = compiled(lambda x: lax.scan(outer, x, length=5)[0], X, make_mesh("data:8"))
  assert found(text) == {("all-reduce", 8): (15, 15 * 1024)}


def test_groups_are_told_apart():
  mesh = make_mesh("data:4,model:2")
  text = compiled(lambda x: lax.psum(jnp.sin(lax.psum(x, "model")), "data"), X, mesh, ("data", "model"))
  assert found(text) == {("all-reduce", 4): (1, 1024), ("all-reduce", 2): (1, 1024)}


def test_what_xla_puts_in_is_found_and_a_ring_sends_it():
  mesh = make_mesh("data:8")
  rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
  gradient = jax.jit(jax.grad(lambda w, x: jnp.square(x @ w).sum()), in_shardings=(whole, rows), out_shardings=whole)
  w = jax.ShapeDtypeStruct((32, 16), jnp.float32)
  (collective,) = hlo.collectives(gradient.lower(w, X).compile().as_text())
  assert (collective.kind, collective.bytes) == ("all-reduce", 32 * 16 * 4)
  assert collective.sent == 2 * 7 / 8 * 32 * 16 * 4


def test_one_device_sends_nothing():
  program = jax.jit(functools.partial(jnp.einsum, "ab,ab->a"))
  assert hlo.collectives(program.lower(X, X).compile().as_text()) == []


# As TPUs' compiler writes them, shortened: a gather that goes on beside two products in a loop, and a reduce-scatter.
TPU = """
%start (p: bf16[1,16]) -> (bf16[1,16], bf16[4,16]) {
  %all-gather.1 = bf16[4,16] all-gather(%p), channel_id=3, replica_groups=[1,4], dimensions={0}
  ROOT %custom-call.1 = (bf16[1,16], bf16[4,16]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}
%async_collective_fusion.7 (p: bf16[1,16], q: bf16[4,16]) -> bf16[4,16] {
  %all-gather.2 = bf16[4,16] all-gather(%p), channel_id=3, replica_groups=[1,4], dimensions={0}
}
%end (p: bf16[1,16], q: bf16[4,16]) -> bf16[4,16] {
  %all-gather.3 = bf16[4,16] all-gather(%p), channel_id=3, replica_groups=[1,4], dimensions={0}
  ROOT %custom-call.2 = bf16[4,16] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.5 (input: bf16[8,16]) -> bf16[2,16] {
  %all-reduce.9 = bf16[8,16] all-reduce(%input), channel_id=4, replica_groups=[1,4], to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,16] dynamic-slice(%all-reduce.9, %i, %zero), dynamic_slice_sizes={2,16}
}
%body (p: (s32[])) -> (s32[]) {
  %fusion.1 = bf16[4,16] fusion(%a, %b), kind=kOutput, calls=%async_collective_fusion.7
  %fusion.2 = bf16[4,16] fusion(%a, %b), kind=kOutput, calls=%async_collective_fusion.7
}
ENTRY %main (p: bf16[1,16]) -> bf16[2,16] {
  %fusion.3 = (bf16[1,16], bf16[4,16]) fusion(%p), kind=kCustom, calls=%start
  %while.1 = (s32[]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %fusion.4 = bf16[4,16] fusion(%a, %b), kind=kCustom, calls=%end
  ROOT %fusion.5 = bf16[2,16] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.5
}
"""


def test_what_goes_on_beside_products_is_counted_once_and_a_sum_that_is_sliced_is_a_reduce_scatter():
  assert found(TPU) == {("all-gather", 4): (1, 4 * 16 * 2), ("reduce-scatter", 4): (1, 8 * 16 * 2)}
  assert sum(each.sent for each in hlo.collectives(TPU)) == 3 / 4 * (4 * 16 * 2 + 8 * 16 * 2)


def test_a_transfer_is_counted_where_it_starts_even_among_those_that_go_on():
  text = TPU.replace("%start", "%async_collective_fusion.6")
  assert found(text) == found(TPU)
