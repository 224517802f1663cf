"""The judge of generated images: a classifier that Flagship trained, through whose features and labels they are seen.

It is named by a run's directory, or as EXPERIMENT:PRESET, which is looked for beside the asking run and trained there
where it is not. Scores are comparable only between runs with the same judge: `Judge.about` says which it is.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import command, run_directory, work
from experiments.candidate import Candidate, find, no_classifier
from experiments.job import Job, make_job
from experiments.schema import Data
from research.data import fingerprint
from research.errors import UserError
from research.parallel import arrays
from research.parallel.agreement import by_first
from research.report import record
from research.task import State


class Judge:
  """A trained classifier, ready to look at images.

  Attributes:
    about: {"run": its directory, "step", "test_accuracy" or None where it is not known, "fingerprint": 16 hex digits of
      the sha-256 of all arrays that its features depend on}. A resumed run should refuse another fingerprint.
    class_names: what its labels stand for.
    image_shape: (H, W, C) of the images that it takes.
  """

  def __init__(self, job: Job, state: State, about: dict):
    schema, devices = job.data.splits.train.schema, job.layout.ways
    self.about, self.class_names, self.image_shape = about, schema.class_names, schema.features["image"].shape
    self._batch_size = -(-job.config.data.eval_batch_size // devices) * devices
    self._rows = job.layout.rows
    self._state = state.replace(opt_state=())
    task, prepare = job.task, job.data.prepare  # not the job, which holds its training data on the device

    def see(state: State, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
      index_B = jnp.arange(image_BHWC.shape[0], dtype=jnp.int32)
      batch = {"image": image_BHWC, "label": jnp.zeros_like(index_B), "mask": jnp.ones(index_B.shape), "index": index_B}
      batch = prepare(batch, jax.random.key(0))  # evaluation's transform, which draws nothing
      return task.features(state, batch), task.per_example(state, batch)["prediction"]

    self._see = jax.jit(see, out_shardings=job.layout.replicated)

  def look(self, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the head sees of each image, features_ND float32, and the class that it predicts, label_N int32.

    Images go in batches of --data.eval_batch_size of the judge's run, the last one filled up: one program is compiled,
    however many there are. Raises ValueError for other than (N, H, W, C) uint8 images of the judge's shape.
    """
    if images_NHWC.dtype != np.uint8 or images_NHWC.shape[1:] != self.image_shape or not len(images_NHWC):
      raise ValueError(f"a judge of {self.image_shape} uint8 looks at {images_NHWC.shape} {images_NHWC.dtype}")
    seen = []
    for start in range(0, len(images_NHWC), self._batch_size):
      images_BHWC = images_NHWC[start : start + self._batch_size]
      missing = self._batch_size - len(images_BHWC)
      full_BHWC = np.pad(images_BHWC, ((0, missing), (0, 0), (0, 0), (0, 0)))
      found = jax.device_get(self._see(self._state, arrays.put(full_BHWC, self._rows)))
      seen.append([values_B[: len(images_BHWC)] for values_B in found])
    features_ND, label_N = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    return features_ND, label_N

  def features(self, images_NHWC: np.ndarray) -> np.ndarray:
    """features_ND float32; `look` gives the labels with them at no further cost."""
    return self.look(images_NHWC)[0]

  def labels(self, images_NHWC: np.ndarray) -> np.ndarray:
    """label_N int32, indices into `class_names`."""
    return self.look(images_NHWC)[1]


def open_judge(
  value: str, *, workdir: Path, data: Data, image_shape: tuple[int, ...], say: Callable[[str], None] = print
) -> Judge:
  """The judge that --metrics.features=`value` names, trained first where it is a preset without a finished run.

  Args:
    value: a run's directory, or EXPERIMENT:PRESET.
    workdir: the asking run's; a preset's run stands beside it.
    data: the asking run's flags; a preset takes `dir` and `cache_dir` from them.
    image_shape: (H, W, C) of the images to be judged.
    say: told one line before training.

  Raises:
    UserError: `find` finds nothing, it is no classifier of such images, its training failed, or it has no checkpoint.
    KeyboardInterrupt: a signal stopped its training, which the next call continues; `command.main` ends with 75.
  """
  candidate = find(value, workdir=workdir, data=data)
  definition, request = candidate.definition, candidate.request
  if candidate.trains and by_first(lambda: run_directory.read_result(request.workdir)) is None:
    # Refused now rather than after minutes of training.
    _check(value, make_job(definition, request.config, lambda line: None, request.workdir), image_shape)
    _train(candidate, say)
  job, state, step = work.load(definition, request)
  _check(value, job, image_shape)
  result = by_first(lambda: run_directory.read_result(request.workdir))
  accuracy = result["metrics"].get("test/accuracy") if result else None
  about = {
    "run": str(request.workdir),
    "step": step,
    "test_accuracy": None if accuracy is None else record.number(accuracy),
    "fingerprint": _fingerprint(state),
  }
  return Judge(job, state, about)


def check(job: Job, workdir: Path) -> None:
  """Raises UserError where `open_judge` would for a run's --metrics.features, as far as that is known without training
  or opening anything; nothing for a run that has no images to be judged, or names no judge.

  Args:
    job: the asking run's.
    workdir: its directory.
  """
  value = getattr(getattr(job.config, "metrics", None), "features", "")
  image = job.data.splits.train.schema.features.get("image")
  if not value or image is None:
    return
  candidate = find(value, workdir=workdir, data=job.config.data)
  definition, request = candidate.definition, candidate.request
  if not candidate.trains:
    work.check_trained(request.workdir)
  _check(value, make_job(definition, request.config, lambda line: None, request.workdir), image.shape)


def _train(candidate: Candidate, say: Callable[[str], None]) -> None:
  definition, request = candidate.definition, candidate.request
  preset = candidate.value.partition(":")[2]
  say(f"judge: training {definition.name} --config={preset} in {request.workdir}, whose features judge this run")
  code = work.train(definition, request)
  if code == command.STOPPED:
    raise KeyboardInterrupt  # the signal was meant for the asking run as well
  if code != work.DONE:
    raise UserError(
      f"metrics: training {candidate.value} in {request.workdir} ended with exit code {code}; name another judge with"
      " --metrics.features"
    )


def _check(value: str, job: Job, image_shape: tuple[int, ...]) -> None:
  """Raises UserError where the job is no classifier of images (H, W, C)."""
  schema, source = job.data.splits.train.schema, job.config.data.source
  if schema.output != "label":
    raise no_classifier(value, f"{source} has targets instead of classes")
  if job.task.features is None or job.task.per_example is None:
    raise no_classifier(value, "its task tells neither features nor classes")
  if "image" not in schema.features:
    raise UserError(f"metrics: --metrics.features={value} sees no images; {source} has {', '.join(schema.features)}")
  theirs = schema.features["image"].shape
  if theirs != tuple(image_shape):
    theirs, ours = ("×".join(map(str, shape)) for shape in (theirs, image_shape))
    raise UserError(f"metrics: --metrics.features={value} sees images of {theirs}, and those to be judged have {ours}")


def _fingerprint(state: State) -> str:
  leaves = jax.tree_util.tree_flatten_with_path({"params": state.params, "extra": state.extra})[0]
  return fingerprint.arrays({jax.tree_util.keystr(path): arrays.get(leaf) for path, leaf in leaves})[:16]
