"""The JobSet: against its own models and Kubernetes' strict schemas, and what it does after each exit code."""

import re

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from launch.accelerators import GPUS, tpu_hosts
from launch.gke import Gke, jobset, text
from research.errors import UserError

TPU = Gke(name="gan", image="registry.example/flagship:1", topology="4x4", bucket="gs://my-runs", spot=True)
SLICES = Gke(name="gan", image="i", accelerator="v5p", topology="2x2x4", slices=2, bucket="b")
GPU = Gke(name="gan", image="i", accelerator="h100", hosts=2, bucket="b", service_account="runner", grace=300)
EVERY = (TPU, SLICES, GPU, Gke(image="i", accelerator="tpu7x", topology="4x4x8", bucket="b"))
WORDS = ["python", "-m", "experiments.gan", "--config=digits"]
# What JobSet tells of a job after one of its pods ended so: the Job API's reasons.
CRASHED, STOPPED = "PodFailurePolicy", "BackoffLimitExceeded"


def job(made):
  [replicated] = made["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def pod(made):
  return job(made)["template"]["spec"]


@pytest.mark.parametrize("gke", EVERY)
def test_jobset_knows_all_of_it(gke):
  """What a model does not know it leaves out; so what comes back is less than what went in."""
  gke.check()
  made = yaml.safe_load(text(WORDS, gke))
  assert JobsetV1alpha2JobSet.from_dict(made).to_dict() == made


@pytest.mark.parametrize("gke", EVERY)
def test_kubernetes_takes_the_job(gke):
  made = jobset(WORDS, gke)
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": job(made)}
  kubernetes_validate.validate(whole, "1.32", strict=True)


def test_the_schema_is_strict():
  made = jobset(WORDS, GPU)
  pod(made)["containers"][0]["securityContext"]["runAsRoot"] = True
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": job(made)}
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(whole, "1.32", strict=True)


def fails_for(made, code, disrupted=False):
  """The reason for which a job fails when a pod has ended: Kubernetes' rules, in order, then the back-off limit."""
  for rule in job(made)["podFailurePolicy"]["rules"]:
    on = rule.get("onExitCodes")
    codes = on and (code in on["values"]) == (on["operator"] == "In")
    if codes or (disrupted and any(each["type"] == "DisruptionTarget" for each in rule.get("onPodConditions", []))):
      return {"FailJob": CRASHED, "Count": STOPPED}[rule["action"]]
  assert job(made)["backoffLimit"] == 0
  return STOPPED


def starts_again(made, reason):
  """Whether the JobSet does, when a job has failed: its rules, in order, else as often as maxRestarts says."""
  for rule in made["spec"]["failurePolicy"]["rules"]:
    if reason in rule["onJobFailureReasons"]:
      return rule["action"] == "RestartJobSet"
  return made["spec"]["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize("gke", EVERY)
@pytest.mark.parametrize("code", [1, 2, 75, 76, 77, 137, 143])
def test_only_75_and_77_start_it_again(gke, code):
  made = jobset(WORDS, gke)
  assert starts_again(made, fails_for(made, code)) == (code in (75, 77))
  assert starts_again(made, fails_for(made, code, disrupted=True))  # Kubernetes took the pod away


def test_restarts_are_bounded():
  policy = jobset(WORDS, Gke(image="i", topology="4x4", bucket="b", restarts=3))["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 3


@pytest.mark.parametrize(
  ("name", "topology", "hosts", "chips"),
  [
    ("v5e", "1x1", 1, 1),
    ("v5e", "2x4", 1, 8),
    ("v5e", "4x4", 4, 4),
    ("v6e", "16x16", 64, 4),
    ("v4", "2x2x1", 1, 4),
    ("v5p", "2x2x4", 4, 4),
    ("tpu7x", "4x4x8", 32, 4),
  ],
)
def test_a_pod_for_each_host_with_all_of_its_chips(name, topology, hosts, chips):
  assert tpu_hosts(name, topology) == (hosts, chips)
  made = jobset(WORDS, Gke(image="i", accelerator=name, topology=topology, bucket="b", hosts=hosts))
  assert job(made)["parallelism"] == job(made)["completions"] == hosts
  assert job(made)["completionMode"] == "Indexed"
  assert pod(made)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert pod(made)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_slices_are_jobs():
  assert jobset(WORDS, SLICES)["spec"]["replicatedJobs"][0]["replicas"] == 2


def test_gpu_pods_are_told_who_they_are():
  made = jobset(WORDS, GPU)
  [container] = pod(made)["containers"]
  environment = {each["name"]: each.get("value") for each in container["env"]}
  # A JobSet's pod is JOBSET-REPLICATED-JOB-POD.JOBSET to the others.
  [workers] = made["spec"]["replicatedJobs"]
  address, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
  assert address == f"gan-{workers['name']}-0-0.gan"
  assert int(port) == container["ports"][0]["containerPort"]
  assert environment["JAX_NUM_PROCESSES"] == str(job(made)["completions"]) == "2"
  index = container["env"][2]
  assert index["name"] == "JAX_PROCESS_ID"
  field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert index["valueFrom"] == {"fieldRef": {"fieldPath": field}}
  assert pod(made)["nodeSelector"] == {"cloud.google.com/gke-accelerator": GPUS["h100"]}


@pytest.mark.parametrize("gke", EVERY)
def test_nobody_is_root(gke):
  found = pod(jobset(WORDS, gke))
  assert found["securityContext"]["runAsNonRoot"]
  assert found["securityContext"]["runAsUser"] > 0
  [container] = found["containers"]
  assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_runs_lie_in_the_bucket():
  found = pod(jobset(WORDS, TPU))
  [mount] = found["containers"][0]["volumeMounts"]
  [volume] = found["volumes"]
  assert (mount["name"], mount["mountPath"]) == (volume["name"], "/app/runs")
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-runs"
  assert pod(jobset(WORDS, GPU))["serviceAccountName"] == "runner"


def test_spot_machines_are_asked_for_and_tolerated():
  found = pod(jobset(WORDS, TPU))
  assert found["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert "cloud.google.com/gke-spot" in [each["key"] for each in found["tolerations"]]
  assert "cloud.google.com/gke-spot" not in pod(jobset(WORDS, GPU))["nodeSelector"]
  assert pod(jobset(WORDS, GPU))["terminationGracePeriodSeconds"] == 300


def test_a_command_reaches_the_pod_word_for_word():
  """Kubernetes puts variables in for $(NAME), and $ for $$."""
  words = ["two words", "it's", '"$HOME"', "$(HOME)", "$$", "a: b", "- c", "", "ä", "true", "1", "a\nb"]
  found = pod(yaml.safe_load(text(words, TPU)))["containers"][0]["command"]


  def expanded(word):
    return re.sub(r"\$\$|\$\(\w+\)", lambda match: "$" if match[0] == "$$" else "a variable", word)

  assert [expanded(word) for word in found] == words


@pytest.mark.parametrize(
  ("gke", "said"),
  [
    (Gke(image="i", bucket="b"), "--accelerator=v5e needs a --topology, such as 4x4"),
    (Gke(image="i", bucket="b", topology="4x5"), "--topology=4x5 is none of v5e's (did you mean 4x"),
    (Gke(image="i", bucket="b", topology="4x4", hosts=3), "v5e's 4x4 is 16 chips on 4 hosts of 4, not on --hosts=3"),
    (Gke(image="i", bucket="b", topology="2x4", hosts=2), "v5e's 2x4 is 8 chips on 1 host of 8, not on --hosts=2"),
    (Gke(image="i", bucket="b", accelerator="v5p", topology="4x4"), "three sides, as 2x2x4"),
    (Gke(image="i", bucket="b", accelerator="v5p", topology="4x4x6"), "three multiples of 4"),
    (Gke(image="i", bucket="b", accelerator="h1000"), "no accelerator 'h1000' (did you mean h100?)"),
    (Gke(image="i", bucket="b", accelerator="h100", topology="4x4"), "--topology and --slices are of TPUs"),
    (Gke(bucket="b", topology="4x4"), "--image is needed"),
    (Gke(image="i", topology="4x4"), "--bucket is needed"),
  ],
)
def test_machines_that_do_not_exist_are_refused(gke, said):
  with pytest.raises(UserError, match=re.escape(said)):
    gke.check()
