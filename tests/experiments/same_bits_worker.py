"""Trains families on several numbers of devices and prints a JSON line of each: [family, devices, digests].

  python -m tests.experiments.same_bits_worker FLAG,FLAG,… DEVICES,DEVICES,… FAMILY …
"""

import hashlib
import json
import sys

from tests import conftest  # noqa: F401  its settings, before jax makes a device

# isort: split
import jax
import numpy as np

from research.parallel.shards import round_twice
from tests.experiments.test_strategies import job_of

IMAGES = ["--data.pad_crop=1", "--data.randaugment=1", "--data.mixup=0.2"]
MORE = {
  "linear": [], "mlp": ["--model.dropout=0.3", "--optim.clip_norm=1"], "cnn": IMAGES,
  "cnn, resnet": ["--data.cutout=3"],
  "gan": ["--gan.loss=hinge", "--model.conditional"], "gan, averaged": ["--model.spectral_norm"],
  "autoencoder": ["--model.kind=variational"], "gpt": ["--model.dropout=0.1"], "gpt, experts": ["--model.dropout=0.1"],
  "bert": ["--model.dropout=0.1"], "vit": ["--model.dropout=0.1", "--data.flip"], "text": [], "forecast": [],
}  # fmt: skip
RULE = ["--optim.ema_decay=0.9", "--data.eval_batch_size=48"]


def digest(tree):
  """SHA-256 of each leaf's bytes, by its path."""
  flat, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for path, leaf in flat}


def trained(family, flags, updates=3):
  """Digests of the first state, of each update's metrics, of the last state, and of what evaluation sums up."""
  job = job_of(family, [*MORE[family], *RULE, *flags])
  call, state = job.training_call(), job.initial_state()
  told = [digest(state)]
  for step in range(updates):
    state, metrics = call(state, job.data.train.inputs(step), 1)
    told.append(digest(metrics))
  job.data.train.close()
  sums = {name: evaluate(state) for name, evaluate in job._evaluations.items()}
  return [*told, digest(state), digest(sums)]


def main(flags, devices, *families):
  if "shards" in flags:
    round_twice()
  for family in families:
    for count in devices.split(","):
      found = trained(family, [*filter(None, flags.split(",")), f"--parallel.mesh=data:{count}"])
      print(json.dumps([family, int(count), found]), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
