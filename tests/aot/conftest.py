"""Compilation for TPUs and GPUs that are not here: `make test-aot` installs what it needs."""

import os

# research.aot.ENVIRONMENT, before jax is imported.
os.environ |= {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True, scope="package")
def _other_compilers():
  """They end the process at a flag that they do not know, and what they compiled for others' devices is not read back
  from a cache."""
  flags = os.environ["XLA_FLAGS"]  # of the tests' own devices, which have read it
  os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags.split() if not flag.startswith("--xla_cpu"))
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # that there is one is remembered
  yield
  os.environ["XLA_FLAGS"] = flags
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
