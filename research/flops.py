"""Analytic model FLOPs: the multiplications and additions of matrix products and convolutions in a traced program.

They are what the mathematics asks for, not what a compiler makes of it: nothing is compiled, and recomputation, padding
to tiles, element-wise work and gathers are not counted. A multiply-add is two FLOPs.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from research.kernels import choice


def model_flops(function: Callable, *args: Any, **kwargs: Any) -> float:
  """FLOPs of `function(*args, **kwargs)`; the arguments may be `jax.ShapeDtypeStruct`s. Nothing is computed.

  A scan counts as many times as it runs, a shard_map for each device of its axes, a conditional its dearest branch, a
  choice by platform its default (a kernel may do more than the mathematics asks for), a while loop one turn (only
  running it would tell how many).
  """
  whole = {"attention": "xla"} if "attention" in choice.OPS else {}  # whose products are all there, in no loop
  with choice.use(**whole):
    return _jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def traced_flops(traced: jax.stages.Traced) -> float:
  """FLOPs of a traced program over all of its devices: what it does, with what it computes twice, and without what
  nothing reads (a gradient to the input of a first layer, which XLA leaves out)."""
  jaxpr = traced.jaxpr.jaxpr
  return _jaxpr_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def training_flops(forward: Callable, *args: Any, **kwargs: Any) -> float:
  """FLOPs of one training step: three times the forward pass, the backward pass being a product for the input and
  one for the weights for every product of the forward pass (Kaplan et al. 2020, section 2.1)."""
  return 3.0 * model_flops(forward, *args, **kwargs)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> float:
  platform_choices = {id(out) for equation in jaxpr.eqns if _names_platform(equation) for out in equation.outvars}
  return sum(_equation_flops(equation, platform_choices) for equation in jaxpr.eqns)


def _names_platform(equation: core.JaxprEqn) -> bool:
  return equation.primitive.name == "platform_index"


def _equation_flops(equation: core.JaxprEqn, platform_choices: set[int]) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (lhs_contracting, _), _ = params["dimension_numbers"]
    contracted = math.prod(equation.invars[0].aval.shape[axis] for axis in lhs_contracting)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * contracted
  if name == "conv_general_dilated":
    # Every output value sums over one kernel; a dilated input (a transposed convolution) is mostly zeros between.
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    values = math.prod(equation.outvars[0].aval.shape) / math.prod(params["lhs_dilation"])
    return 2.0 * values * math.prod(kernel) / outputs
  inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
  if name == "cond":
    by_platform = id(equation.invars[0]) in platform_choices
    return inner[-1] if by_platform else max(inner)
  parts = lambda: math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])  # noqa: E731
  times = {"scan": lambda: params["length"], "shard_map": parts}.get(name, lambda: 1)
  return float(times()) * sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item
