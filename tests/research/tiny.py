"""A small but whole training job, for tests of the loop, the steps and the checkpoints."""

import dataclasses

import jax
import numpy as np

from research import evaluating, guard, loop, optim, recovery, steps
from research.checkpoint import Checkpoints
from research.data import feeds, transforms
from research.data.source import ArraySource, Feature, Schema
from research.models.mlp import MLP
from research.parallel.mesh import make_mesh
from research.parallel.tables import Layout
from research.supervised import supervised
from research.task import Task

TRACED = ("init", "step", "evaluate", "per_example", "features")


def compiled(task: Task) -> Task:
  """The task with its traced functions compiled whole: run eagerly, each of their operations compiles alone."""
  functions = {name: getattr(task, name) for name in TRACED}
  return dataclasses.replace(task, **{name: jax.jit(call) for name, call in functions.items() if call is not None})


@dataclasses.dataclass
class Optim:
  """The optimizer's flags, as the schema has them."""

  name: str = "adamw"
  learning_rate: float = 1e-2
  schedule: str = "constant"
  warmup_steps: int = 0
  final_learning_rate_fraction: float = 0.0
  momentum: float = 0.9
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.01
  weight_decay_mask: str = "kernels"
  clip_norm: float = 1.0


def source(size: int = 80) -> ArraySource:
  """Points in five dimensions, labelled by a fixed plane."""
  rng = np.random.default_rng(0)
  features_ND = rng.standard_normal((size, 5)).astype(np.float32)
  label_N = (features_ND @ np.arange(1, 6, dtype=np.float32) > 0).astype(np.int32)
  schema = Schema({"features": Feature((5,), "float32"), "label": Feature((), "int32")}, ("under", "over"))
  return ArraySource("plane", schema, {"features": features_ND, "label": label_N}, "0" * 64)


BAD = 17  # an example


def spoilt(value, index=BAD, size=80):
  """The same with one number of one example as `value`."""
  good = source(size)
  features_ND = np.array(good.stored()["features"])
  features_ND[index] = value
  return ArraySource("plane", good.schema, {**good.stored(), "features": features_ND}, "1" * 64)


def counters(state):
  return {name: int(value) for name, value in jax.device_get(state).guard.items() if name != "mean"}


class Job:
  """Task, feeds, calls and state of a small network with dropout, batch norm and an average of its parameters."""

  def __init__(
    self, *, seed=0, steps_per_call=1, batch_size=16, mesh="data:2", feed="device", data=None, model=None,
    rules=None, compile="jit", **task,
  ):  # fmt: skip
    self.steps_per_call, rules = steps_per_call, rules or guard.Rules()
    self.mesh, self.seed, self.source = make_mesh(mesh), seed, data or source()
    model = model or MLP(outputs=2, widths=(8,), dropout=0.3, norm="batch")
    self.task = supervised(model, optim.make_optimizer(Optim(), 100), loss="softmax", ema_decay=0.9, **task)
    plan = feeds.Shuffled(seed, batch_size, self.source.size)
    (self.feed,) = feeds.make_feeds(self.source, self.mesh, [plan], kind=feed, budget_bytes=0)
    in_order = feeds.InOrder(24, self.source.size)
    (self.eval_feed,) = feeds.make_feeds(self.source, self.mesh, [in_order], kind=feed, budget_bytes=0)
    self.augment = self.prepare = transforms.chain([])
    self.layout = Layout(self.mesh, compile=compile)
    arguments = (self.task, self.feed, self.augment, seed, self.layout)
    initialization = steps.Initialization(*arguments, rules)
    self.state, self.abstract = initialization.state(), initialization.abstract
    self.call = steps.training_call(*arguments, steps_per_call, abstract=self.abstract, begin=False, rules=rules)
    self.facts = evaluating.facts_call(*arguments)
    self.evaluation = evaluating.evaluation_call(self.task, self.eval_feed, self.prepare, self.layout)

  def find_cause(self, state):
    return recovery.cause_of(self.facts(state, self.feed.inputs(int(state.step))), state)

  def evaluate(self, state):
    return {f"validation/{name}": value for name, value in self.task.summarize(self.evaluation(state)).items()}


class Told:
  """A report that remembers what it was told."""

  def __init__(self):
    self.lines, self.scores, self.notes, self.reached, self.rewound = {}, {}, [], [], []

  def train(self, step, scalars):
    assert step not in self.lines
    self.lines[step] = dict(scalars)

  def evaluation(self, step, scalars):
    self.scores[step] = dict(scalars)

  def progress(self, step):
    self.reached.append(step)

  def sample(self, step, sample):
    self.lines.setdefault("samples", []).append((step, sample))

  def rewind(self, step):
    self.rewound.append(step)
    for told in (self.lines, self.scores):
      for later in [each for each in told if each > step]:
        del told[later]

  def note(self, text):
    self.notes.append(text)


def step_of(job, index):
  """The update that meets an example first: it leads to the step after."""
  return next(step for step in range(100) if index in job.feed.plan.rows(step)[0])


def recovering(job, directory, plan, *, state=None, report=None, scores=None):
  """→ (state, what was told, steps that are saved)."""
  report = report or Told()
  plan = dataclasses.replace(plan, steps_per_call=job.steps_per_call)
  checkpoints = Checkpoints(directory, keep=10)
  try:
    state = loop.fit(
      plan, state or job.state, job.call, job.feed, job.evaluate, checkpoints=checkpoints, report=report,
      scores=[] if scores is None else scores, find_cause=job.find_cause,
    )  # fmt: skip
    return state, report, checkpoints.steps
  finally:
    checkpoints.close()
