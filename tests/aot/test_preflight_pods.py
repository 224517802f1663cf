"""Preflight for pods that are not here: what fits, what is sent, which kernels run on each chip."""

import dataclasses
import importlib

import pytest

from experiments import automatic, command, preflight
from experiments.job import make_job
from research.errors import UserError
from research.kernels import choice
from research.parallel import gathering, topology
from research.parallel.mesh import make_mesh

pytestmark = pytest.mark.aot
GPT = importlib.import_module("experiments.gpt.__main__").EXPERIMENT
SMALL = [
  f"--data.source=text:{__file__}", "--data.batch_size=32", "--model.layers=2", "--model.width=256", "--model.heads=4",
  "--model.context=256", "--model.dtype=bfloat16", "--optim.name=adamw", "--data.validation_fraction=0.3",
]  # fmt: skip


def facts_of(target, *flags):
  config = command.read(GPT, [*SMALL, *flags]).config
  with choice.compiling_for(target.platform, target.devices[0]):
    return preflight.facts(make_job(GPT, config, lambda line: None, target=target), target)


@pytest.fixture(scope="module")
def pod():
  return topology.target("v5e:4x4")


def test_an_fsdp_step_on_sixteen_chips(pod):
  found = facts_of(pod, "--parallel.strategy=fsdp", "--model.context=1024")
  assert found["devices"]["count"] == 16
  assert found["device memory"]["fits"] is True
  assert found["device memory"]["capacity"] == 16e9
  whole = sum(row["bytes"] for row in found["parameters"])
  assert whole / 16 <= found["device memory"]["parameters"] < whole / 14  # norms' scales are whole
  # Kernels, which XLA cannot divide, run on each chip's part.
  assert found["run"]["kernels"]["attention"] == found["run"]["kernels"]["attention.gradients"] == "pallas_tpu"
  # At least the parameters come here in bfloat16, once forward and once backward, and their gradients go.
  assert sum(each["sent"] for each in found["collectives"]) > 1.4 * whole


@pytest.mark.parametrize(
  ("name", "sizes"), [("v5e:2x4", (2, 4)), ("v5e:4x4", (4, 4)), ("v5e:4x8", (4, 8)), ("v5p:2x2x4", (2, 2, 4))]
)
def test_what_shares_a_batch_lies_in_rows_and_columns_and_in_no_ring(name, sizes):
  devices = topology.target(name).devices
  mesh = make_mesh(f"data:{len(devices)}", devices=devices)
  assert gathering.directions(mesh) == sizes
  assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}


def test_on_many_chips_fsdp_gathers_and_scatters_and_sums_no_whole_gradients():
  many = topology.target("v5e:8x8")
  found = facts_of(many, "--parallel.strategy=fsdp", "--data.batch_size=64", "--model.width=512")
  assert gathering.directions(make_mesh("data:64", devices=many.devices)) == (8, 8)
  # Parameters in bfloat16, forward and once more backward, and their gradients in bfloat16.
  ideal = 3 * 2 * 63 / 64 * sum(row["count"] for row in found["parameters"])
  looked_up = 2 * 2 * 256 * 512 * 2 + 64 * 256 * 4 * 2  # of the embedding and its gradient, and the tokens for it
  assert sum(each["sent"] for each in found["collectives"]) < 1.1 * (ideal + looked_up)


def test_rings_pipelines_and_experts_send_what_they_are_for(pod):
  ring = facts_of(pod, "--parallel.strategy=sp", "--parallel.mesh=data:4,sequence:4")
  assert not [each for each in ring["collectives"] if each["kind"] == "all-gather" and each["bytes"] > 10**6]
  experts = facts_of(pod, "--parallel.strategy=ep", "--parallel.mesh=data:4,expert:4", "--model.experts=4")
  assert [each for each in experts["collectives"] if each["kind"] == "all-to-all"]
  stages = facts_of(pod, "--parallel.strategy=pp", "--parallel.mesh=data:8,stage:2")
  assert stages["devices"]["bubble"] == pytest.approx(1 / 5)  # four rows of a stage's devices in four parts
  assert [each for each in stages["collectives"] if each["kind"] == "collective-permute"]


def test_a_run_that_does_not_fit_says_by_how_much_and_what_would(capsys):
  large = ["--data.batch_size=256", "--model.layers=8", "--model.width=1024", "--model.context=1024"]
  assert command.main(GPT, ["preflight", *SMALL, *large, "--topology=v5e:2x2"]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert "--parallel.strategy=dp on 4 × TPU v5 lite takes" in error
  assert "too much; --parallel.strategy=fsdp --model.remat=full" in error
  assert error.endswith("would fit")


def test_the_strategy_is_chosen_among_those_that_fit(pod):
  said = []
  config = command.read(GPT, [*SMALL, "--parallel.strategy=auto", "--parallel.mesh=data:16"]).config
  with choice.compiling_for(pod.platform, pod.devices[0]):
    job = make_job(GPT, config, said.append, target=pod)
  assert {line.split()[1] for line in said if line.startswith("auto: ")} == {"dp", "fsdp"}
  told = {line.split()[1]: float(line.split(": ")[2].split()[0]) for line in said[:-1]}  # milliseconds
  chosen = job.config.parallel.strategy
  assert told[chosen] == min(told.values())
  assert said[-1] == f"auto: {chosen} over data:16 is the fastest that fits"


def test_of_those_that_do_not_fit_none_is_chosen(pod):
  tiny = dataclasses.replace(pod, chip=dataclasses.replace(pod.chip, memory=1e6))
  config = command.read(GPT, [*SMALL, "--parallel.mesh=data:16"]).config
  with choice.compiling_for(pod.platform, pod.devices[0]), pytest.raises(UserError, match="no strategy fits"):
    automatic.choose(GPT, config, make_job(GPT, config, print, target=pod).data.splits, print, tiny)


def test_an_unknown_slice_names_the_nearest():
  with pytest.raises(UserError, match=r"no topology v5e:3x4 \(did you mean v5e:4x4\?\)"):
    topology.target("v5e:3x4")
