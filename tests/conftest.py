"""Strict settings for every test: eight virtual devices, and silent rank or dtype promotion is an error."""

import os

# Before jax is imported anywhere: the device count is read once.
_DEVICES = 8
_FLAG = f"--xla_force_host_platform_device_count={_DEVICES}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_sessionstart(session):
  del session
  if jax.device_count() != _DEVICES:
    raise pytest.UsageError(f"tests need exactly {_DEVICES} virtual devices, found {jax.device_count()}")
