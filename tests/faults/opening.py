"""Opens what a user opens, good and evil, with an ear on the interpreter; started by the test beside it.

Whatever would run code, start a process or open a connection while something is being read is printed and ends this
process. Usage: opening.py FOLDER, which `evil.make` has filled.
"""

import os
import resource
import sys
from pathlib import Path

OWN = (str(Path(__file__).resolve().parents[2]), sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))
FORBIDDEN = (
  "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
  "socket.bind", "socket.getaddrinfo", "urllib.Request", "code.__new__", "ctypes.dlopen",
)  # fmt: skip
listening = False


def importing():
  """Whether a module of a library is being imported, which makes classes by exec; what is imported is heard too."""
  frame = sys._getframe()
  while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
    frame = frame.f_back
  return frame is not None


def hear(event, arguments):
  if not listening:
    return
  told = None
  if event in FORBIDDEN:
    told = f"{event} {arguments!r}"
  elif event == "exec" and not (arguments[0].co_filename.startswith((*OWN, "<frozen")) or importing()):
    told = f"exec of {arguments[0]!r}"
  elif event == "import" and arguments[0].startswith("evil"):
    told = f"import of {arguments[0]}"
  if told:
    os.write(1, f"HEARD {told}\n".encode())
    os._exit(3)


sys.addaudithook(hear)


def attempts(folder):
  """(what it is, how a command opens it), the good ones of a kind first: they import what that kind needs."""
  from experiments import flags
  from experiments.gpt.__main__ import EXPERIMENT as GPT
  from experiments.mlp.__main__ import EXPERIMENT as MLP
  from research import manifest
  from research.checkpoint import Checkpoints
  from research.data import cache, tokenizers
  from research.data.splits import open_splits
  from research.interchange import files
  from research.report import run_directory

  def checkpoint(path):
    checkpoints = Checkpoints(path, read_only=True, say=lambda line: None)
    checkpoints.is_whole(1)
    try:
      checkpoints.arrays(1, ("params", "opt_state", "extra", "step"))
    finally:
      checkpoints.close()

  def data(path):
    kind = {".npz": "npz", ".csv": "csv"}.get(path.suffix, "folder")
    open_splits(f"{kind}:{path}", cache_dir=str(folder / "cache"))

  def tensors(path):
    files.read_config(path)
    with files.open_tensors(path) as found:
      [found.get(name) for name in found.shapes]

  openers = {
    "checkpoint": checkpoint,
    "data": data,
    "flags": lambda path: flags.parse(MLP.schema, flags.read_lines(path)),
    "hf": tensors,
    "run": run_directory.open_run,
    "tokenizer": lambda path: tokenizers.load(path),
  }
  del cache, manifest, GPT
  for kind, opener in openers.items():
    for path in sorted((folder / kind).iterdir(), key=lambda path: (not path.name.startswith("good"), path.name)):
      yield f"{kind}/{path.name}", lambda opener=opener, path=path: opener(path)


def main(folder):
  global listening
  from research.errors import UserError

  for name, opened in attempts(folder):
    listening = "good" not in name
    try:
      opened()
      outcome = "read"
    except UserError as error:
      outcome = f"refused: {' '.join(str(error).splitlines())}"
    finally:
      listening = False
    print(f"{name}\t{outcome}", flush=True)


if __name__ == "__main__":
  resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))  # what claims more than there is fails
  main(Path(sys.argv[1]))
