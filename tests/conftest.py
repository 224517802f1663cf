"""Strict settings for every test: eight virtual devices, and silent rank or dtype promotion is an error."""

import os
import tempfile
from pathlib import Path

# Before jax is imported anywhere: the device count is read once. Subprocesses inherit all of it.
_DEVICES = 8
_FLAG = f"--xla_force_host_platform_device_count={_DEVICES}"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests neither read nor fill a user's cache; compiled programs are kept between test runs.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "flagship-tests-cache")
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["XDG_CACHE_HOME"]) / "flagship" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_sessionstart(session):
  del session
  if jax.device_count() != _DEVICES:
    raise pytest.UsageError(f"tests need exactly {_DEVICES} virtual devices, found {jax.device_count()}")


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
