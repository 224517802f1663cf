"""The transformer against a float64 definition in numpy loops, its cache against its full forward pass, its masks."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from research.errors import UserError
from research.models.attention import empty_cache, rotate
from research.models.experts import Experts, assign, capacity
from research.models.language_model import LanguageModel, sinusoids
from research.models.transformer import Transformer
from research.models.transformer_config import Config

SMALL = Config(layers=2, width=12, heads=4)
KINDS = {
  "gpt2": SMALL,
  "llama": dataclasses.replace(
    SMALL, kv_heads=2, mlp="swiglu", norm="rms", rotary=True, bias=False, norm_epsilon=1e-6, head_width=4
  ),
  "bert": dataclasses.replace(SMALL, norm_first=False, causal=False, mlp="gelu_exact", norm_epsilon=1e-12),
  "others": dataclasses.replace(
    SMALL, kv_heads=1, qk_norm=True, attention_softcap=2.0, window=3, mlp="relu", mlp_width=7, head_width=6
  ),
}
LENGTH = 9


def x_of(config, batch=2, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, LENGTH, config.width)), jnp.float32)


def params_of(model, *inputs, **named):
  """Parameters of numpy's noise, none of them zero or one, so that each is seen to be used."""
  shapes = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False, **named)))
  random = np.random.default_rng(1)
  return jax.tree.map(lambda s: jnp.asarray(random.normal(0.1, 0.4, s.shape), s.dtype), shapes)["params"]


class Reference:
  """The same from the papers, one position and one head at a time, in float64."""

  def __init__(self, config, params):
    self.config = config
    self.params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def dense(self, p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)

  def norm(self, p, x, kind=None):
    if (kind or self.config.norm) == "rms":
      return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_epsilon) * p["scale"]
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
    return scaled * p["scale"] + p.get("bias", 0.0)

  def turn(self, x_K, position):
    """Each pair as a complex number times e^{i·position·θ}."""
    half = len(x_K) // 2
    theta = self.config.rotary_base ** (-2 * np.arange(half) / len(x_K))
    turned = (x_K[:half] + 1j * x_K[half:]) * np.exp(1j * position * theta)
    return np.concatenate([turned.real, turned.imag])

  def sees(self, query, key):
    back = query - key
    if self.config.causal and back < 0:
      return False
    return not self.config.window or abs(back) < self.config.window

  def attention(self, p, x_LD, segments_L):
    config = self.config
    length, k = len(x_LD), config.k
    query, key, value = (self.dense(p[name], x_LD).reshape(length, -1, k) for name in ("query", "key", "value"))
    out = np.zeros((length, config.heads, k))
    for head in range(config.heads):
      group = head * config.groups // config.heads
      for i in range(length):
        seen = [j for j in range(length) if self.sees(i, j) and segments_L[i] == segments_L[j]]
        scores = []
        for j in seen:
          q, other = query[i, head], key[j, group]
          if config.qk_norm:
            q, other = self.norm(p["query_norm"], q, "rms"), self.norm(p["key_norm"], other, "rms")
          if config.rotary:
            q, other = self.turn(q, i), self.turn(other, j)
          score = q @ other / np.sqrt(k)
          cap = config.attention_softcap
          scores.append(cap * np.tanh(score / cap) if cap else score)
        out[i, head] = special.softmax(scores) @ value[seen, group]
    return self.dense(p["out"], out.reshape(length, -1))

  def mlp(self, p, x):
    up = self.dense(p["up"], x)
    if self.config.mlp == "swiglu":
      gate = self.dense(p["gate"], x)
      return self.dense(p["down"], gate * special.expit(gate) * up)
    tanh_gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    exact = lambda x: x * special.ndtr(x)  # noqa: E731
    function = {"gelu": tanh_gelu, "gelu_exact": exact, "relu": lambda x: np.maximum(x, 0)}[self.config.mlp]
    return self.dense(p["down"], function(up))

  def __call__(self, x_BLD, segments_BL=None):
    return np.stack([
      self.text(np.asarray(x_LD, np.float64), np.zeros(len(x_LD)) if segments_BL is None else segments_BL[row])
      for row, x_LD in enumerate(x_BLD)
    ])

  def text(self, x, segments_L):
    for layer in range(self.config.layers):
      p = jax.tree.map(lambda a, layer=layer: a[layer], self.params["layers"])
      for name, branch in (("attention", lambda p, x: self.attention(p, x, segments_L)), ("mlp", self.mlp)):
        if self.config.norm_first:
          x = x + branch(p[name], self.norm(p[f"{name}_norm"], x))
        else:
          x = self.norm(p[f"{name}_norm"], x + branch(p[name], x))
    return self.norm(self.params["norm"], x) if self.config.norm_first else x


@pytest.mark.parametrize("kind", KINDS)
def test_the_stack_is_its_definition(kind):
  config = KINDS[kind]
  model, x_BLD = Transformer(config), x_of(config)
  params = params_of(model, x_BLD)
  found, _, statistics = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))(params, x_BLD)
  np.testing.assert_allclose(found, Reference(config, params)(x_BLD), rtol=2e-5, atol=2e-5)
  assert statistics == {}


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_packed_document_sees_itself_alone(kind):
  config = KINDS[kind]
  model, x_BLD = Transformer(config), x_of(config)
  segments_BL = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [4] * LENGTH], np.int32)
  params = params_of(model, x_BLD)
  apply = jax.jit(lambda p, x, segments: model.apply({"params": p}, x, train=False, segments_BL=segments)[0])
  found = apply(params, x_BLD, segments_BL)
  np.testing.assert_allclose(found, Reference(config, params)(x_BLD, segments_BL), rtol=2e-5, atol=2e-5)
  alone = model.apply({"params": params}, x_BLD[:1, 3:7], train=False)[0]
  np.testing.assert_allclose(found[0, 3:7], alone[0], rtol=1e-5, atol=1e-5)
  other = apply(params, x_BLD.at[0, 0, 0].add(3.0), segments_BL)
  np.testing.assert_array_equal(other[0, 3:], found[0, 3:])
  assert np.abs(other[0, :3] - found[0, :3]).max() > 1e-3


def test_padding_is_seen_by_nobody():
  config = KINDS["bert"]
  model, x_BLD = Transformer(config), x_of(config)
  params = params_of(model, x_BLD)
  segments_BL = np.array([[0] * 6 + [-1] * 3] * 2, np.int32)
  apply = lambda x: model.apply({"params": params}, x, train=False, segments_BL=segments_BL)[0]  # noqa: E731
  np.testing.assert_array_equal(apply(x_BLD)[:, :6], apply(x_BLD.at[:, 6:].set(100.0))[:, :6])


def language_model(kind, experts=0):
  config = dataclasses.replace(KINDS[kind], experts=experts)
  return LanguageModel(config, 11, LENGTH, positions="rotary" if config.rotary else "learned", logit_softcap=3.0)


def tokens_of(batch=3, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 11, (batch, LENGTH)), jnp.int32)


@pytest.mark.parametrize(("kind", "experts"), [("gpt2", 0), ("llama", 0), ("others", 0), ("gpt2", 4)])
def test_decoding_with_a_cache_is_the_full_forward_pass_at_every_position(kind, experts):
  model, tokens_BL = language_model(kind, experts), tokens_of()
  params = params_of(model, tokens_BL)
  whole_BLV, *_ = jax.jit(lambda p, t: model.apply({"params": p}, t, train=False))(params, tokens_BL)
  cache = empty_cache(model.config, 3, LENGTH)

  @jax.jit
  def advance(cache, tokens_BL, positions_BL):
    return model.apply({"params": params}, tokens_BL, train=False, positions_BL=positions_BL, cache=cache)[:2]

  # A prompt of four, then one by one; what a padded prompt left behind is written over, or not seen.
  prompt_BL = tokens_BL.at[:, 4:].set(7)
  logits_BLV, cache = advance(cache, prompt_BL, jnp.broadcast_to(jnp.arange(LENGTH), (3, LENGTH)))
  found = [logits_BLV[:, :4]]
  for place in range(4, LENGTH):
    logits_BLV, cache = advance(cache, tokens_BL[:, place : place + 1], jnp.full((3, 1), place, jnp.int32))
    found.append(logits_BLV)
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole_BLV, rtol=1e-5, atol=1e-5)


def test_unrolling_and_recomputing_change_nothing():
  config = dataclasses.replace(SMALL, layers=4)
  x_BLD = x_of(config)
  params = params_of(Transformer(config), x_BLD)

  def gradients(**changes):
    model = Transformer(dataclasses.replace(config, **changes))
    return jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, x_BLD, train=False)[0]).mean()))(params)

  plain = gradients()
  for changes in ({"unroll": 4}, {"remat": "full"}, {"remat": "dots", "unroll": 2}):
    chex.assert_trees_all_close(gradients(**changes), plain, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
  model, tokens_BL = language_model("llama"), tokens_of()
  params = params_of(model, tokens_BL)
  half = LanguageModel(dataclasses.replace(model.config, dtype="bfloat16"), 11, LENGTH, positions="rotary")
  assert {p.dtype for p in jax.tree.leaves(params_of(half, tokens_BL))} == {jnp.dtype("float32")}
  apply = lambda model: model.apply({"params": params}, tokens_BL, train=False)[0]  # noqa: E731
  full = apply(dataclasses.replace(model, logit_softcap=0.0))
  assert apply(half).dtype == jnp.float32
  error = np.abs(apply(half) - full).max()
  assert 0 < error < 0.1 * np.abs(full).max()


def test_published_initialisations():
  drawn = lambda model, x: nn.meta.unbox(jax.jit(lambda: model.init(jax.random.key(0), x, train=False))())  # noqa: E731
  params = drawn(LanguageModel(Config(layers=8, width=64), 500, 64), tokens_of())["params"]
  layers = params["transformer"]["layers"]
  for kernel in (layers["attention"]["query"], layers["mlp"]["up"], {"kernel": params["embed"]["embedding"]}):
    assert float(kernel["kernel"].std()) == pytest.approx(0.02, rel=0.03)
  for branch in (layers["attention"]["out"], layers["mlp"]["down"]):  # Radford et al. 2019, section 2.3
    assert float(branch["kernel"].std()) == pytest.approx(0.02 / np.sqrt(2 * 8), rel=0.03)
  first, second = layers["mlp"]["up"]["kernel"][:2]
  assert float(jnp.abs(first - second).max()) > 0.01  # a key for each layer
  glorot = Transformer(Config(layers=2, width=64, initializer="vit"))
  up = drawn(glorot, x_of(glorot.config))["params"]["layers"]["mlp"]["up"]
  assert float(jnp.abs(up["kernel"]).max()) == pytest.approx(np.sqrt(6 / (64 + 256)), rel=0.01)


def test_every_parameter_names_its_axes():
  config = dataclasses.replace(KINDS["llama"], experts=2)
  model = LanguageModel(config, 11, LENGTH, positions="rotary", tied=False, transform=True, head_bias=True)
  boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_of(), train=False))["params"]
  for path, leaf in jax.tree.leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)):
    assert isinstance(leaf, nn.LogicallyPartitioned), path
    assert len(leaf.names) == leaf.value.ndim, path
    assert (leaf.names[0] == "layers") == ("layers" in str(path)), path


def test_rotary_scores_depend_on_the_distance_alone():
  random = np.random.default_rng(0)
  query, key = (jnp.asarray(random.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
  at = lambda x, place: np.asarray(rotate(x, jnp.full((1, 1), place, jnp.int32), 10_000.0)).ravel()  # noqa: E731
  assert at(query, 50) @ at(key, 47) == pytest.approx(at(query, 3) @ at(key, 0), rel=1e-4)
  np.testing.assert_array_equal(at(query, 0), np.asarray(query).ravel())


def test_sinusoids_are_the_published_ones():
  found = np.asarray(sinusoids(jnp.asarray([[0, 5]], jnp.int32), 6))[0, 1]
  expected = 5 / 10_000 ** (2 * np.arange(3) / 6)
  np.testing.assert_allclose(found, np.concatenate([np.sin(expected), np.cos(expected)]), rtol=1e-6)


def test_places_of_experts_by_hand():
  # Three tokens, two choices each, two experts of two places: first choices first.
  slot_TN, fits_TN = assign(jnp.asarray([[0, 1], [0, 1], [0, 1]]), 2, 2)
  np.testing.assert_array_equal(fits_TN, [[True, True], [True, True], [False, False]])
  np.testing.assert_array_equal(slot_TN, [[0, 2], [1, 3], [4, 4]])
  assert capacity(100, Config(experts=8, experts_per_token=2, capacity_factor=1.25)) == 32
  assert capacity(10, Config(experts=2, experts_per_token=2, capacity_factor=4.0)) == 10


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_mixture_is_the_weighted_sum_of_the_chosen_experts(mlp):
  config = Config(width=6, heads=2, mlp=mlp, mlp_width=5, experts=4, experts_per_token=2)
  model, x_BLD = Experts(config), x_of(config)
  params = params_of(model, x_BLD)
  found_BLD, statistics = model.apply({"params": params}, x_BLD, train=False)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x_TD = np.asarray(x_BLD, np.float64).reshape(-1, 6)
  probabilities = special.softmax(x_TD @ p["router"]["kernel"], axis=-1)
  reference = Reference(config, {})
  for token, found in enumerate(np.asarray(found_BLD).reshape(-1, 6)):
    best = np.argsort(-probabilities[token])[:2]
    expected = 0
    for expert in best:
      one = {name.removesuffix("_kernel"): {"kernel": p[name][expert]} for name in p if name != "router"}
      expected = expected + probabilities[token, expert] * reference.mlp(one, x_TD[token])
    np.testing.assert_allclose(found, expected / probabilities[token, best].sum(), rtol=1e-4, atol=1e-5)
  share = np.bincount(probabilities.argmax(axis=1), minlength=4) / len(x_TD)
  assert float(statistics["balance_loss"]) == pytest.approx(4 * share @ probabilities.mean(axis=0), rel=1e-5)
  assert float(statistics["dropped"]) == 0


def test_tokens_without_a_place_are_counted_and_pass_by():
  config = Config(width=6, heads=2, experts=2, experts_per_token=1, capacity_factor=0.5)
  model, x_BLD = Experts(config), jnp.ones((1, 8, 6))  # all tokens want the same expert, which has 2 places
  params = params_of(model, x_BLD)
  y_BLD, statistics = model.apply({"params": params}, x_BLD, train=True)
  assert float(statistics["dropped"]) == 6
  assert float(jnp.abs(y_BLD[0, :2]).min()) > 0
  np.testing.assert_array_equal(y_BLD[0, 2:], np.zeros((6, 6)))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": 5}, "5 heads do not divide a width of 12; a width of 15 would"),
    ({"kv_heads": 3}, "3 key and value heads do not divide 4 heads"),
    ({"rotary": True, "head_width": 3}, "heads are 3 wide; an even width would do"),
    ({"experts": 2, "experts_per_token": 3}, "cannot go to 3 of 2 experts"),
    ({"unroll": 3}, "2 layers do not divide into turns of 3"),
  ],
)
def test_what_does_not_fit_is_said(changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(SMALL, **changes).check()
