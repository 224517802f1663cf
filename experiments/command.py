"""The command line that every experiment shares: --config, --help, --list, and the words train, eval, sample, export
and preflight.
"""

import contextlib
import dataclasses
import difflib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments import flags, manual, run_directory
from experiments import interchange as exchange
from experiments import origin as origins
from experiments.sample import Sampling
from experiments.schema import Asking, Experiment, Resuming
from research.errors import UserError
from research.goodput import process_age
from research.parallel import agreement, processes
from research.parallel.shards import round_twice
from research.parallel.threads import make_room
from research.streams import say_what_can_be_said

WORDS = ("train", "eval", "sample", "export", "preflight")
HELP = ("-h", "--help", "-help")
STOPPED = 75
FILES = ("csv", "npz", "idx", "folder", "text", "jsonl")  # sources that are a path


@dataclasses.dataclass(frozen=True)
class Definition:
  """An experiment: what is in its folder.

  Attributes:
    name: the folder's name, as in `python -m experiments.NAME`.
    about: the module's docstring; its first line stands above --help.
    schema: the dataclass of its flags.
    build: (config, splits, total_steps) → Task.
    directory: the folder, with the presets.
    judge: (job, workdir, say) → the task's `judge` with an attribute `about` for run.json, or None: what it takes to
      open other runs that a task is scored by. Only training and evaluation ask for it.
    open_data: (config, say, workdir or None) → splits, where they are not what `inputs.open_data` makes of the data
      flags. The run's directory may hold what an earlier start has kept.
    open_kept: (config, workdir) → splits of the same shapes, or None: what the word sample needs of the data, from
      what the run has kept. Their `about` is compared with run.json's.
    heads: names of modules that belong to a task and not to what --init_from carries over from another.
    samples: what the word sample gives, in half a line for --help; "": the experiment makes no samples.
    sampling: the dataclass of the word sample's own flags.
    generate: (job, state, request) → exit code: what the word sample does, where it is not to write `task.sample`'s
      pictures into files.
    interchange: the Hugging Face layouts that --init_from=hf:DIR reads and the word export writes.
  """

  name: str
  about: str
  schema: type[Experiment]
  build: Callable[[Any, Any, int], Any]
  directory: Path
  judge: Callable[[Any, Path, Callable[[str], None]], Any] | None = None
  open_data: Callable[[Any, Callable[[str], None], Path | None], Any] | None = None
  open_kept: Callable[[Any, Path], Any] | None = None
  heads: tuple[str, ...] = ("head",)
  samples: str = ""
  sampling: type[Sampling] = Sampling
  generate: Callable[[Any, Any, "Request"], int] | None = None
  interchange: exchange.Interchange | None = None


@dataclasses.dataclass(frozen=True)
class Request:
  """A parsed command line."""

  word: str
  config: Experiment
  workdir: Path
  line: tuple[str, ...]  # the command as typed, for the record
  sampling: Sampling = dataclasses.field(default_factory=Sampling)  # what the word sample was told
  exporting: exchange.Exporting = dataclasses.field(default_factory=exchange.Exporting)  # and the word export
  asking: Asking = dataclasses.field(default_factory=Asking)  # and the word preflight
  allowed: tuple[str, ...] = ()  # flags that may differ from those that the run was started with
  age: float = 0.0  # seconds that the process had lived when it was read


def main(definition: Definition, arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code (DESIGN: Exit codes). A UserError is one line on stderr and 2.

  Of several processes each returns here, or where the others cannot be reached any more ends with that code.
  """
  code = _main(definition, arguments)
  if arguments is None:  # from here on a signal ends it with what it has come to
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, lambda *_: os._exit(code))
  code = processes.leave(code)
  if arguments is None:
    end(code)
  return code


def end(code: int) -> NoReturn:
  """Ends the process: everything is written by now.

  Python would wait for all threads, and some of Orbax's wait for ever where a save has failed; and it would look for
  garbage among all that jax has made, which takes most of a second.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _main(definition: Definition, arguments: Sequence[str] | None) -> int:
  began, age = time.monotonic(), process_age() if arguments is None else 0.0  # else another run has started this one
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  for stream in ("stdout", "stderr"):  # a daemon may have neither
    if getattr(sys, stream) is None:
      setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115
  say_what_can_be_said(sys.stdout, sys.stderr)
  make_room()
  try:
    if set(HELP) & set(arguments) or arguments[:1] == ["help"]:
      rest, _ = split_off(definition.sampling, [argument for argument in arguments if argument not in (*HELP, "help")])
      rest, _ = split_off(exchange.Exporting, rest)
      rest, _ = split_off(Asking, rest)
      rest, _ = split_off(Resuming, rest)
      print(manual.help_text(definition, expand(definition, rest)[0]))
      return 0
    if "--list" in arguments:
      print(manual.list_text(definition))
      return 0
    processes.join()
    request = agreement.together(lambda: read(definition, arguments))
    request = dataclasses.replace(request, age=age + time.monotonic() - began)
    if request.config.run.deterministic_shards:
      round_twice()
    from experiments import work  # only now: Orbax is not needed to say that a flag is misspelt

    code = work.run(definition, request)
    processes.wait_for_all()
    return code
  except UserError as error:
    processes.failed(error)  # which may itself end this process: another's death can look like a damaged file
    print(" ".join(str(error).split("\n")), *error.table, sep="\n", file=sys.stderr)
    return 2
  except agreement.FailedElsewhere as error:
    print(error, file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    return STOPPED
  except BrokenPipeError:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the reader has left; say nothing at exit
    return 0
  except Exception as error:  # 1 is what Python itself would give; said here so that every code stands in one place
    processes.failed(error)
    traceback.print_exc()
    return 1


def read(definition: Definition, arguments: Sequence[str]) -> Request:
  """Command line → request. Raises UserError for anything that is wrong with it."""
  rest, own = split_off(definition.sampling, arguments)
  rest, places = split_off(exchange.Exporting, rest)
  rest, asked = split_off(Asking, rest)
  sampling, _ = flags.parse(definition.sampling, own)
  exporting, _ = flags.parse(exchange.Exporting, places)
  asking, _ = flags.parse(Asking, asked)
  rest, resuming = split_off(Resuming, rest)
  allowed = flags.parse(Resuming, resuming)[0].names(definition.schema)
  expanded, origin, workdir = expand(definition, rest)
  config, words = flags.parse(definition.schema, expanded)
  word = words[0] if words else "train"
  if word not in WORDS or len(words) > 1:
    wrong = next((each for each in words if each not in WORDS), words[-1])
    near = difflib.get_close_matches(wrong, WORDS, 1)
    hint = f" (did you mean {near[0]}?)" if near else f"; the commands are {', '.join(WORDS)}"
    raise UserError(f"flags: {wrong!r} is no command{hint}")
  if not definition.samples and word == "sample":
    raise UserError(f"sample: experiments.{definition.name} makes no samples; use eval to see how good a run of it is")
  if not definition.samples and own:
    raise UserError(f"flags: {own[0]} is of the command sample, and experiments.{definition.name} makes no samples")
  if own and word != "sample":
    example = f"python -m experiments.{definition.name} sample --config=RUN --count=64"
    raise UserError(f"flags: {own[0]} belongs to the command sample, not to {word}: {example}")
  if places and word != "export":
    example = f"python -m experiments.{definition.name} export --config=RUN {places[0]}"
    raise UserError(f"flags: {places[0]} belongs to the command export, not to {word}: {example}")
  if asked and word != "preflight":
    example = f"python -m experiments.{definition.name} preflight --config=PRESET {asked[0]}"
    raise UserError(f"flags: {asked[0]} belongs to the command preflight, not to {word}: {example}")
  if resuming and word != "train":
    raise UserError(f"flags: --allow_change is for training, not for {word}: a run is read with its own flags")
  if word == "export":
    exchange.check_word(definition, exporting)
  line = ("python", "-m", f"experiments.{definition.name}", *arguments)
  workdir = workdir or default_workdir(definition, config, origin)
  return Request(word, anywhere(config), workdir, line, sampling, exporting, asking, allowed)


def split_off(schema: type, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """(the other arguments, those that are flags of `schema`, each as --name=value)."""
  names = {leaf.name: isinstance(leaf.field.default, bool) for leaf in flags.leaves(schema)}
  rest, own, waiting = [], [], list(arguments)
  while waiting:
    argument = waiting.pop(0)
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or name not in names:
      rest.append(argument)
      continue
    if not equals and names[name]:
      own.append(f"--{name}")
      continue
    if not equals and not waiting:
      raise UserError(f"flags: --{name} needs a value: --{name}=…")
    own.append(f"--{name}={value if equals else waiting.pop(0)}")
  return rest, own


def anywhere(config: Experiment) -> Experiment:
  """The config with its paths made absolute, so that a run can be repeated from any directory."""
  data = config.data
  kind, _, rest = data.source.partition(":")
  path, question, options = rest.partition("?")
  source = f"{kind}:{_absolute(path)}{question}{options}" if kind in FILES and path else data.source
  changed = {"source": source, "dir": _absolute(data.dir), "cache_dir": _absolute(data.cache_dir)}
  pretrained = exchange.directory_of(config.init_from)
  init_from = _absolute(config.init_from) if pretrained is None else f"{exchange.PREFIX}{_absolute(str(pretrained))}"
  config = dataclasses.replace(config, data=dataclasses.replace(data, **changed), init_from=init_from)
  metrics = getattr(config, "metrics", None)  # of experiments that another run judges
  if metrics is not None and os.path.isdir(Path(metrics.features).expanduser()) and metrics.features:
    config = dataclasses.replace(config, metrics=dataclasses.replace(metrics, features=_absolute(metrics.features)))
  return config


def _absolute(path: str) -> str:
  return str(Path(path).expanduser().absolute()) if path else ""


def expand(definition: Definition, arguments: Sequence[str]) -> tuple[list[str], list[str], Path | None]:
  """Replaces --config and --flagfile by the flags they name, and takes --workdir out.

  Returns:
    (arguments, what --config named: its name and the flags read from it, workdir or None). Later flags win, so flags
    after --config override it; they override the --model flags that come with --init_from wherever it stands.
  """
  expanded, origin, workdir = [], [], None
  read, init_from = 0, ""  # how many of `expanded` come from --config and what precedes it
  waiting = list(arguments)
  while waiting:
    argument = waiting.pop(0)
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or name not in ("config", "flagfile", "workdir", "init_from"):
      expanded.append(argument)
      continue
    if not equals:
      if not waiting:
        raise UserError(f"flags: --{name} needs a value: --{name}=…")
      value = waiting.pop(0)
    if not value:
      raise UserError(f"flags: --{name} is empty")
    if name == "workdir":
      workdir = Path(value).expanduser()
    elif name == "init_from":  # typed: a flag file is complete, and its run may be gone
      expanded.append(f"--init_from={value}")
      init_from = value
    elif name == "flagfile":
      expanded += flags.read_lines(Path(value).expanduser())
      read = len(expanded)
    else:
      path = find_config(definition, value)
      if path.name == "run.flags":
        _check_owner(definition, path.parent)
        workdir = workdir or path.parent
      expanded += flags.read_lines(path)
      read = len(expanded)
      origin = [path.parent.name if path.name == "run.flags" else path.stem, *expanded]
  if init_from:  # before all that is typed, wherever --init_from stands among it
    expanded[read:read] = origins.model_flags(definition, init_from)
  return expanded, origin, workdir


def find_config(definition: Definition, value: str) -> Path:
  """--config's flag file: a run directory's, a path's, or the preset's of that name."""
  path = Path(value).expanduser()
  if value in presets(definition):
    return definition.directory / f"{value}.flags"
  with contextlib.suppress(OSError):  # a name too long for a file is no file
    if (path / "run.flags").is_file():
      return path / "run.flags"
    if path.is_dir():
      raise UserError(f"flags: --config={value} is a directory without a run.flags; it is no run")
    if path.exists():
      return path
  names = presets(definition)
  near = difflib.get_close_matches(value, names, 1)
  hint = f" (did you mean {near[0]}?)" if near else ""
  short = value if len(value) < 200 else value[:200] + "…"
  raise UserError(f"flags: no preset, file or run {short!r} for {definition.name}{hint}; presets: {', '.join(names)}")


def _check_owner(definition: Definition, run: Path) -> None:
  owner = run_directory.experiment_of(run)
  if owner not in (None, definition.name):
    raise UserError(
      f"flags: {run} is a run of experiments.{owner}, not of experiments.{definition.name}:"
      f" python -m experiments.{owner} --config={run}"
    )


def presets(definition: Definition) -> list[str]:
  return sorted(path.stem for path in definition.directory.glob("*.flags"))


def default_workdir(definition: Definition, config: Experiment, origin: list[str]) -> Path:
  """runs/EXPERIMENT-PRESET, and the flags that differ from the preset's: a changed line gets a run of its own.

  Without a preset the data's source stands in its place.
  """
  preset, base = config.data.source, definition.schema()
  base = dataclasses.replace(base, data=dataclasses.replace(base.data, source=preset))
  if origin:
    preset, base = origin[0], flags.parse(definition.schema, origin[1:])[0]
  ours, theirs = flags.values(config), flags.values(base)
  names = [leaf.name for leaf in flags.leaves(definition.schema) if leaf.changes_curve]
  changed = [f"{n.rpartition('.')[2]}={_short(flags.write_value(ours[n]))}" for n in names if ours[n] != theirs[n]]
  name = "-".join([definition.name, _short(preset), *changed])
  safe = "".join(char if char.isalnum() or char in "-_.=," else "_" for char in name)
  return Path("runs") / (safe if len(safe) <= 120 else safe[:103] + "-" + _digest(safe))


def _short(value: str) -> str:
  """A path's last part: "csv:/home/me/flowers.csv" → "csv:flowers.csv"; what else differs is refused there."""
  path, question, options = value.partition("?")
  kind, colon, place = path.rpartition(":")
  return f"{kind}{colon}{Path(place).name or place}{question}{options}" if "/" in place else value


def _digest(text: str) -> str:
  import hashlib

  return hashlib.sha256(text.encode()).hexdigest()[:16]
