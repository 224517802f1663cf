"""Cross-entropy without its logits, against the definition in float64 and XLA's form; and what memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from research.kernels.linear_cross_entropy import chunked, linear_cross_entropy, reference
from tests.research.kernels import oracle

PLAIN = {"ignore": -1, "z_loss": 0.0, "softcap": 0.0, "smoothing": 0.0}
CASES = {
  # tokens, width, vocabulary, how many are ignored, terms
  "prime sizes": (37, 11, 53, 5, PLAIN),
  "a group a device": (64, 8, 33, 0, PLAIN),
  "one token": (1, 5, 7, 0, PLAIN),
  "a vocabulary of one": (6, 5, 1, 0, PLAIN),
  "all ignored": (9, 4, 6, 9, PLAIN),
  "ignored by another label": (24, 6, 10, 7, {**PLAIN, "ignore": -100}),
  "everything": (40, 7, 29, 3, {"ignore": -1, "z_loss": 0.1, "softcap": 5.0, "smoothing": 0.2}),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """A few tokens a chunk, so that there are several and the last has room left."""
  monkeypatch.setattr(chunked, "LOGITS_BYTES", 600)


def arrays(case, dtype):
  tokens, width, vocabulary, ignored, terms = case
  random = np.random.default_rng(3)
  x, x64 = oracle.normal(0, tokens, width, dtype=dtype)
  kernel, kernel64 = oracle.normal(1, width, vocabulary, dtype=dtype, scale=2.0)
  bias, bias64 = oracle.normal(2, vocabulary)
  labels = random.integers(0, vocabulary, tokens)
  labels[random.permutation(tokens)[:ignored]] = terms["ignore"]
  weights = random.uniform(0.1, 1.0, tokens).astype(np.float32)
  exact = reference.linear_cross_entropy(x64, kernel64, labels, weights, bias64, **terms)
  return (x, kernel, bias), (jnp.asarray(labels, jnp.int32), jnp.asarray(weights)), exact


def by(form, given, fixed, terms):
  """(result, gradients of 1.7 · total): a cotangent that is not one."""

  def total(x, kernel, bias):
    result = linear_cross_entropy(x, kernel, *fixed, bias, **terms, form=form)
    return 1.7 * result.total, result

  (_, result), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*given)
  return result, gradients


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_its_definition_as_nearly_as_xla_is(case, dtype):
  given, fixed, (*exact, exact_gradients) = arrays(case, dtype)
  (ours, our_gradients), (theirs, their_gradients) = (by(form, given, fixed, case[4]) for form in ("chunked", "xla"))
  oracle.check(ours[:3], theirs[:3], tuple(exact[:3]), dtype)
  exact_gradients = tuple(1.7 * each for each in exact_gradients)
  oracle.check(our_gradients, their_gradients, exact_gradients, dtype, gradient=True)
  assert [each.dtype for each in our_gradients] == [each.dtype for each in given]
  np.testing.assert_array_equal(ours.guess_N, exact[3])
  alone = jax.jit(lambda *given: linear_cross_entropy(given[0], given[1], *fixed, given[2], **case[4]))(*given)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, ours)  # without a gradient: the same


def test_the_total_is_what_the_logits_give_and_its_gradient_differentiates_again():
  (x, kernel, bias), (labels, weights), _ = arrays(CASES["prime sizes"], "float32")

  def materialised(x, kernel, bias):
    loss_N = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None], jnp.maximum(labels, 0))
    return (jnp.where(labels == -1, 0.0, loss_N) * weights).sum()

  ours = lambda *given: linear_cross_entropy(given[0], given[1], labels, weights, given[2]).total  # noqa: E731
  found, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(x, kernel, bias) for f in (ours, materialised))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
  small = (0.3 * x, 0.3 * kernel, bias)
  check_grads(lambda *given: ours(*given) / 10, small, order=1, modes=("rev",), eps=1e-2, rtol=0.01)

  def squares(total):  # of the gradient, whose own gradient is a second derivative
    return lambda *given: sum(jnp.square(each).sum() for each in jax.grad(total, argnums=(0, 1, 2))(*given))

  found, expected = (jax.jit(jax.grad(squares(f), argnums=(0, 1, 2)))(x, kernel, bias) for f in (ours, materialised))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, expected)


def test_under_vmap_remat_and_from_a_slice_it_is_the_same():
  given, fixed, _ = arrays(CASES["everything"], "float32")
  terms = CASES["everything"][4]

  def gradients(x, kernel, bias, labels, weights):
    total = lambda *given: linear_cross_entropy(given[0], given[1], labels, weights, given[2], **terms).total  # noqa: E731
    return jax.grad(jax.checkpoint(total), argnums=(0, 1, 2))(x, kernel, bias)

  expected = jax.jit(gradients)(*given, *fixed)
  wide = jnp.stack([*given[:1], given[0] + 1.0], axis=2)  # not contiguous, where that means something
  plain = by("chunked", (wide[:, :, 0], *given[1:]), fixed, terms)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a / 1.7, b, rtol=1e-5, atol=1e-6), plain, expected)
  twice = jax.jit(jax.vmap(gradients, in_axes=(2, None, None, None, None)))(wide, *given[1:], *fixed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6), twice, expected)


def test_tokens_divided_over_devices_stay_where_they_are():
  given, fixed, _ = arrays(CASES["a group a device"], "float32")
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  x, labels, weights = (jax.device_put(each, rows) for each in (given[0], *fixed))
  kernel, bias = (jax.device_put(each, whole) for each in given[1:])

  def gradients(x, kernel, bias, labels, weights):
    total = lambda *given: linear_cross_entropy(given[0], given[1], labels, weights, given[2]).total  # noqa: E731
    return jax.grad(total, argnums=(0, 1, 2))(x, kernel, bias)

  compiled = jax.jit(gradients, out_shardings=(rows, whole, whole)).lower(x, kernel, bias, labels, weights).compile()
  found = compiled(x, kernel, bias, labels, weights)
  expected = by("xla", given, fixed, PLAIN)[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(1.7 * a, b, rtol=1e-4, atol=1e-6), found, expected)
  text = compiled.as_text()
  assert "all-gather" not in text
  assert "all-to-all" not in text
  per_device = jax.shard_map(
    lambda x, labels, weights: jax.lax.psum(
      linear_cross_entropy(x, given[1], labels, weights, given[2]).total, "data"
    ),
    mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), check_vma=False,
  )(x, labels, weights)  # fmt: skip
  np.testing.assert_allclose(per_device, by("xla", given, fixed, PLAIN)[0].total, rtol=1e-5)


def test_the_logits_are_never_all_there(monkeypatch):
  """Bytes of a device, where eight share the tokens."""
  monkeypatch.setattr(chunked, "LOGITS_BYTES", 2**20)
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  arrays = [((32_768, 16), "float32"), ((16, 8192), "float32"), ((32_768,), "int32"), ((32_768,), "float32")]
  given = [jax.ShapeDtypeStruct(*each, sharding=whole if i == 1 else rows) for i, each in enumerate(arrays)]

  def temporaries(form):
    total = lambda x, kernel, *fixed: linear_cross_entropy(x, kernel, *fixed, form=form).total  # noqa: E731
    compiled = jax.jit(jax.grad(total, argnums=(0, 1)), out_shardings=(rows, whole)).lower(*given).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 32_768 * 8192 * 4 / 8
  assert temporaries("xla") > 0.9 * logits
  assert temporaries("chunked") < 0.1 * logits


def test_inside_shard_map_a_device_has_one_sum_of_the_kernels_gradient(monkeypatch):
  monkeypatch.setattr(chunked, "LOGITS_BYTES", 2**20)
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  part, whole = PartitionSpec("data"), PartitionSpec()
  shapes = [((8192, 256), "float32"), ((256, 4096), "float32"), ((8192,), "int32"), ((8192,), "float32")]
  specs = (part, whole, part, part)
  given = [
    jax.ShapeDtypeStruct(*each, sharding=NamedSharding(mesh, spec)) for each, spec in zip(shapes, specs, strict=True)
  ]

  def slopes(x, kernel, labels, weights):
    total = lambda kernel: linear_cross_entropy(x, kernel, labels, weights).total  # noqa: E731
    return jax.lax.psum(jax.grad(total)(kernel), "data")

  apart = jax.shard_map(slopes, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
  temporaries = jax.jit(apart).lower(*given).compile().memory_analysis().temp_size_in_bytes
  assert temporaries < 4 * (4 * 256 * 4096)  # bytes of that sum; eight of them would be there else


@pytest.mark.parametrize(("tokens", "chunks"), [(16_384, 64), (16_381, 50), (12_288, 32), (1, 1)])
def test_tokens_are_cut_evenly_where_they_can_be(tokens, chunks, monkeypatch):
  """64 MB of 16,384 tokens' logits make 50 chunks and a rest, for which every array would be copied and filled up."""
  monkeypatch.setattr(chunked, "LOGITS_BYTES", 2**26)
  assert chunked._chunks(tokens, tokens * 50_304 * 4) == chunks


def test_shapes_that_do_not_belong_together_are_named():
  x, kernel, labels = jnp.zeros((4, 3)), jnp.zeros((2, 5)), jnp.zeros(4, jnp.int32)
  with pytest.raises(ValueError, match=r"\(4, 3\), \(2, 5\), \(4,\), \(4,\), None"):
    linear_cross_entropy(x, kernel, labels, jnp.ones(4))
