"""The same training on one device and on eight, by every strategy and way of compiling: losses, gradients, states."""

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import command, preflight
from experiments.job import make_job
from research.checkpoint import Checkpoints
from research.errors import UserError
from research.parallel import hlo
from research.parallel.tables import COMPILE, STRATEGIES

MESHES = {
  "dp": "data:8", "fsdp": "data:8", "tp": "data:4,model:2", "fsdp_tp": "data:4,model:2", "sp": "data:2,sequence:4",
  "pp": "data:2,stage:2", "ep": "data:2,expert:4",
}  # fmt: skip
# The others refuse it.
ONLY = {"sp": {"gpt", "gpt, experts", "bert", "vit"}, "pp": {"gpt", "bert", "vit"}, "ep": {"gpt, experts"}}
# Gradients themselves, and not their signs: Adam's first updates are ±1 where a gradient is nearly 0.
RULE = ["--optim.name=momentum", "--optim.learning_rate=0.1", "--optim.schedule=constant", "--data.batch_size=16"]
TRANSFORMER = ["--model.layers=2", "--model.width=16", "--model.heads=2", "--model.dropout=0"]
NOTES = Path(__file__).with_name("notes.csv")
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
  "gpt, experts": [f"--data.source=text:{__file__}", *TRANSFORMER, "--model.context=16", "--text.tokenizer=byte",
                   "--model.experts=4"],
  "bert": [f"--data.source=text:{__file__}", *TRANSFORMER, "--model.context=16", "--text.tokenizer=byte"],
  "vit": ["--data.source=sklearn:digits", *TRANSFORMER, "--model.patch=2"],
  "text": [f"--data.source=csv:{NOTES}", "--text.length=20", "--model.width=16", "--model.filters=16"],
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
  ("mlp", "pmap"), ("gan", "shard_map"), ("gpt", "sp"), ("gpt", "pp"), ("gpt, experts", "ep"),
}  # fmt: skip


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


EXPERIMENTS = sorted(path.parent.name for path in Path(command.__file__).parent.glob("*/__main__.py"))


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_from_the_cache():
  """Devices of a CPU wait for each other for ever in what XLA has read from it (`experiments.work`)."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # that there is one is remembered
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


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
    if family in ONLY.get(way, FAMILIES)
  ],
)
def test_it_is_the_training_of_one_device(family, way):
  told, state = trained(family, WAYS[way])
  expected, expected_state = alone(family)
  for ours, theirs in zip(told, expected, strict=True):
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state, expected_state)


@pytest.mark.parametrize(
  ("family", "strategy"),
  [
    pytest.param(family, strategy, marks=() if family in ("mlp", "gpt", "gpt, experts") else pytest.mark.slow)
    for strategy, families in ONLY.items()
    for family in FAMILIES
    if family not in families
  ],
)
def test_a_family_that_a_strategy_is_not_for_says_why(family, strategy):
  with pytest.raises(UserError, match=f"--parallel.strategy={strategy} ") as error:
    job_of(family, WAYS[strategy]).training_call().forms()
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "flags",
  [
    ["--parallel.strategy=sp", "--parallel.mesh=sequence:8", "--model.window=5"],
    slow(["--parallel.strategy=sp", "--parallel.mesh=sequence:4", "--model.kv_heads=1", "--model.attention_softcap=5"]),
    ["--parallel.strategy=tp", "--parallel.mesh=data:2,model:4", "--model.heads=4", "--model.kv_heads=2"],
    slow(["--parallel.strategy=pp", "--parallel.mesh=stage:2", "--parallel.micro_batches=8",
          "--optim.micro_batches=2"]),
  ],
  ids=["a window", "one key head", "fewer key heads than devices", "two ways of parts"],
)  # fmt: skip
def test_it_is_for_every_kind_of_attention_too(flags):
  model = [flag for flag in flags if flag.startswith("--model")]
  told, state = trained("gpt", flags, updates=2)
  expected, expected_state = trained("gpt", [*model, "--parallel.mesh=data:1"], updates=2)
  assert abs(told[-1]["loss"] - expected[-1]["loss"]) < 1e-4
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state, expected_state)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_fsdp_sends_parameters_twice_and_their_gradients_once(remat):
  flags = ["--parallel.strategy=fsdp", "--parallel.mesh=data:8", "--model.width=64", "--model.layers=4"]
  job = job_of("gpt", [*flags, f"--model.remat={remat}"])
  traced = preflight.trace(job)
  sent = sum(each.sent for each in hlo.collectives(traced.lower().compile().as_text()))
  # Forward, once more backward, and gradients; seven eighths, which the others have. Of what an embedding looks up the
  # parts are sent instead, and a table that is the head too is gathered once.
  ideal = 3 * 7 / 8 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.abstract_state.params))
  assert 0.85 * ideal < sent < 1.1 * ideal
  assert str(traced.jaxpr).count("all_gather[") == 2 * 6 + 1  # a block's kernels, each way, and the head


def sent_by(strategy, *flags):
  """(the state's shapes, compiled step, its collectives) of a GPT on data:4,model:2."""
  job = job_of("gpt", [*WAYS[strategy], "--model.width=64", "--model.layers=4", "--model.context=32", *flags])
  compiled = preflight.trace(job).lower().compile()
  return job.abstract_state, compiled, hlo.collectives(compiled.as_text())


def test_fsdp_tp_sends_what_a_device_multiplies_and_a_text_once_for_all_its_products():
  state, _, collectives = sent_by("fsdp_tp", "--model.bias=false", "--model.remat=full")
  total = {(each.kind, each.devices): each.bytes for each in collectives}
  halves = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)) / 2
  assert 1.8 * halves < total["all-gather", 4] < 2.2 * halves
  assert 0.9 * halves < total["reduce-scatter", 4] < 1.2 * halves
  # Of a layer: before attention and the MLP, forward, once more backward, and for what six products of them give back.
  text = 4 * 32 * 64 * 4
  assert total["all-gather", 2] < (4 * 10 + 3) * text


def test_between_tps_layers_devices_share_a_texts_length(monkeypatch):
  """Of what stands between layers, which is what rematerialised ones keep, a device has its half."""
  flags = ["--model.remat=full", "--model.layers=16", "--model.context=64"]
  _, shared, _ = sent_by("tp", *flags)
  tp = STRATEGIES["tp"]
  rules = tuple(rule for rule in tp.rules if rule[0] != "stream_length")
  monkeypatch.setitem(STRATEGIES, "tp", dataclasses.replace(tp, rules=rules))
  _, whole, _ = sent_by("tp", *flags)
  temporaries = [each.memory_analysis().temp_size_in_bytes for each in (whole, shared)]
  stream = 4 * 64 * 64 * 4  # a device's texts, whole
  assert temporaries[0] - temporaries[1] > 0.9 * 16 * stream / 2  # a tenth of all temporaries


def test_a_checkpoint_of_any_mesh_is_read_on_any_other(tmp_path):
  jobs = {way: job_of("gpt", WAYS[way]) for way in MESHES if way != "ep"}
  jobs["one"] = job_of("gpt", ["--parallel.mesh=data:1"])
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
    (["--parallel.strategy=sp"], "sp needs an axis sequence, such as --parallel.mesh=data:4,sequence:2"),
    (["--parallel.strategy=sp", "--parallel.mesh=data:2,sequence:4"], "this model has no layers that go along one"),
    (["--parallel.strategy=pp", "--parallel.mesh=data:2,stage:4"], "no parameter of this model has an axis of them"),
    (["--parallel.strategy=ep", "--parallel.mesh=data:2,expert:4"], "it wants a transformer with --model.experts"),
    (["--parallel.mesh=data:2,stage:4"], "dp has no use for stage:4 in --parallel.mesh; pp has"),
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


def test_auto_takes_the_fastest_of_those_that_it_has_told(tmp_path):
  definition = importlib.import_module("experiments.mlp.__main__").EXPERIMENT
  said = []
  flags = ["--data.source=sklearn:digits", "--model.widths=16", "--data.batch_size=16", "--parallel.strategy=auto"]
  job = make_job(definition, command.read(definition, flags).config, said.append)
  times = [line.split(": ")[2].split()[:2] for line in said[:-1]]
  units = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
  told = [(line.split()[1], float(time) * units[unit]) for line, (time, unit) in zip(said[:-1], times, strict=True)]
  assert {"dp", "fsdp", "tp"} <= {strategy for strategy, _ in told}
  assert not {"sp", "pp", "ep"} & {strategy for strategy, _ in told}  # of which the model has nothing to divide
  assert said[-1].endswith("is the fastest that fits")
  assert (job.layout.strategy, min(seconds for _, seconds in told)) in told
  assert job.config.parallel.strategy == job.layout.strategy != "auto"


def test_preflight_for_what_is_not_here_or_nowhere(capsys, in_directory):
  definition = importlib.import_module("experiments.mlp.__main__").EXPERIMENT
  line = ["preflight", "--config=iris", "--data.batch_size=16"]
  assert command.main(definition, [*line, "--topology=v5f:4x4"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("preflight: no chip 'v5f' in --topology=v5f:4x4 (did you mean v5p?)")
  assert error.count("\n") == 1
  assert command.main(definition, [*line, "--topology=cpu:4", "--parallel.strategy=fsdp"]) == 0
  assert "4 × cpu of cpu:4, data:4, fsdp by jit" in capsys.readouterr().out
  assert command.main(definition, ["--config=iris", "--topology=cpu:4"]) == 2
  assert "--topology=cpu:4 belongs to the command preflight" in capsys.readouterr().err
  assert not list(in_directory.iterdir())
