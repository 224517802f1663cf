"""Runs of every family that are killed again and again, and end as the one that nobody touched.

  python -m tests.faults.campaign [--families=mlp,gan] [--kills=30] [--seed=0] [--jobs=2] [--report=FILE] [--json]

Each run is killed at up to KILLS seeded moments (`moments.py`), by SIGKILL in the middle of whatever it does, started
again by the same command each time, and let through to the end. Then SHA-256 of every array of the newest checkpoint,
the lines of metrics, the samples, the result and, where a host gathers the batches, the ids of the examples of each
update have to be those of the untouched run. This process imports what a run needs and forks each life from there; it
asks for no device itself.
"""

import os

# As tests/conftest.py has it, and before jax is imported: lives are short, and eight devices are there for all of them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.faults import families, moments, runs

# What lives would each import again; none of them asks for a device.
NEEDED = (
  "experiments.work", "grain", "matplotlib.figure", "matplotlib.backends.backend_agg", "orbax.checkpoint",
  "tensorboardX",
  "sklearn.datasets", "research.report.page", "research.report.pictures", "research.report.film",
  "tensorboard.backend.event_processing.event_accumulator",
)  # fmt: skip
KILLS = 4  # of one run at most
SECONDS = 120  # for a life


def keep_compiled_programs():
  """As a command does where there is one device: of the eight here a life uses one."""
  import jax

  home = os.environ.get("XDG_CACHE_HOME") or Path(tempfile.gettempdir()) / "flagship-tests-cache"
  jax.config.update("jax_compilation_cache_dir", str(Path(home) / "flagship" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def log_examples(workdir):
  """From now on every batch that the loop takes from Grain leaves its examples' ids in examples.jsonl."""
  import numpy as np

  from research.data import feeds

  inputs = feeds.GrainFeed.inputs

  def logged(feed, step):
    batch = inputs(feed, step)
    if isinstance(feed.plan, feeds.Shuffled):
      line = json.dumps({"step": step, "ids": np.asarray(batch["index"]).tolist()})
      with open(Path(workdir) / "examples.jsonl", "a") as file:
        file.write(line + "\n")
    return batch

  feeds.GrainFeed.inputs = logged


def examples(workdir):
  """{step: ids}; the same ids each time a step was made."""
  found = {}
  path = Path(workdir, "examples.jsonl")
  for line in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):  # one that a death has cut off
      content = json.loads(line)
      assert found.setdefault(content["step"], content["ids"]) == content["ids"], f"step {content['step']} had others"
  return found


def live(name, line, workdir, arm=lambda: None):
  """One life in a process of its own: (how it ended as subprocess has it, what it said)."""
  told = Path(f"{workdir}.log")
  child = os.fork()
  if child == 0:
    code = 1
    try:
      with open(told, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        from experiments import command
        from tests.experiments.definitions import EXPERIMENTS

        keep_compiled_programs()
        log_examples(workdir)
        arm()
        definition = next(each for each in EXPERIMENTS if each.name == name)
        code = command.main(definition, [*line, f"--workdir={workdir}"])
    except BaseException:
      traceback.print_exc()
    finally:
      for stream in (sys.stdout, sys.stderr):
        stream.flush()
      os._exit(code)
  deadline = time.monotonic() + SECONDS
  while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
    if time.monotonic() > deadline:
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
      return 124, told.read_text()
    time.sleep(0.01)
  return os.waitstatus_to_exitcode(ended[1]), told.read_text()


def digests(workdir):
  """`runs.digests` and the ids of examples, found by a process that may ask for devices."""
  path = Path(f"{workdir}.digests")
  child = os.fork()
  if child == 0:
    try:
      found = {**runs.digests(workdir), "examples": sorted(examples(workdir).items())}
      path.write_text(json.dumps(found))
      os._exit(0)
    except BaseException:
      traceback.print_exc()
      os._exit(1)
  if os.waitpid(child, 0)[1]:
    return None
  return json.loads(path.read_text())


def campaign(name, kills, seed, say=lambda line: None):
  """{"kills", "runs", "survived", "moments", "lost": what went wrong} of one family."""
  rng = random.Random(f"{seed} {name}")
  outcome = {"kills": 0, "runs": 0, "survived": 0, "moments": Counter(), "lost": []}
  with tempfile.TemporaryDirectory(prefix="faults-") as folder:
    folder = Path(folder)
    families.pictures(folder / "pictures")
    line = families.arguments(name, folder)
    code, told = live(name, line, folder / "whole")
    whole = digests(folder / "whole") if code == 0 else None
    if whole is None:
      outcome["lost"].append(f"the untouched run ended with {code}: {told[-2000:]}")
      return outcome
    while outcome["kills"] < kills and len(outcome["lost"]) < 3 and outcome["runs"] < 3 * kills:
      outcome["runs"] += 1
      workdir = folder / f"run{outcome['runs']}"
      shutil.rmtree(folder / "cache", ignore_errors=True)
      died, code = [], None
      for _ in range(min(KILLS, kills - outcome["kills"])):
        moment, count = rng.choice(list(moments.MOMENTS)), rng.randint(1, 2)
        own = random.Random(rng.random())
        code, told = live(name, line, workdir, lambda m=moment, c=count, own=own: moments.MOMENTS[m](c, own))
        if code != -signal.SIGKILL:
          break
        died.append(moment)
      if code == -signal.SIGKILL:
        code, told = live(name, line, workdir)
      outcome["kills"] += len(died)
      outcome["moments"].update(died)
      found = digests(workdir) if code == 0 else None
      if found == whole:
        outcome["survived"] += len(died)
      else:
        wrong = f"exit code {code}: {told[-1500:]}" if found is None else differing(found, whole)
        outcome["lost"].append(f"killed at {', '.join(died) or 'no moment'}: {wrong}")
      say(f"{name}: killed at {', '.join(died) or 'no moment'}: {'the same' if found == whole else 'LOST'}")
      shutil.rmtree(workdir, ignore_errors=True)
  return outcome


def differing(found, whole):
  return ", ".join(each for each in whole if found.get(each) != whole[each])


def elsewhere(name, kills, seed):
  """The same in a process of its own."""
  command = [sys.executable, "-m", "tests.faults.campaign", f"--families={name}", f"--kills={kills}", f"--seed={seed}"]
  done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
  return json.loads(done.stdout.splitlines()[-1])[name]


def table(outcomes):
  """Markdown: a line a family."""
  lines = ["| family | kills | survived | lost | died in |", "| --- | --- | --- | --- | --- |"]
  for name, each in outcomes.items():
    died = ", ".join(f"{moment} {count}" for moment, count in sorted(each["moments"].items()))
    lines.append(f"| {name} | {each['kills']} | {each['survived']} | {each['kills'] - each['survived']} | {died} |")
  total = [sum(each[what] for each in outcomes.values()) for what in ("kills", "survived")]
  lines.append(f"| all | {total[0]} | {total[1]} | {total[0] - total[1]} | |")
  return "\n".join(lines) + "\n"


def main():
  known = [each.name for each in families.EXPERIMENTS]
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--families", default=",".join(known))
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument("--report")
  parser.add_argument("--json", action="store_true")
  options = parser.parse_args()
  for module in NEEDED:
    importlib.import_module(module)
  names = options.families.split(",")
  if options.jobs > 1:
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      outcomes = dict(zip(names, pool.map(lambda n: elsewhere(n, options.kills, options.seed), names), strict=True))
  else:
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    outcomes = {name: campaign(name, options.kills, options.seed, say) for name in names}
  for name, outcome in outcomes.items():
    for lost in outcome["lost"]:
      print(f"{name}: {lost}", file=sys.stderr, flush=True)
  print(json.dumps(outcomes) if options.json else table(outcomes))
  if options.report:
    title = f"# Runs that were killed\n\n```sh\npython -m tests.faults.campaign --kills={options.kills}"
    more = f" --seed={options.seed}" if options.seed else ""
    Path(options.report).write_text(f"{title}{more} --jobs={options.jobs}\n```\n\n{table(outcomes)}")
  return int(any(each["lost"] or each["kills"] < options.kills for each in outcomes.values()))


if __name__ == "__main__":
  sys.exit(main())
