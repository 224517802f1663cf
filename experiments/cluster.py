"""What a run of several processes needs besides a run of one: that all do the same, and that only the first writes.

Each of these is what its arguments say where there is one process.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import flags, run_directory
from experiments.schema import Experiment
from research import provenance
from research.errors import UserError
from research.parallel import agreement, processes
from research.report import Report
from research.report.silent import Silent

OWN = ("data.dir", "data.cache_dir")  # a host may keep its data elsewhere: what counts is that they are the same
ALONE = {"sample": "writes what one device makes", "export": "writes one file"}
SEEN_SECONDS = 30  # for a file that process 0 has made to be seen by all, over a network


def check_request(request: Any) -> None:
  """Raises UserError in every process where one has other flags, code or libraries than process 0, by their names."""
  if not processes.joined():
    return
  if request.word in ALONE:
    raise UserError(f"{request.word}: it {ALONE[request.word]}; start it once, not in {processes.count()} processes")
  found = provenance.code()
  git = found["git"] or {"commit": None, "dirty": None}
  facts = {f"--{name}": flags.write_value(value) for name, value in flags.values(request.config).items()}
  facts = {name: value for name, value in facts.items() if name[2:] not in OWN}
  facts |= {"--workdir": str(request.workdir.absolute()), "the word": request.word}
  facts |= {f"git {name}": str(value)[:12] for name, value in git.items()}
  facts |= found["versions"]
  facts[processes.COUNT] = str(processes.count())
  agreement.same(facts, "start all with the same command and the same code")


def check_data(splits: Any) -> None:
  """Raises UserError in every process where one has read other data than process 0."""
  facts = {"the data's fingerprint": splits.fingerprint[:16], **splits.about}
  agreement.same(facts, "give all the same data (--data.dir may differ)")


@contextlib.contextmanager
def owned(workdir: Path, name: str, config: Experiment, allowed: Sequence[str] = ()) -> Iterator[None]:
  """`run_directory.owned` by process 0, for all. Raises UserError also where another process does not see it."""
  with contextlib.ExitStack() as stack:
    agreement.by_first(lambda: stack.enter_context(run_directory.owned(workdir, name, config, allowed)))
    if processes.joined():
      agreement.together(lambda: _wait_for(workdir / "lock"))
    yield


def reporter(*, workdir: Path, **arguments: Any) -> Report | Silent:
  """Process 0's report, which the others only pretend to have. Raises UserError in all where it cannot be opened."""
  opened: list[Report] = []
  agreement.by_first(lambda: opened.append(Report(workdir, **arguments)))
  return opened[0] if opened else Silent()


def _wait_for(path: Path) -> None:
  deadline = time.monotonic() + SEEN_SECONDS
  while not path.exists():
    if time.monotonic() > deadline:
      raise UserError(f"run: {path} of process 0 is not here; --workdir has to be on a file system that all share")
    time.sleep(0.1)
