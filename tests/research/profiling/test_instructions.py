"""Instructions in words: paths as flax and jax write them, and a program that XLA compiled here."""

import re

import jax
import jax.numpy as jnp
import pytest

from research.profiling.instructions import Program, describe


@pytest.mark.parametrize(
  ("path", "target", "words"),
  [
    ("jit(update)/transpose(jvp(MLP))/hidden_1/dot_general", "", "hidden_1 dot_general, backward"),
    ("jit(update)/jvp(MLP)/hidden_1/dot_general", "", "hidden_1 dot_general, forward"),
    (
      "jit(updates)/while/body/jvp(Model.unscored)/Model.hidden/blocks/while/body/closed_call/mlp/cond/branch_0_fun/call",
      "our_product",
      "blocks/mlp our_product, forward",
    ),
    ("jit(update)/jvp(MLP)/mlp/jit(silu)/mul;jit(update)/add", "", "mlp/silu mul, forward"),
    ("jit(update)/vmap(jit(norm))/reduce_sum", "", "norm reduce_sum"),
    ("jit(update)/add", "", "add"),
    ("", "", ""),
  ],
)
def test_a_path_in_words(path, target, words):
  assert describe(path, target)[0] == words


@pytest.fixture(scope="module")
def program():
  def update(w, x):
    with jax.named_scope("layer"):
      y = jnp.tanh(x @ w)
    return w + jnp.cos(w) * y.sum()

  return jax.jit(update).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile().as_text()


def names(text):
  """{instruction: name} of everything that a device is busy with."""
  found = Program(text)
  entry = text[text.index("ENTRY") :]
  instructions = [line.split(" = ")[0].split("%")[-1] for line in entry.splitlines()[1:] if " = " in line]
  return {name: found.name("jit_update", name) for name in instructions}


def test_a_compiled_programs_product_is_found_whatever_xla_calls_it(program):
  assert any(name.startswith("layer dot_general") for name in names(program).values())


def test_what_is_in_no_module_is_told_by_its_line(program):
  # Which line is not asked: a program from the compilation cache has those of the source that it was compiled from.
  told = re.compile(r"[\w ]+, research/profiling/test_instructions\.py:\d+")
  assert any(told.fullmatch(name) for name in names(program).values())


def test_what_nobody_asked_for_is_told_by_its_kind_and_shape():
  text = """HloModule jit_update, is_scheduled=true

%wrapped_broadcast_computation (p: f32[]) -> f32[4,8] {
  %p = f32[] parameter(0)
  ROOT %broadcast.1 = f32[4,8]{1,0} broadcast(%p), dimensions={}
}

ENTRY %main (a: f32[8,4]) -> (f32[8,4], f32[4,8]) {
  %a = f32[8,4]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %copy.7 = f32[8,4]{0,1} copy(%a)
  %wrapped_broadcast = f32[4,8]{1,0} fusion(%zero), kind=kLoop, calls=%wrapped_broadcast_computation
  ROOT %tuple.1 = (f32[8,4]{0,1}, f32[4,8]{1,0}) tuple(%copy.7, %wrapped_broadcast)
}
"""
  named = {each: Program(text).name("jit_update", each) for each in ("copy.7", "wrapped_broadcast", "tuple.1")}
  assert named == {"copy.7": "copy of f32[8,4]", "wrapped_broadcast": "broadcast of f32[4,8]", "tuple.1": "tuple.1"}


def test_another_programs_instructions_keep_their_names(program):
  known = next(iter(names(program)))
  assert Program(program).name("jit_evaluate", known) == f"{known} of jit_evaluate"
  assert Program(program).name("jit_update", "never.7") == "never.7"
  assert Program("").name("", "fusion.3") == "fusion.3"
