"""Checkpoints come back bit for bit, and a checkpoint of another model never does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Job

from research.checkpoint import Checkpoints, named
from research.errors import UserError
from research.models.mlp import MLP
from research.supervised import supervised


@pytest.fixture
def saved(tmp_path):
  job = Job()
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  for step, best in ((1, 3.0), (2, 1.0), (3, None), (4, None), (5, None)):
    checkpoints.save(step, job.state.replace(step=jnp.int32(step)), best)
  checkpoints.wait()
  yield job, checkpoints
  checkpoints.close()


def test_the_newest_and_the_best_are_kept(saved):
  _, checkpoints = saved
  assert checkpoints.steps == [2, 4, 5]
  assert checkpoints.newest() == 5


def test_what_comes_back_is_what_was_saved(saved):
  job, checkpoints = saved
  restored = checkpoints.restore(4, job.abstract)
  chex.assert_trees_all_equal(restored, job.state.replace(step=jnp.int32(4)))
  chex.assert_trees_all_equal_dtypes(restored, job.state)
  assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, job.abstract)


def test_parts_are_read_without_a_state_to_put_them_into(saved):
  job, checkpoints = saved
  arrays = checkpoints.arrays(4, ("params",))
  assert arrays.keys() == named({"params": job.state.params}).keys()
  for name, value in named({"params": job.state.params}).items():
    np.testing.assert_array_equal(arrays[name], value)


def test_saving_does_not_see_what_a_donated_buffer_becomes(tmp_path):
  big = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
  job = Job()
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path)
  state = job.state.replace(extra=big)
  checkpoints.save(1, state)
  state = overwrite(overwrite(state))
  abstract = job.abstract.replace(extra={"w": jax.ShapeDtypeStruct((2_000_000,), jnp.float32)})
  checkpoints.wait()
  restored = checkpoints.restore(1, jax.tree.map(lambda x: x.update(sharding=job.abstract.step.sharding), abstract))
  assert (restored.extra["w"] == jnp.arange(2_000_000, dtype=jnp.float32)).all()
  checkpoints.close()


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    (lambda a: a.replace(params=jax.tree.map(lambda x: x.update(dtype=jnp.int8), a.params)), "is float32"),
    (lambda a: a.replace(params=jax.tree.map(lambda x: x.update(shape=(3, *x.shape[1:])), a.params)), "[3"),
    (lambda a: a.replace(params={**a.params, "more": a.step}), "it has no params/more"),
    (lambda a: a.replace(extra={}), "that this model has not"),
  ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(saved, change, complaint):
  job, checkpoints = saved
  with pytest.raises(UserError, match="is of another model") as error:
    checkpoints.restore(5, change(job.abstract))
  assert complaint in str(error.value)


def test_a_wider_model_is_refused(saved):
  _, checkpoints = saved
  task = supervised(MLP(outputs=2, widths=(9,), norm="batch"), optax.sgd(0.1), loss="softmax")
  abstract = jax.eval_shape(task.init, jax.random.key(0), {"features": jnp.ones((4, 5))})
  with pytest.raises(UserError, match="is of another model"):
    checkpoints.restore(5, abstract)


