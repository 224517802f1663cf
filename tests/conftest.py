"""Strict settings for every test: eight virtual devices, and silent rank or dtype promotion is an error."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before jax is imported anywhere: its flags are read once. Subprocesses inherit all of it.
_DEVICES = 8
_FLAGS = [
  f"--xla_force_host_platform_device_count={_DEVICES}",
  # Tests compile thousands of small programs and run each a few times: this halves their time. The README's commands,
  # which `make smoke` runs, are compiled as a user's are.
  "--xla_backend_optimization_level=0",
]
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # a fifth of the time to compile; unknown to later ones
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = str(4 * _DEVICES)  # as research.parallel.threads has it
# Tests neither read nor fill a user's cache; compiled programs are kept between test runs.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "flagship-tests-cache")
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402

gc.set_threshold(10_000)  # tracing makes many objects and hardly any garbage

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["XDG_CACHE_HOME"]) / "flagship" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_compile_or_find = compiler.compile_or_get_cached


def _compile(backend, computation, devices, options, callbacks, executable_devices, *more):
  """Programs of several devices are compiled anew: their devices wait for each other for ever in one from the cache."""
  if devices.size > 1:
    return compiler.backend_compile_and_load(backend, computation, executable_devices, options, callbacks)
  return _compile_or_find(backend, computation, devices, options, callbacks, executable_devices, *more)


compiler.compile_or_get_cached = _compile


def pytest_sessionstart(session):
  del session
  if jax.device_count() != _DEVICES:
    raise pytest.UsageError(f"tests need exactly {_DEVICES} virtual devices, found {jax.device_count()}")


@pytest.fixture(autouse=True, scope="module")
def _garbage():
  """What a module leaves in JAX's caches is not searched for garbage again: that took a tenth of all tests' time."""
  yield
  gc.collect()
  gc.freeze()


@pytest.fixture
def mesh():
  """All devices on the data axis."""
  from research.parallel.mesh import make_mesh

  return make_mesh("")


@pytest.fixture
def in_directory(tmp_path, monkeypatch):
  """An empty current directory, where a command's runs/ may grow."""
  monkeypatch.chdir(tmp_path)
  return tmp_path
