"""Heavy libraries come in where they are first used, and imports run one way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("tensorflow", "matplotlib", "tensorflow_datasets", "grain", "PIL", "sklearn", "tensorboardX", "torch")


@pytest.mark.parametrize("module", ["experiments.cnn.__main__", "experiments.work", "research.report"])
def test_importing_loads_nothing_heavy(module):
  code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_a_machine_without_the_optional_libraries_trains_from_arrays(tmp_path):
  """Blocks their import and trains from an npz file, on the device."""
  code = (
    "import sys, numpy as np\n"
    f"for name in {HEAVY!r}: sys.modules[name] = None\n"
    "rng = np.random.default_rng(0)\n"
    "np.savez('d.npz', features=rng.standard_normal((64, 3)), label=rng.integers(0, 2, 64))\n"
    "from experiments import command\n"
    "from experiments.mlp.__main__ import EXPERIMENT\n"
    "sys.exit(command.main(EXPERIMENT, ['--data.source=npz:d.npz', '--run.steps=3', '--data.batch_size=8']))\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
  assert done.returncode == 0, done.stderr
  assert "test/accuracy" in done.stdout


def imports(path):
  """Modules that a file imports anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def test_imports_run_one_way():
  for path in (ROOT / "research").rglob("*.py"):
    found = set(imports(path))
    assert not {name for name in found if name.split(".")[0] in ("experiments", "launch", "tests")}, path
    if path.parent.name == "models":
      ours = {name for name in found if name.startswith("research.") and not name.startswith("research.models")}
      assert {name.split(".")[1] for name in ours} <= {"errors", "kernels", "parallel"}, path
  loop = {name for name in imports(ROOT / "research" / "loop.py") if name.startswith("research.")}
  assert not {name for name in loop if name.startswith(("research.models", "research.losses", "research.supervised"))}


def test_no_loading_path_knows_pickle():
  for path in [*(ROOT / "research").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(imports(path)), path
    assert "allow_pickle=True" not in path.read_text()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_among_the_imports_is_no_traceback_and_asks_to_be_run_again(tmp_path, name):
  (tmp_path / "jax.py").write_text(f"import signal\nsignal.raise_signal(signal.{name})\n")
  command = [sys.executable, "-m", "experiments.mlp", "--config=iris"]
  environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.stderr == "stopped\n"
  assert done.returncode == 75
