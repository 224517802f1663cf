"""What the words do: train, eval and (in files of their own) sample, export and preflight, from a parsed request to an
exit code.
"""

import contextlib
import dataclasses
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cluster, history, inputs, interchange, origin, run_directory, sample
from experiments.command import STOPPED, Definition, Request
from experiments.job import Job, make_job
from experiments.schema import Run
from research import evaluating, loop, selection, steps
from research.allocator import keep_freed_memory
from research.checkpoint import Checkpoints
from research.errors import UserError
from research.goodput import Clock, compiling
from research.kernels import choice
from research.models.table import parameter_count
from research.nearest import hint
from research.parallel import processes
from research.parallel.agreement import by_first, stop, together
from research.profiling import Profile
from research.recovery import BadNumbers
from research.report import Report, measures, rebuild, record
from research.signals import Rescue, StopRequest
from research.task import State
from research.watchdog import Watchdog

DONE, BAD_NUMBERS = 0, 76
SAMPLES = {"pictures": 64, "points": 1000}  # at each evaluation


def run(definition: Definition, request: Request) -> int:
  """Does what the request's word says; returns the exit code."""
  # Orbax prints every thread's trace of a failed save; the error itself is raised, and told in one line.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
  if request.word == "preflight":  # before a device is asked for: it may compile for others
    from experiments import preflight

    if request.config.run.compilation_cache:
      keep_compiled_programs()
    return preflight.run(definition, request)
  cluster.check_request(request)
  on_cpu = jax.default_backend() == "cpu"
  # Of programs of XLA's CPU that come from the cache devices wait in different collectives, for ever.
  if on_cpu and processes.joined():
    jax.config.update("jax_enable_compilation_cache", False)
  elif request.config.run.compilation_cache and not (on_cpu and jax.device_count() > 1):
    keep_compiled_programs()
  if on_cpu:
    keep_freed_memory()
  words = {"train": train, "eval": evaluate, "sample": sample.run, "export": interchange.export}
  with choice.configured(request.config.kernels):
    return words[request.word](definition, request)


def keep_compiled_programs() -> None:
  """XLA's persistent cache: the second start of an experiment compiles nothing."""
  home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  jax.config.update("jax_compilation_cache_dir", str(home / "flagship" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_raise_persistent_cache_errors", False)


def first_arrays(definition: Definition, job: Job, workdir: Path) -> dict[str, Any]:
  """What --init_from gives a run that has no checkpoint of its own yet; {} where nothing is asked for."""
  if not job.config.init_from or by_first(lambda: run_directory.has_checkpoint(workdir)):
    return {}
  return together(lambda: origin.arrays(definition, job.config, job.data.splits, job.abstract_state, print))


def judged(definition: Definition, job: Job, workdir: Path) -> Job:
  """The job with what its experiment scores it by. Raises UserError where that is not what the run began with."""
  judge = None if definition.judge is None else definition.judge(job, workdir, print)
  if judge is None:
    return job
  known = by_first(lambda: run_directory.read_record(workdir).get("judge", {}).get("fingerprint"))
  if known not in (None, judge.about.get("fingerprint")):
    raise UserError(
      f"run: {judge.about['run']} is not the judge that {workdir} was started with: its parameters have changed;"
      " give another --workdir"
    )
  return dataclasses.replace(job, task=dataclasses.replace(job.task, judge=judge))


def train(definition: Definition, request: Request) -> int:
  """Trains to the end, or goes on where the run directory's newest checkpoint is."""
  config, workdir = request.config, request.workdir
  with cluster.owned(workdir, definition.name, config, request.allowed):
    result = by_first(lambda: run_directory.read_result(workdir))
    if result and not by_first(lambda: bool(run_directory.differing(workdir, config))):  # else it goes on as another
      if by_first(lambda: not (workdir / "report.html").exists()):  # the disk did not take it
        by_first(lambda: str(rebuild(workdir)))
      print(f"{workdir} is finished: {_in_words(result)}; report: {workdir / 'report.html'}")
      return DONE
    clock = Clock(time.monotonic() - request.age)
    with compiling(clock), StopRequest(config.run.grace_seconds) as asked:
      stopping = stop(asked)
      job = open_job(definition, request)
      by_first(lambda: history.check_data(workdir, job, "give another --workdir", request.allowed))
      _check_best_metric(job)
      call = job.training_call()
      forms = call.forms()  # traced before anything is written: a form that cannot run is refused now
      for line in choice.without_effect(config.kernels, forms):
        print(line)
      first = first_arrays(definition, job, workdir)
      if not stopping():
        job = judged(definition, job, workdir)  # which may train another run first
      by_first(lambda: run_directory.claim(workdir, definition.name, config))
      by_first(lambda: job.data.splits.keep(workdir))
      if stopping():
        print("stopped by a signal before the first step")
        return STOPPED
      run = config.run
      checkpoints = Checkpoints(workdir / "checkpoints", keep=run.keep_checkpoints, about=history.about(request, job))
      rescue = None  # several processes would have to save together
      if not processes.joined():
        rescue = asked.rescue = Rescue(lambda step, state: _save(checkpoints, step, state))
      try:
        code = _train(request, job, call, checkpoints, stopping, first, clock, rescue)
        by_first(lambda: _account(clock, workdir))  # with what the page took
        return code
      except Exception as error:
        processes.failed(error)  # before what follows, which may wait for the others
        raise
      finally:
        clock.close()
        checkpoints.close()


def _train(
  request: Request,
  job: Job,
  call: steps.TrainingCall,
  checkpoints: Checkpoints,
  stopping: Callable[[], bool],
  first: dict[str, Any],
  clock: Clock,
  rescue: Rescue | None,
) -> int:
  config, workdir, plan = request.config, request.workdir, job.plan
  abstract = job.abstract_state
  start, flops = checkpoints.newest(), job.counting()
  changes, notes = ([], []) if start is None else history.changes(request, job, checkpoints, start)
  state = origin.begin(job.initial_state(), first) if start is None else checkpoints.restore(start, abstract)
  start = start or 0
  if start > plan.total_steps:
    raise UserError(f"run: {workdir} has made {start:,} updates already, more than the {plan.total_steps:,} asked for")
  forms = call.forms()
  if changes:  # now that a state has been found which they fit
    by_first(lambda: run_directory.claim(workdir, run_directory.experiment_of(workdir), config, changed=True))
  by_first(lambda: history.write(request, job, abstract, forms, changes))
  by_first(lambda: clock.keep(workdir, start))

  headline = getattr(job.task.judge, "headline", None) or _headline(job)
  with _watched(workdir, config.run) as watch, cluster.reporter(
    workdir=workdir,
    header=_header(request, job, abstract, forms),
    total_steps=plan.total_steps,
    start_step=start,
    batch_size=config.data.batch_size,
    headline=headline,
  ) as report:
    watched = list(job.data.evaluation)[:1]  # validation where there is one, else the test
    best = checkpoints.best() if plan.best_metric else []
    scores, judged = by_first(lambda: history.so_far(workdir, start, plan.best_metric, watched, best))
    if start:
      report.note(f"going on from step {start}")
    for note in notes:
      report.note(note)
    scores = [(step, value) for step, value in scores]
    update = job.one_update(call, flops())
    sample_key, shown = jax.random.key(config.seed), SAMPLES[job.task.sampled]
    sample = None if job.task.sample is None else lambda state: job.task.sample(job.for_host(state), sample_key, shown)
    try:
      with Profile(plan.profile, workdir / "profile", call.text, report.note) as profile:
        state = loop.fit(
          plan, state, call, job.data.train, lambda state: job.scores(state, watched, stopping),
          clock=clock, rescue=rescue, unjudged=start > 0 and plan.evaluates(start) and not judged,
          checkpoints=checkpoints, report=report, scores=scores, stop=stopping, update=update, profile=profile,
          watch=watch, sample=sample, find_cause=job.find_cause,
        )  # fmt: skip
    except BadNumbers as error:
      report.note(str(error))
      by_first(lambda: _account(clock, workdir))
      by_first(lambda: _rebuild(workdir, report))
      return BAD_NUMBERS
    clock.turn("end")
    if stopping():
      if plan.over(step := int(state.step), scores):
        report.note(f"stopped by a signal; step {step} is the last, and what is left is to judge it")
      by_first(lambda: _account(clock, workdir))
      by_first(lambda: _rebuild(workdir, report))  # the page as far as the run has come
      return STOPPED

    step = int(state.step)
    watch.enter(step, "evaluation")
    best = selection.best(plan.best_metric, scores)
    if best is not None and best[0] != step:
      report.note(f"{plan.best_metric} was best at step {best[0]:,}: {measures.say(plan.best_metric, best[1])}")
      if checkpoints.first_whole(best[:1]) is None:
        report.note("its checkpoint is damaged: the last state is judged instead")
      else:
        state = checkpoints.restore(best[0], abstract)
    final = job.scores(state, list(job.data.evaluation))
    rows, images = _rows(job, state)
    result = {
      "step": step,
      "metrics": final,
      "best": {"step": best[0], plan.best_metric: best[1]} if best else {},
    }
    classes = job.data.splits.train.schema.class_names
    wall = lambda: _account(clock, workdir)  # noqa: E731
    by_first(lambda: str(report.finish(result, rows=rows, class_names=classes, images=images, wall=wall)))
  return DONE


def _save(checkpoints: Checkpoints, step: int, state: State) -> None:
  if trouble := checkpoints.save(step, state):
    raise UserError(trouble)
  checkpoints.wait()


@contextlib.contextmanager
def _watched(workdir: Path, run: Run) -> Iterator[Watchdog]:
  """Steps that hang are told of, here and to the other processes."""
  with Watchdog(workdir / f"stacks-{processes.index()}.txt", run.watchdog) as watch:
    processes.follow(watch, run.stall_seconds)
    try:
      yield watch
    finally:
      processes.follow(None)


def _account(clock: Clock, workdir: Path) -> float:
  """Puts the account of the wall time so far into run.json, and returns its sum; a run is not lost for want of it."""
  found = history.goodput(clock, workdir)
  with contextlib.suppress(UserError):
    run_directory.add_to_record(workdir, found)
  return found.get("goodput", {}).get("wall_seconds", 0.0)


def _rebuild(workdir: Path, report: Report) -> None:
  rebuild(workdir, note=report.note)


def evaluate(definition: Definition, request: Request) -> int:
  """Evaluates a run's best checkpoint, or its newest; writes nothing."""
  job, state, step = load(definition, request)
  job = judged(definition, job, request.workdir)
  print(f"{request.workdir}, step {step}")
  for line in by_first(lambda: history.told_unlike(request.workdir, step, request.config)):
    print(line)
  for name, value in job.scores(state, list(job.data.evaluation)).items():
    print(f"  {name:<28} {value:.6g}")
  return DONE


def load(definition: Definition, request: Request) -> tuple[Job, State, int]:
  """A run's job, and the state of its best checkpoint or its newest. Raises UserError where there is none."""
  by_first(lambda: check_trained(request.workdir))  # said before the data are opened, which can take long
  job = open_job(definition, request)
  return job, *restore(job, request)


def open_job(definition: Definition, request: Request) -> Job:
  """The request's job, of the same data in every process."""
  job = together(lambda: make_job(definition, request.config, print, request.workdir))
  cluster.check_data(job.data.splits)
  return job


def restore(job: Job, request: Request) -> tuple[State, int]:
  """The state of a run's best checkpoint or its newest, and its step. Raises UserError where there is none."""
  workdir, metric = request.workdir, request.config.run.best_metric
  by_first(lambda: check_trained(workdir))
  by_first(lambda: history.check_data(workdir, job, "the run's own data, as they were then, are needed"))
  with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
    step = checkpoints.first_whole(by_first(lambda: run_directory.judged_steps(workdir, metric, checkpoints.steps)))
    if step is None:
      raise UserError(f"run: {workdir} has no whole checkpoint")
    return checkpoints.restore(step, job.abstract_state), step


def _rows(job: Job, state: State):
  """Per-example values of the test (else validation) split, and a way to its raw images."""
  name = next((name for name in ("test", "validation") if name in job.data.evaluation), None)
  if name is None or job.task.per_example is None:
    return None, None
  rows = evaluating.examples(job.task, job.data.evaluation[name], job.data.prepare, state, job.layout)
  source = getattr(job.data.splits, name)
  has_images = "image" in source.schema.features
  return rows, (lambda indices: source.gather(indices)["image"]) if has_images else None


def _headline(job: Job) -> str:
  split = next((name for name in ("validation", "test") if name in job.data.evaluation), "train")
  usual = "accuracy" if job.data.splits.train.schema.class_names else "loss"
  return f"{split}/{job.task.headline or usual}"


def _header(request: Request, job: Job, abstract: State, forms: dict[str, str]) -> dict[str, str]:
  plan, config = job.plan, request.config
  epochs = plan.total_steps * config.data.batch_size / job.data.splits.train.size
  devices, place = job.mesh.devices.ravel(), "on the device" if job.data.train.resident else "by Grain"
  return {
    "data": f"{config.data.source}: {inputs.sizes(job.data.splits)}",
    "model": f"{parameter_count(abstract.params):,} parameters",
    "training": f"{plan.total_steps:,} steps of {config.data.batch_size} ({epochs:.3g} epochs), {config.optim.name}",
    "device": f"{len(devices)} × {devices[0].device_kind}{_divided(job)}, data {place}",
    **({"kernels": choice.say(forms)} if forms else {}),
    "run": str(request.workdir),
  }


def _divided(job: Job) -> str:
  """How the work is, where there are several devices."""
  if job.mesh.size == 1:
    return ""
  axes = ",".join(f"{axis}:{size}" for axis, size in job.mesh.shape.items() if size > 1)
  return f" ({axes}, {job.layout.strategy} by {job.layout.compile})"


def check_trained(workdir: Path) -> None:
  if not (workdir / "checkpoints").is_dir():
    raise UserError(f"run: {workdir} has no checkpoints; train it first, or name a run with --config=RUN")


def _check_best_metric(job: Job) -> None:
  """Raises UserError where evaluation gives no such number: said now rather than after the first evaluation."""
  if not job.plan.best_metric:
    return
  split, _, name = job.plan.best_metric.partition("/")
  shapes = evaluating.evaluation_shapes(job.task, job.data.evaluation[split], job.data.prepare, job.abstract_state)
  names = list(job.task.summarize(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)))
  if name not in names:
    raise UserError(
      f"flags: --run.best_metric={job.plan.best_metric} is no metric{hint(name, names)};"
      f" {split}/ has {', '.join(names)}"
    )


def _in_words(result: dict) -> str:
  told = (f"{name} {measures.say(name, record.number(value))}" for name, value in result["metrics"].items())
  return ", ".join([f"step {result['step']:,}", *told])
