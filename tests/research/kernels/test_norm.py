"""LayerNorm and RMSNorm against the definition in float64 and XLA's form; all derivatives; and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.errors import UserError
from research.kernels import choice, native
from research.kernels.norm import norm, reference
from tests.research.kernels import oracle

EPSILON = 1e-3
SHAPES = {
  "rows": (6, 8),
  "odd": (2, 3, 5),
  "prime": (7, 13),
  "one row": (1, 9),
  "a row alone": (11,),
  "one column": (5, 1),
  "four axes": (2, 2, 3, 4),
  "many": (67, 83),
}
PARTS = {  # scale, bias, residual
  "bare": (False, False, False),
  "scale": (True, False, False),
  "scale and bias": (True, True, False),
  "bias and residual": (False, True, True),
  "everything": (True, True, True),
}
CASES = [
  *((kind, shape, "everything", "float32") for kind in ("layer", "rms") for shape in SHAPES),
  *((kind, "rows", parts, "float32") for kind in ("layer", "rms") for parts in PARTS if parts != "everything"),
  *((kind, "odd", parts, "bfloat16") for kind in ("layer", "rms") for parts in ("scale", "everything")),
]


def arrays(shape, parts, dtype):
  """{name: array} of x and what there is beside it, its cotangents, and the same in float64."""
  scaled, biased, added = PARTS[parts]
  shapes = {"x": (shape, dtype), "to_y": (shape, dtype)}
  shapes |= {"scale_D": (shape[-1:], "float32")} if scaled else {}
  shapes |= {"bias_D": (shape[-1:], "float32")} if biased else {}
  shapes |= {"residual": (shape, dtype), "to_total": (shape, dtype)} if added else {}
  pairs = {name: oracle.normal(seed, *each, dtype=of) for seed, (name, (each, of)) in enumerate(shapes.items())}
  return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def exactly(exact, kind):
  """→ (the values, {name: gradient})."""
  width = exact["x"].shape[-1]
  scale, bias = exact.get("scale_D", np.ones(width)), exact.get("bias_D", np.zeros(width))
  more = {name: exact[name] for name in ("residual", "to_y", "to_total") if name in exact}
  y, total, (to_x, to_scale, to_bias) = reference.norm(exact["x"], scale, bias, kind=kind, epsilon=EPSILON, **more)
  slopes = {"x": to_x, "residual": to_x, "scale_D": to_scale, "bias_D": to_bias}
  return [y, total][: 1 + ("residual" in exact)], {name: slopes[name] for name in slopes if name in exact}


def by(form, given, kind, **more):
  """The same by a form, jitted."""
  inputs = {name: given[name] for name in ("x", "residual", "scale_D", "bias_D") if name in given}
  slopes = [given[name] for name in ("to_y", "to_total") if name in given]

  def run(inputs, slopes):
    values, back = jax.vjp(lambda inputs: norm(**inputs, kind=kind, epsilon=EPSILON, form=form, **more), inputs)
    return values, back(tuple(slopes) if len(slopes) > 1 else slopes[0])[0]

  values, gradients = jax.jit(run)(inputs, slopes)
  return list(values) if isinstance(values, tuple) else [values], gradients


@pytest.mark.parametrize(
  ("form", "kind", "shape", "parts", "dtype"),
  [(form, *case) for form in ("cpu", "native") for case in CASES if (form, case[3]) != ("native", "bfloat16")],
)
def test_it_is_its_definition(form, kind, shape, parts, dtype):
  given, exact = arrays(SHAPES[shape], parts, dtype)
  values, slopes = exactly(exact, kind)
  (ours, our_slopes), (theirs, their_slopes) = (by(each, given, kind) for each in (form, "xla"))
  oracle.check(ours, theirs, values, dtype)
  oracle.check(our_slopes, their_slopes, slopes, dtype, gradient=True)
  assert {each.dtype for each in ours} == {jnp.dtype(dtype)}
  assert {name: each.dtype for name, each in our_slopes.items()} == {
    name: given[name].dtype for name in our_slopes
  }


@pytest.mark.parametrize(("source", "to"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_values_have_the_dtype_that_is_asked_for(source, to):
  given, exact = arrays((6, 8), "everything", source)
  given["to_y"] = given["to_y"].astype(to)
  exact["to_y"] = np.asarray(given["to_y"].astype(jnp.float32), np.float64)
  values, slopes = exactly(exact, "layer")
  (ours, our_slopes), (theirs, their_slopes) = (by(form, given, "layer", dtype=to) for form in ("cpu", "xla"))
  assert [each.dtype for each in ours] == [to, source]
  oracle.check(ours[:1], theirs[:1], values[:1], "bfloat16")
  oracle.check(our_slopes, their_slopes, slopes, "bfloat16", gradient=True)


@pytest.mark.parametrize("form", ["cpu", "native", "xla"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_derivatives_of_derivatives(kind, form):
  given, _ = arrays((2, 3, 5), "everything", "float32")
  inputs = [given[name] for name in ("x", "residual", "scale_D", "bias_D")]

  def run(x, residual, scale_D, bias_D):
    y, total = norm(x, scale_D, bias_D, kind=kind, epsilon=0.1, residual=residual, form=form)
    return jnp.sin(y), jnp.tanh(total)

  check_grads(jax.jit(run), inputs, order=2, modes=["rev"], rtol=1e-2, atol=1e-2)
  bare = functools.partial(norm, kind=kind, epsilon=0.1, form=form)
  check_grads(jax.jit(lambda x: jnp.sin(bare(x))), inputs[:1], order=2, modes=["rev"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["cpu", "native", "xla"])
def test_a_mean_a_thousand_times_the_spread_loses_no_digits(form):
  x, exact = oracle.normal(1, 4, 64)
  x, exact = x + 1000.0, np.asarray(x + 1000.0, np.float64)
  found = jax.jit(functools.partial(norm, kind="layer", epsilon=1e-5, form=form))(x)
  y = reference.norm(exact, np.ones(64), np.zeros(64), kind="layer", epsilon=1e-5)[0]
  # The mean is rounded to 2⁻¹⁵ or so; E[x²]−E[x]² would be off by 0.06.
  np.testing.assert_allclose(found, y, atol=2e-4)


@pytest.mark.parametrize("form", ["cpu", "native"])
def test_a_transposed_array_is_read_as_it_lies(form):
  given, exact = arrays((6, 8), "everything", "float32")
  values, slopes = exactly(exact, "layer")

  def run(turned, scale_D, bias_D, to_y, to_total, form):
    function = functools.partial(norm, kind="layer", epsilon=EPSILON, form=form)
    both, back = jax.vjp(lambda x, residual: function(x.T, scale_D, bias_D, residual=residual.T), *turned)
    return both, back((to_y, to_total))

  inputs = [given[name] for name in ("scale_D", "bias_D", "to_y", "to_total")]
  turned = given["x"].T, given["residual"].T
  ours, theirs = (jax.jit(functools.partial(run, form=each))(turned, *inputs) for each in (form, "xla"))
  oracle.check(ours[0], theirs[0], values, "float32")
  oracle.check(ours[1], theirs[1], [slopes["x"].T, slopes["residual"].T], "float32", gradient=True)


@pytest.mark.parametrize("form", ["cpu", "native"])
def test_under_vmap_and_remat_it_is_the_same(form):
  given, _ = arrays((2, 3, 8), "everything", "float32")
  inputs = tuple(given[name] for name in ("x", "residual", "scale_D", "bias_D"))

  def slopes(*inputs, wrapped=lambda function: function):
    def total(x, residual, scale_D, bias_D):
      y, both = norm(x, scale_D, bias_D, kind="layer", epsilon=EPSILON, residual=residual, form=form)
      return jnp.sin(y).sum() + (both**3).sum()

    return jax.grad(wrapped(total), argnums=(0, 1, 2, 3))(*inputs)

  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  plain = jax.jit(slopes)(*inputs)
  jax.tree.map(near, jax.jit(functools.partial(slopes, wrapped=jax.checkpoint))(*inputs), plain)
  twice = jax.jit(jax.vmap(slopes, in_axes=(1, None, 0, None)))(
    jnp.stack([inputs[0], 2 * inputs[0]], axis=1), inputs[1], jnp.stack([inputs[2], 2 * inputs[2]]), inputs[3]
  )
  jax.tree.map(lambda a, b: near(a[0], b), twice, plain)
  again = jax.jit(slopes)(2 * inputs[0], inputs[1], 2 * inputs[2], inputs[3])
  jax.tree.map(lambda a, b: near(a[1], b), twice, again)


@pytest.mark.parametrize("form", ["cpu", "xla"])
def test_rows_divided_over_devices_stay_where_they_are(form):
  given, _ = arrays((8, 3, 4), "everything", "float32")
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  inputs = {name: given[name] for name in ("x", "residual", "scale_D", "bias_D")}

  def slopes(inputs):
    def total(inputs):
      return sum((each**3).sum() for each in norm(**inputs, kind="layer", epsilon=EPSILON, form=form))

    return jax.grad(total)(inputs)

  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
  alone = jax.jit(slopes)(inputs)
  placed = {name: jax.device_put(each, rows if each.ndim == 3 else whole) for name, each in inputs.items()}
  places = jax.tree.map(lambda each: each.sharding, placed)
  compiled = jax.jit(slopes, out_shardings=places).lower(placed).compile()
  assert "all-gather" not in compiled.as_text()
  jax.tree.map(near, compiled(placed), alone)

  def apart(inputs):
    found = slopes(inputs)
    return {name: each if each.ndim == 3 else jax.lax.psum(each, "data") for name, each in found.items()}

  specs = jax.tree.map(lambda place: place.spec, places)
  shard = jax.jit(jax.shard_map(apart, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False))
  jax.tree.map(near, shard(placed), alone)


def test_forward_and_backward_choose_apart_and_few_rows_are_left_to_the_compiler(monkeypatch):
  def traced(rows):
    x = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    return jax.eval_shape(jax.grad(lambda x: norm(x, kind="layer", epsilon=1e-5).sum()), x)

  with choice.recording() as found:
    traced(4095)
  assert found == {"norm": "xla", "norm.gradients": "xla"}
  with choice.recording() as found:
    traced(4096)
  assert found == {"norm": "cpu", "norm.gradients": "cpu"}
  with choice.recording() as found, choice.use(**{"norm.gradients": "xla"}):
    traced(4096)
  assert found == {"norm": "cpu", "norm.gradients": "xla"}
  monkeypatch.setattr(native, "whole", lambda: True)  # as on one device
  for rows, form in ((4095, "xla"), (4096, "native")):
    with choice.recording() as found:
      traced(rows)
    assert found == {"norm": form, "norm.gradients": form}


def test_in_cpp_it_takes_float32_alone():
  x = jnp.ones((4, 8), jnp.bfloat16)
  for given, more in ((x, {}), (x.astype(jnp.float32), {"dtype": jnp.bfloat16})):
    with pytest.raises(UserError, match="norm cannot run as native: it takes float32, not bfloat16"):
      norm(given, kind="rms", epsilon=1e-5, form="native", **more)
  with pytest.raises(UserError, match="there are no rows"):
    norm(jnp.ones((0, 8)), kind="rms", epsilon=1e-5, form="native")


def test_what_is_kept_is_what_was_normalised_and_two_numbers_a_row():
  x, scale_D = jax.ShapeDtypeStruct((32, 16), jnp.bfloat16), jax.ShapeDtypeStruct((16,), jnp.float32)
  for kind, numbers in (("layer", 2), ("rms", 1)):
    run = functools.partial(norm, kind=kind, epsilon=1e-5)
    back = jax.eval_shape(lambda *given: jax.vjp(run, *given)[1], x, scale_D)  # noqa: B023
    kept = sorted((each.size, each.dtype.name) for each in jax.tree.leaves(back))
    assert kept == [(16, "float32"), *[(32, "float32")] * numbers, (32 * 16, "bfloat16")]


@pytest.mark.parametrize(
  ("x", "more"),
  [
    (jnp.zeros((2, 4)), {"scale_D": jnp.zeros(3)}),
    (jnp.zeros((2, 4)), {"bias_D": jnp.zeros((1, 4))}),
    (jnp.zeros((2, 4)), {"residual": jnp.zeros((1, 4))}),
    (jnp.zeros((2, 4)), {"residual": jnp.zeros((2, 4), jnp.bfloat16)}),
    (jnp.zeros(()), {}),
    (jnp.zeros((2, 4)), {"kind": "batch"}),
    (jnp.zeros((2, 4), jnp.int32), {}),
    (jnp.zeros((2, 4)), {"dtype": jnp.float16}),
  ],
)
def test_what_does_not_belong_together_is_said(x, more):
  with pytest.raises(ValueError, match="norm: "):
    norm(x, **{"kind": "layer", "epsilon": 1e-5, **more})
