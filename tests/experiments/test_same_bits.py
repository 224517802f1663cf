"""`--run.deterministic_shards`: the same bits on any number of devices, for every experiment there is."""

import hashlib

import jax
import numpy as np
import pytest

from tests.experiments.test_strategies import EXPERIMENTS, FAMILIES, job_of

SHARDS = 8
IMAGES = ["--data.pad_crop=1", "--data.randaugment=1", "--data.mixup=0.2"]
MORE = {
  "linear": [], "mlp": ["--model.dropout=0.3"], "cnn": [*IMAGES], "cnn, resnet": ["--data.cutout=3"],
  "gan": ["--gan.loss=hinge", "--model.conditional"],
  "gan, averaged": ["--model.spectral_norm"],
  "autoencoder": ["--model.kind=variational"],
  "gpt": ["--model.dropout=0.1"],
  "gpt, experts": ["--model.dropout=0.1"],
  "bert": ["--model.dropout=0.1"], "vit": ["--model.dropout=0.1", "--data.flip"], "text": [], "forecast": [],
}  # fmt: skip
RULE = ["--optim.ema_decay=0.9", f"--run.deterministic_shards={SHARDS}", "--data.eval_batch_size=48"]


def digest(tree):
  """SHA-256 of each leaf's bytes, by its path."""
  flat, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
  return {
    jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:16] for path, leaf in flat
  }


def trained(family, flags, updates=3):
  """Digests of each update's metrics, of the state after them, and of what evaluation sums up."""
  job = job_of(family, [*MORE[family], *flags])
  call, state, told = job.training_call(), job.initial_state(), [digest(job.initial_state())]
  for step in range(updates):
    state, metrics = call(state, job.data.train.inputs(step), 1)
    told.append(digest(metrics))
  job.data.train.close()
  sums = {name: evaluate(state) for name, evaluate in job._evaluations.items()}
  return {"metrics": told, "state": digest(state), "sums": digest(sums)}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_number_of_devices_gives_the_same_bits(family):
  expected = trained(family, [*RULE, "--parallel.mesh=data:8"])
  for devices in (2, 1):
    assert trained(family, [*RULE, f"--parallel.mesh=data:{devices}"]) == expected, devices


def test_every_experiment_is_here():
  assert {family.partition(",")[0] for family in MORE} == set(EXPERIMENTS)
