"""The same training on one device and on eight, by every strategy and way of compiling: losses, gradients, states."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import command
from experiments.job import make_job
from research.checkpoint import Checkpoints
from research.parallel.tables import COMPILE, STRATEGIES

MESHES = {"dp": "data:8", "fsdp": "data:8", "tp": "data:4,model:2", "fsdp_tp": "data:4,model:2"}
# Gradients themselves, and not their signs: Adam's first updates are ±1 where a gradient is nearly 0.
RULE = ["--optim.name=momentum", "--optim.learning_rate=0.1", "--optim.schedule=constant", "--data.batch_size=16"]
TRANSFORMER = ["--model.layers=2", "--model.width=16", "--model.heads=2", "--model.dropout=0"]
FAMILIES = {
  "linear": ["--data.source=sklearn:digits"],
  "mlp": ["--data.source=sklearn:digits", "--model.widths=16,32", "--model.norm=batch"],
  "cnn": ["--data.source=sklearn:digits", "--model.widths=8,16", "--model.norm=batch"],
  "cnn, resnet": ["--data.source=sklearn:digits", "--model.name=resnet18", "--model.widths=8", "--model.norm=batch"],
  "gan": ["--data.source=sklearn:digits", "--model.width=8", "--model.latent=6", "--gan.r1=0.1"],
  "gan, averaged": ["--data.source=synthetic:ring?size=400", "--model.name=mlp", "--model.widths=8,8",
                    "--gan.loss=relativistic_average", "--gan.critic_steps=2", "--gan.gradient_penalty=0.1"],
  "autoencoder": ["--data.source=sklearn:digits", "--model.network=conv", "--model.widths=8,16"],
  "gpt": [f"--data.source=text:{__file__}", *TRANSFORMER, "--model.context=16", "--text.tokenizer=byte"],
  "bert": [f"--data.source=text:{__file__}", *TRANSFORMER, "--model.context=16", "--text.tokenizer=byte"],
  "vit": ["--data.source=sklearn:digits", *TRANSFORMER, "--model.patch=2"],
  "text": ["--data.source=python:docstrings", "--text.length=20", "--model.width=16", "--model.filters=16"],
  "forecast": [
    "--data.source=synthetic:seasonal?size=300", "--series.context=12", "--series.horizon=4", "--series.season=6",
    "--model.name=gru", "--model.hidden=8",
  ],
}  # fmt: skip
WAYS = {
  **{strategy: [f"--parallel.strategy={strategy}", f"--parallel.mesh={mesh}"] for strategy, mesh in MESHES.items()},
  **{way: [f"--parallel.compile={way}", "--parallel.mesh=data:8"] for way in COMPILE if way != "jit"},
}
QUICK = {
  ("mlp", "fsdp"), ("cnn", "dp"), ("gan", "fsdp"), ("gpt", "fsdp_tp"), ("vit", "tp"), ("cnn", "shard_map"),
  ("mlp", "pmap"), ("gan", "shard_map"),
}  # fmt: skip
EXPERIMENTS = sorted(path.parent.name for path in Path(command.__file__).parent.glob("*/__main__.py"))


def job_of(family, flags):
  definition = importlib.import_module(f"experiments.{family.partition(',')[0]}.__main__").EXPERIMENT
  request = command.read(definition, [*FAMILIES[family], *RULE, "--run.steps=3", *flags])
  return make_job(definition, request.config, lambda line: None)


def trained(family, flags, updates=3):
  """(metrics of each update, the state after them) on the host."""
  job = job_of(family, flags)
  call, state, told = job.training_call(), job.initial_state(), []
  placed = jax.tree.map(lambda x: x.sharding, job.abstract_state)
  for step in range(updates):
    state, metrics = call(state, job.data.train.inputs(step), 1)
    told.append(jax.device_get(metrics))
    assert jax.tree.map(lambda x: x.sharding, state) == placed  # it comes back as it went in: nothing is compiled twice
  job.data.train.close()
  return told, jax.device_get(state)


ALONE = {}


def alone(family):
  if family not in ALONE:
    ALONE[family] = trained(family, ["--parallel.mesh=data:1"])
  return ALONE[family]


def test_every_experiment_is_here():
  assert {family.partition(",")[0] for family in FAMILIES} == set(EXPERIMENTS)
  assert MESHES.keys() == STRATEGIES.keys()


@pytest.mark.parametrize(
  ("family", "way"),
  [
    pytest.param(family, way, marks=() if (family, way) in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for way in WAYS
  ],
)
def test_it_is_the_training_of_one_device(family, way):
  told, state = trained(family, WAYS[way])
  expected, expected_state = alone(family)
  for ours, theirs in zip(told, expected, strict=True):
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state, expected_state)


def test_a_checkpoint_of_any_mesh_is_read_on_any_other(tmp_path):
  jobs = {way: job_of("gpt", WAYS[way]) for way in MESHES} | {"one": job_of("gpt", ["--parallel.mesh=data:1"])}
  state = jax.device_get(jobs["one"].initial_state())
  for writer, job in jobs.items():
    checkpoints = Checkpoints(tmp_path / writer)
    checkpoints.save(0, job.initial_state())
    checkpoints.wait()
    for reader in jobs:
      abstract = jobs[reader].abstract_state
      found = checkpoints.restore(0, abstract)
      assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, abstract)
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), state)
    checkpoints.close()


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--parallel.strategy=tp"], "--parallel.strategy=tp needs an axis model, such as --parallel.mesh=data:4,model:2"),
    (["--parallel.mesh=data:2,model:2"], "dp has no use for model:2 in --parallel.mesh; tp and fsdp_tp have"),
    (["--parallel.strategy=fsdp", "--parallel.compile=pmap"], "--parallel.compile=pmap is for --parallel.strategy=dp"),
    (["--parallel.strategy=fsdp", "--parallel.mesh=data:8", "--model.widths=12"], "has 12 of embed"),
    (["--parallel.mesh=data:4,model:4"], "wants 16 devices and there are 8"),
    (["--parallel.strategy=zero"], "dp"),
  ],
)
def test_what_cannot_be_laid_out_is_one_line(flags, said, tmp_path, capsys):
  definition = importlib.import_module("experiments.mlp.__main__").EXPERIMENT
  workdir = tmp_path / "run"
  arguments = ["--data.source=sklearn:digits", "--data.batch_size=16", f"--workdir={workdir}", *flags]
  assert command.main(definition, arguments) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1, error
  assert said in error
  assert not workdir.exists()
