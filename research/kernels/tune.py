"""Measures the parameters of an operation's forms on this machine's device, and writes them into its tuned.json.

  python -m research.kernels.tune                    what can be tuned
  python -m research.kernels.tune attention          every form of it that runs here
  python -m research.kernels.tune attention --form=chunked --rounds=20

Candidates take turns, so that each meets the same moments of a shared machine; the least median wins, and only if it is
more than 3 % below the default's. A candidate that does not compile or run is told and left out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version

import jax

import research.kernels  # noqa: F401  every operation names what of it can be tuned
from research.kernels import choice, tuning

WORTH = 0.97  # of the default's time: what is nearer to it is noise


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("op", nargs="?", help="the operation")
  parser.add_argument("--form", help="one of its forms; none: all that run here")
  parser.add_argument("--rounds", type=int, default=10)
  given = parser.parse_args(arguments)
  wanted = [each for (op, form), each in tuning.TUNABLES.items() if op == given.op and given.form in (None, form)]
  if not wanted:
    print("\n".join(f"{op} --form={form}: {', '.join(each.cases)}" for (op, form), each in tuning.TUNABLES.items()))
    if given.op is None:
      return 0
    print(f"tune: nothing of {given.op!r} {given.form or ''} can be tuned", file=sys.stderr)
    return 2
  for tunable in wanted:
    here = choice.platform()
    platforms = {place for op in choice.OPS.values() if op.name.partition(".")[0] == tunable.op
                 for place in (op.forms[tunable.form].platforms if tunable.form in op.forms else ())}
    if platforms and here not in platforms:
      print(f"{tunable.op} as {tunable.form} runs on {' and '.join(sorted(platforms))}; this is {here}")
      continue
    found = {case: best(tunable, case, given.rounds) for case in tunable.cases}
    write(tunable, {case: parameters for case, parameters in found.items() if parameters is not None})
  return 0


def best(tunable: tuning.Tunable, case: str, rounds: int) -> tuning.Parameters | None:
  """The fastest parameters of a case, or None where none ran. Prints a line for each."""
  run, arrays = tunable.cases[case]()
  programs: dict[str, tuple[tuning.Parameters, jax.stages.Compiled]] = {}
  for candidate in ({}, *tunable.candidates):
    parameters = {**tunable.default, **candidate}
    name = json.dumps(parameters)
    if name in programs:
      continue
    try:
      with tuning.trying(tunable.op, tunable.form, parameters), choice.use(**{tunable.op: tunable.form}):
        # A function of its own for each candidate: a jitted one is remembered, and would keep the first's.
        program = jax.jit(lambda *given: run(*given)).lower(*arrays).compile()
      jax.block_until_ready(program(*arrays))
    except Exception as error:  # whatever a compiler says of block sizes that it cannot do
      print(f"{case}: {name}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}")
      continue
    programs[name] = parameters, program
  if not programs:
    return None
  took = {name: [] for name in programs}
  for number in range(rounds):
    for name in list(programs) if number % 2 else list(programs)[::-1]:
      began = time.perf_counter()
      jax.block_until_ready(programs[name][1](*arrays))
      took[name].append(time.perf_counter() - began)
  median = {name: statistics.median(each) for name, each in took.items()}
  default, fastest = json.dumps(dict(tunable.default)), min(median, key=median.get)
  chosen = fastest if default not in median or median[fastest] < WORTH * median[default] else default
  for name, seconds in sorted(median.items(), key=lambda item: item[1]):
    print(f"{case}: {name}: {1000 * seconds:.3g} ms{' ←' if name == chosen else ''}")
  return programs[chosen][0]


def write(tunable: tuning.Tunable, found: Mapping[str, tuning.Parameters]) -> None:
  """Puts what was found into the operation's tuned.json, for this kind of device and version of jax."""
  whole = json.loads(json.dumps(tuning.tuned(tunable.op)))
  by_version = whole.setdefault(tunable.form, {}).setdefault(tuning.this_kind(), {})
  by_version.setdefault(version("jax"), {}).update(found)
  path = tuning.path(tunable.op)
  path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
  tuning.tuned.cache_clear()
  print(f"written to {path}")


if __name__ == "__main__":
  sys.exit(main())
