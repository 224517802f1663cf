"""Who we are among several processes, by what the environment says."""

import pytest

from research.errors import UserError
from research.parallel import processes
from research.parallel.processes import ADDRESS, COUNT, INDEX, Cluster

GIVEN = {ADDRESS: "10.0.0.1:8476", COUNT: "4", INDEX: "3"}
SLURM = {
  "SLURM_JOB_ID": "5", "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
SLURM_PORT = 5 + 65535 - 2**12 + 1  # jax makes it of the job's number


def found(monkeypatch, environment):
  for name, value in environment.items():  # jax reads the process' own
    monkeypatch.setenv(name, value)
  return processes.find(environment)


@pytest.mark.parametrize(
  ("environment", "cluster"),
  [
    ({}, None),
    (GIVEN, Cluster("10.0.0.1:8476", 4, 3)),
    ({**GIVEN, ADDRESS: "[::1]:80"}, Cluster("[::1]:80", 4, 3)),
    ({COUNT: "1"}, None),
    ({**SLURM, COUNT: "1"}, None),
    (SLURM, Cluster(f"node07:{SLURM_PORT}", 2, 1)),
    ({**SLURM, ADDRESS: "node07:99"}, Cluster("node07:99", 2, 1)),
    ({**SLURM, "SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "1"}, Cluster(f"node07:{SLURM_PORT}", 2, 1, (1,))),
    ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # some pod, such as a notebook's
  ],
)
def test_found(monkeypatch, environment, cluster):
  assert found(monkeypatch, environment) == cluster


@pytest.mark.parametrize(
  ("environment", "complaint"),
  [
    ({**GIVEN, INDEX: "4"}, "JAX_PROCESS_ID=4 with JAX_NUM_PROCESSES=4"),
    ({**GIVEN, INDEX: "-1"}, "numbered from 0"),
    ({**GIVEN, COUNT: "four"}, "JAX_NUM_PROCESSES=four"),
    ({**GIVEN, ADDRESS: "10.0.0.1"}, "is not HOST:PORT"),
    ({**GIVEN, ADDRESS: "10.0.0.1:0"}, "is not HOST:PORT"),
    ({COUNT: "4", INDEX: "3"}, "JAX_COORDINATOR_ADDRESS is not"),
    ({INDEX: "3", ADDRESS: "10.0.0.1:8476"}, "JAX_PROCESS_ID is set and JAX_NUM_PROCESSES is not"),
    ({**SLURM, "SLURM_NTASKS": "two"}, "a job of slurm"),
  ],
)
def test_refused(monkeypatch, environment, complaint):
  with pytest.raises(UserError) as error:
    found(monkeypatch, environment)
  assert str(error.value).startswith("processes: ")
  assert complaint in str(error.value)
