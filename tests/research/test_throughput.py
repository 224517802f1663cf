"""Speeds against hand counts, and memory against memory that was taken."""

import mmap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import throughput
from research.models.mlp import MLP
from research.supervised import supervised


def test_an_mlps_share_of_the_peak_is_the_hand_count():
  task = supervised(MLP(10, (512,)), optax.sgd(0.1), loss="softmax")
  batch = {
    "image": jax.ShapeDtypeStruct((128, 28, 28, 1), jnp.float32), "label": jax.ShapeDtypeStruct((128,), jnp.int32)
  }  # fmt: skip
  update = throughput.Update(examples=128, devices=4, flops=task.flops(batch), peak=1e12)
  found = update.speeds(updates=100, seconds=2.0)
  # Three products for each of two layers, two FLOPs for each of their multiply-adds, fifty times a second.
  each_device = 50 * 3 * 2 * 128 * (784 * 512 + 512 * 10) / 4
  assert found == {
    "train/examples_per_second": 6400.0,
    "train/examples_per_second_per_device": 1600.0,
    "train/mfu": pytest.approx(each_device / 1e12),
  }


def test_text_counts_tokens_too_and_what_is_not_known_is_left_out():
  found = throughput.Update(examples=16, devices=2, tokens=16 * 64, flops=1e9).speeds(5, 0.5)
  assert found == {
    "train/examples_per_second": 160.0,
    "train/tokens_per_second": 160.0 * 64,
    "train/examples_per_second_per_device": 80.0,
    "train/tokens_per_second_per_device": 80.0 * 64,
  }


def test_every_number_is_known_as_one_of_these_and_no_other_is():
  names = {*throughput.Update(1, 1, 1, 1.0, 1.0).speeds(1, 1.0), *throughput.memory()}
  assert all(throughput.is_one(name) and throughput.is_one(name.removeprefix("train/")) for name in names)
  assert not any(throughput.is_one(name) for name in ("train/loss", "test/accuracy", "train/learning_rate"))


def test_a_cpus_memory_is_that_of_the_process():
  before = throughput.memory()
  assert set(before) == {"train/host_memory_bytes", "train/host_memory_peak_bytes"}
  with mmap.mmap(-1, 2**27) as pages:  # of its own: a list or array may lie in what the process has kept
    np.frombuffer(pages, np.uint8)[:] = 1
    after = throughput.memory()
  assert after["train/host_memory_bytes"] - before["train/host_memory_bytes"] > 0.9 * 2**27
  assert after["train/host_memory_peak_bytes"] >= after["train/host_memory_bytes"]
  assert throughput.peak_memory() == throughput.memory()["train/host_memory_peak_bytes"]


def test_memory_is_the_fullest_devices_where_devices_tell(monkeypatch):
  class Device:
    def __init__(self, **stats):
      self.memory_stats = lambda: stats or None

  devices = [Device(bytes_in_use=5, peak_bytes_in_use=6), Device(bytes_in_use=1, peak_bytes_in_use=9), Device()]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert throughput.memory() == {"train/device_memory_bytes": 1.0, "train/device_memory_peak_bytes": 9.0}
