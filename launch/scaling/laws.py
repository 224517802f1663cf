"""What more parameters, data and compute give: a family is trained, a law fitted, a larger run predicted and then made.

  python -m launch.scaling laws --config=stdlib --sizes=16x1,32x2,64x3 --budgets=1e11,3e11 --held_out=96x4@1e12
  python -m launch.scaling laws --mup --config=stdlib --sizes=32x2,64x2,128x2 --rates=1e-3,2e-3,4e-3

Flags that are not the study's own go to every run, as --optim.learning_rate=…. The same command goes on where it was
stopped, and writes tables and pictures anew.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments import flags
from experiments.command import HELP, split_off
from experiments.manual import flag_lines
from experiments.schema import flag
from launch.experiment import find
from launch.scaling import transfer
from launch.scaling.family import EXAMPLES, Family, Size, numbers_of, sizes_of
from research.errors import UserError
from research.report.atomic import cannot_write


@dataclasses.dataclass(frozen=True)
class Laws:
  """The study's own flags."""

  experiment: str = flag("gpt", "whose runs", choices=("bert", "gpt", "vit"))
  config: str = flag("", "its preset or flag file, for all runs")
  sizes: str = flag("", "the family: WIDTHxDEPTH,…")
  head_width: int = flag(0, "width of a head; wider networks have more heads; 0: all have as many", low=0)
  budgets: str = flag("", "model FLOPs of a run, with commas between them: each size is trained for each")
  least_tokens: float = flag(0.0, "of a run, for each parameter; sizes with fewer are left out of a budget", low=0.0)
  most_tokens: float = flag(0.0, "the same upwards; 0: any number", low=0.0)
  held_out: str = flag("", "WIDTHxDEPTH@FLOPs: a run that is predicted first and made then")
  metric: str = flag("validation/loss", "what a run is told by")
  bootstrap: int = flag(400, "resamplings of the runs behind the intervals", low=20)
  mup: bool = flag(False, "the study of learning rates instead: standard beside maximal update")
  mup_base: int = flag(0, "--mup: the width at which both are one; 0: the first size's", low=0)
  rates: str = flag("", "--mup: learning rates, with commas between them")
  seeds: int = flag(1, "runs of each point", low=1)
  workdir: str = flag("", "where runs and points are kept; empty: runs/laws or runs/mup")
  report: str = flag("", "where tables and pictures go; empty: --workdir")
  retry: bool = flag(False, "run again what failed")

  def check(self) -> None:
    """Raises UserError for what the study cannot be made of."""
    sizes = sizes_of(self.sizes)
    if self.mup and (self.budgets or self.held_out):
      raise UserError("flags: --mup is a study of --rates; --budgets and --held_out belong to the other one")
    if not self.mup and (self.rates or self.mup_base):
      raise UserError(
        "flags: --rates and --mup_base belong to --mup; here --optim.learning_rate and --model.mup_base_width are for"
        " all runs"
      )
    needed = ("config", "sizes", "rates" if self.mup else "budgets")
    if missing := [each for each in needed if not getattr(self, each).strip(", ")]:
      names, example = (" and ".join(f"--{each}{more}" for each, more in pairs) for pairs in (
        [(each, "") for each in missing], [(each, f"={EXAMPLES[each]}") for each in missing]
      ))  # fmt: skip
      raise UserError(f"flags: {names} {'are' if len(missing) > 1 else 'is'} needed, as in {example}")
    if self.mup:
      if len(numbers_of(self.rates, "rates")) < 3:
        raise UserError("flags: --mup needs at least three --rates, as in --rates=1e-3,2e-3,4e-3")
      if len({size.depth for size in sizes}) > 1:
        raise UserError(f"flags: --sizes={self.sizes} are of several depths, and --mup compares widths")
      return
    numbers_of(self.budgets, "budgets")
    self.held_out_run()

  def held_out_run(self) -> tuple[Size, float] | None:
    if not self.held_out:
      return None
    size, _, budget = self.held_out.partition("@")
    with contextlib.suppress(UserError):  # which would tell of a list
      sizes, budgets = sizes_of(size), numbers_of(budget, "budgets")
      if len(sizes) == len(budgets) == 1:
        return sizes[0], budgets[0]
    raise UserError(f"flags: --held_out={self.held_out} is not WIDTHxDEPTH@FLOPs, as in 96x4@1e13")

  def family(self, rest: Sequence[str]) -> Family:
    folder = Path(self.workdir or ("runs/mup" if self.mup else "runs/laws")).expanduser()
    return Family(self.experiment, (f"--config={self.config}", *rest), self.head_width, self.metric, folder)


def main(arguments: Sequence[str]) -> int:
  """Runs the study. Raises UserError for flags that are wrong."""
  if set(HELP) & set(arguments) or not arguments:
    print(help_text())
    return 0
  rest, own = split_off(Laws, arguments)
  study, words = flags.parse(Laws, own)
  if extra := [*words, *(each for each in rest if not each.startswith("-"))]:
    raise UserError(f"flags: {extra[0]!r} is no flag; flags are --name=value")
  check_own(study, rest)
  family = study.family(rest)
  report = Path(study.report).expanduser() if study.report else family.folder
  sizes = sizes_of(study.sizes)
  if study.mup:
    base = study.mup_base or sizes[0].width
    family.check(sizes, (f"--model.mup_base_width={base}",))
    rates = numbers_of(study.rates, "rates")
    _make(report)
    transfer.run(family, sizes, base, rates, study.seeds, report, say=say, retry=study.retry)
    return 0
  from launch.scaling import compute  # scipy and matplotlib

  held_out = study.held_out_run()
  family.check([*sizes, *(held_out or ())[:1]])
  compute.check(family, study, sizes, held_out)
  _make(report)
  return compute.run(family, study, sizes, held_out, report, say=say)


def check_own(study: Laws, rest: Sequence[str]) -> None:
  """Raises UserError for a flag of the runs that the study sets itself, for each of them."""
  own = {"model.width": "--sizes", "model.layers": "--sizes", "seed": "--seeds"}
  if study.head_width:
    own |= dict.fromkeys(("model.heads", "model.head_width"), "--head_width")
  if study.mup:
    own |= {"optim.learning_rate": "--rates", "model.mup_base_width": "--mup_base"}
  else:
    own |= dict.fromkeys(("run.steps", "run.eval_every"), "--budgets")
  for each in flags.typed(find(study.experiment).schema, rest):
    if each in own:
      raise UserError(f"laws: --{each} is each run's own here; {own[each]} says what they have")


def _make(folder: Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise cannot_write(folder, error) from error


def say(line: str) -> None:
  print(line, flush=True)


def help_text() -> str:
  width = min(shutil.get_terminal_size().columns, 120)
  lines = [line for leaf in flags.leaves(Laws) for line in flag_lines(leaf, leaf.field.default, width)]
  return "\n".join([__doc__.strip(), "", *lines])
