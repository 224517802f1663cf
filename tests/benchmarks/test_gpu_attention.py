"""What the attention rows count, and that they run to their end on any device."""

import dataclasses

import jax.numpy as jnp
import pytest

from benchmarks.gpu import attention
from research.kernels.attention.masks import seen


@pytest.mark.parametrize("case", attention.CASES.values(), ids=attention.CASES)
def test_products_are_counted_where_something_is_seen(case):
  window = case.how.window and 20
  small = dataclasses.replace(case, batch=2, length=128, how=case.how._replace(window=window))
  segments = jnp.asarray(small.segments())[None]
  places = jnp.arange(128)
  mask = seen(places, places, small.how, (segments, segments) if small.documents > 1 else ())
  pairs = 2 * small.heads * (128 * 128 if mask is None else int(mask.sum()))
  assert small.flops("forward") == 2 * 2 * pairs * small.width
  assert small.flops("backward") == 5 * 2 * pairs * small.width


def test_the_rows_of_a_smoke_run_have_times_where_a_form_runs():
  rows = attention.rows(smoke=True)
  assert {(row["direction"], row["form"]) for row in rows} >= {("forward", "mosaic_gpu"), ("backward", "cudnn")}
  for row in rows:
    assert {*row} == {"what", "form", "direction", "ms", "tflops", "peer", "ratio", "status"}
    runs_here = row["form"] in ("chunked", "xla")
    assert (row["ms"] is not None) == (row["ratio"] is not None) == (row["status"] == "smoke") == runs_here, row
