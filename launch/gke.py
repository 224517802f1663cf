"""A JobSet for Kubernetes, of TPU slices or of machines with GPUs, that starts again after exit codes 75 and 77.

Every pod runs the same command. Pods of TPUs find each other by what GKE tells them, those of GPUs by ours.
The run's directory lies in a bucket: a pod that is started again has nothing that the last one wrote elsewhere.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.schema import flag
from launch.accelerators import GPUS, TPUS, tpu_hosts
from launch.engine import AGAIN, Engine, Resources, main
from research import nearest
from research.errors import UserError

PORT = 8476  # of the coordinator
USER = 1000  # the image's own, as the Dockerfile makes it
WORKERS, MAIN = "workers", "main"


@dataclasses.dataclass(frozen=True)
class Gke(Resources):
  """What launch.gke is told."""

  image: str = flag("", "the image to run, as the Dockerfile makes it and a registry has it")
  accelerator: str = flag("v5e", f"TPU ({', '.join(TPUS)}) or GPU ({', '.join(GPUS)})")
  topology: str = flag("", "the TPU slice, as 4x4 or 2x2x4")
  hosts: int = flag(0, "machines; 0: as many as the topology has, or one with GPUs", low=0, high=100_000)
  gpus_per_host: int = flag(8, "GPUs of each machine", low=1, high=16)
  slices: int = flag(1, "TPU slices of that topology", low=1, high=1000)
  spot: bool = flag(False, "machines that may be taken away, at a lower price")
  bucket: str = flag("", "Cloud Storage bucket that is mounted as runs/")
  service_account: str = flag("default", "Kubernetes' service account, which may write to the bucket")
  namespace: str = flag("default", "Kubernetes' namespace")
  grace: int = flag(120, "seconds that a pod has to save when it is told to stop", low=1, high=86_400)

  @property
  def is_tpu(self) -> bool:
    return self.accelerator in TPUS

  @property
  def machines(self) -> tuple[int, int]:
    """(hosts of a slice or of the job, chips of each)."""
    return tpu_hosts(self.accelerator, self.topology) if self.is_tpu else (self.hosts or 1, self.gpus_per_host)

  def check(self) -> None:
    """Raises UserError for machines that do not exist, and for what is missing."""
    super().check()
    known = (*TPUS, *GPUS)
    if self.accelerator not in known:
      raise UserError(f"launch: no accelerator {self.accelerator!r}{nearest.hint(self.accelerator, known)}")
    if self.is_tpu and not self.topology:
      example = "4x4" if TPUS[self.accelerator].flat else "2x2x4"
      raise UserError(f"launch: --accelerator={self.accelerator} needs a --topology, such as {example}")
    if not self.is_tpu and (self.topology or self.slices > 1):
      raise UserError(f"launch: --topology and --slices are of TPUs; of {self.accelerator}: --hosts, --gpus_per_host")
    hosts, chips = self.machines
    if self.hosts not in (0, hosts):
      raise UserError(
        f"launch: {self.accelerator}'s {self.topology} is {hosts * chips} chips on {hosts} host{'s' * (hosts > 1)} of"
        f" {chips}, not on --hosts={self.hosts}"
      )
    if not self.image:
      raise UserError("launch: --image is needed: docker build --build-arg=ACCELERATOR=tpu --tag=IMAGE . makes one")
    if not self.bucket:
      raise UserError("launch: --bucket is needed: what a pod writes elsewhere is gone when it is started again")


def jobset(command: Sequence[str], gke: Gke) -> dict[str, Any]:
  """The JobSet, as an object."""
  hosts, _ = gke.machines
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": gke.name,
      "namespace": gke.namespace,
      # One slice to a node pool: a slice's pods never lie in two.
      **({"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
         if gke.is_tpu else {}),
    },
    "spec": {
      "failurePolicy": {
        "maxRestarts": gke.restarts,
        # A job fails for this reason after any code but 75 and 77; after those, and when a machine is taken away, it
        # fails for another, which no rule names: then all jobs are started again.
        "rules": [{"name": "crashed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
      },
      "replicatedJobs": [
        {
          "name": WORKERS,
          "replicas": gke.slices,
          "template": {
            "spec": {
              "parallelism": hosts,
              "completions": hosts,
              "completionMode": "Indexed",
              "backoffLimit": 0,
              "podFailurePolicy": {
                "rules": [
                  {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                  {"action": "FailJob",
                   "onExitCodes": {"containerName": MAIN, "operator": "NotIn", "values": list(AGAIN)}},
                ]
              },
              "template": {
                "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
                "spec": _pod(command, gke),
              },
            }
          },
        }
      ],
    },
  }  # fmt: skip


def _pod(command: Sequence[str], gke: Gke) -> dict[str, Any]:
  _, chips = gke.machines
  resource = "google.com/tpu" if gke.is_tpu else "nvidia.com/gpu"
  if gke.is_tpu:
    selector = {
      "cloud.google.com/gke-tpu-accelerator": TPUS[gke.accelerator].gke,
      "cloud.google.com/gke-tpu-topology": gke.topology,
    }
  else:
    selector = {"cloud.google.com/gke-accelerator": GPUS[gke.accelerator]}
  tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
  if gke.spot:
    selector["cloud.google.com/gke-spot"] = "true"
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    tolerations.append(spot)
  mounts = [{"name": "runs", "mountPath": "/app/runs"}]
  options = f"implicit-dirs,uid={USER},gid={USER}"
  volumes = [
    {
      "name": "runs",
      "csi": {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": gke.bucket.removeprefix("gs://"), "mountOptions": options},
      },
    }
  ]
  if not gke.is_tpu:  # NCCL's, within a machine; 64 MB else
    mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
  return {
    "restartPolicy": "Never",
    "serviceAccountName": gke.service_account,
    "terminationGracePeriodSeconds": gke.grace,
    "nodeSelector": selector,
    "tolerations": tolerations,
    "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
    "containers": [
      {
        "name": MAIN,
        "image": gke.image,
        "command": list(command),
        "workingDir": "/app",
        **({} if gke.is_tpu else {"env": _cluster(gke), "ports": [{"containerPort": PORT, "protocol": "TCP"}]}),
        "resources": {"limits": {resource: chips}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
      }
    ],
    "volumes": volumes,
  }


def _cluster(gke: Gke) -> list[dict[str, Any]]:
  """What jax would ask Kubernetes' API for, with a package and rights that a pod need not have."""
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  return [
    {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{gke.name}-{WORKERS}-0-0.{gke.name}:{PORT}"},
    {"name": "JAX_NUM_PROCESSES", "value": str(gke.machines[0])},
    {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
  ]


def text(command: Sequence[str], gke: Gke) -> str:
  """The JobSet, as YAML."""
  kept = [word.replace("$", "$$") for word in command]  # Kubernetes puts variables in for $(NAME), and $ for $$
  return yaml.safe_dump(jobset(kept, gke), sort_keys=False, width=120, allow_unicode=True)


ENGINE = Engine(
  "gke", __doc__, Gke, text, ("kubectl", "apply", "-f"), ".yaml",
  "--image=IMAGE --bucket=BUCKET --accelerator=v5e --topology=4x4",
)  # fmt: skip

if __name__ == "__main__":
  sys.exit(main(ENGINE))
