"""Traces as TPUs and GPUs write them, made by hand, and one of this CPU."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from research.profiling import trace


def plane(name, lines):
  """A plane's text: {line: [(event, start ns, duration ns, {stat: value}), …]}."""
  events = [event for line in lines.values() for event in line]
  names = {each: place for place, each in enumerate(dict.fromkeys(event[0] for event in events), 1)}
  stats = {each: place for place, each in enumerate(dict.fromkeys(stat for event in events for stat in event[3]), 1)}
  text = f'name: "{name}"'
  for each, place in names.items():
    text += f' event_metadata {{ key: {place} value {{ id: {place} name: "{each}" }} }}'
  for each, place in stats.items():
    text += f' stat_metadata {{ key: {place} value {{ id: {place} name: "{each}" }} }}'
  for line, held in lines.items():
    text += f' lines {{ name: "{line}"'
    for event, start, duration, told in held:
      text += f" events {{ metadata_id: {names[event]} offset_ps: {1000 * start} duration_ps: {1000 * duration}"
      for stat, value in told.items():
        kind = f'str_value: "{value}"' if isinstance(value, str) else f"int64_value: {value}"
        text += f" stats {{ metadata_id: {stats[stat]} {kind} }}"
      text += " }"
    text += " }"
  return f"planes {{ {text} }}"


def read(tmp_path, *planes):
  path = tmp_path / "made.xplane.pb"
  path.write_bytes(ProfileData.text_proto_to_serialized_xspace("\n".join(planes)))
  return trace.read(path)


def test_a_tpus_loop_holds_its_body_and_steps_and_modules_are_no_operations(tmp_path):
  lines = {
    "Steps": [("0", 0, 1000, {})],
    "XLA Modules": [("jit_update", 0, 1000, {})],
    "XLA Ops": [
      ("%while.1 = (f32[]) while(%p)", 100, 500, {}),
      ("%fusion.2 = f32[8] fusion(%x)", 110, 200, {}),
      ("%fusion.2 = f32[8] fusion(%x)", 320, 200, {}),
      ("%copy.3 = f32[8] copy(%y)", 800, 100, {}),
    ],
  }
  found = read(tmp_path, plane("/device:TPU:0", lines), plane("/host:CPU", {"python": [("train", 0, 5000, {})]}))
  assert (found.seconds, found.devices) == (pytest.approx(800e-9), 1)
  assert found.outside == pytest.approx(200 / 800)
  assert [each.instruction for each in found.operations] == ["fusion.2", "while.1", "copy.3"]
  assert [each.count for each in found.operations] == [2, 1, 1]
  assert [each.seconds for each in found.operations] == pytest.approx([400e-9, 100e-9, 100e-9])
  assert [each.share for each in found.operations] == pytest.approx([4 / 6, 1 / 6, 1 / 6])


def test_a_gpus_streams_overlap_and_devices_are_averaged(tmp_path):
  product = {"hlo_op": "gemm.1", "hlo_module": "jit_update"}
  busy = {
    "Stream #7(Compute)": [("sm90_gemm", 0, 100, product), ("sm90_gemm", 300, 100, product)],
    "Stream #8(Collective)": [("ncclAllReduce", 50, 100, {})],
  }
  idle = {"Stream #7(Compute)": [("sm90_gemm", 0, 100, product)]}
  found = read(tmp_path, plane("/device:GPU:0", busy), plane("/device:GPU:1", idle))
  assert found.devices == 2
  assert found.outside == pytest.approx((150 / 400 + 300 / 400) / 2)
  assert [(each.program, each.instruction) for each in found.operations] == [
    ("jit_update", "gemm.1"), ("", "ncclAllReduce"),
  ]  # fmt: skip
  assert [each.count for each in found.operations] == [1.5, 0.5]
  assert found.operations[0].seconds == pytest.approx(150e-9)


def test_a_cpus_devices_are_told_apart_and_waits_for_threads_are_work(tmp_path):
  def facts(device):
    return {"hlo_op": "dot.1", "hlo_module": "jit_update", "device_ordinal": device}

  wait = "ThunkExecutor::Execute (wait for completion)"
  lines = {
    "tf_XLAEigen/1": [("ThreadpoolListener::StartRegion", 0, 0, {}), ("dot.1", 0, 50, facts(0)), (wait, 50, 50, {})],
    "tf_XLAEigen/2": [("dot.1", 100, 50, facts(1)), ("end: dot.1", 150, 0, {}), (wait, 300, 100, facts(0))],
    "python": [("PjitFunction(update)", 0, 1000, {})],
  }
  found = read(tmp_path, plane("/host:CPU", lines))
  assert found.devices == 2
  assert found.seconds == pytest.approx(400e-9)
  assert found.outside == pytest.approx((200 / 400 + 350 / 400) / 2)
  assert [(each.instruction, each.count) for each in found.operations] == [("dot.1", 1)]


def test_what_lies_in_a_pause_counts_for_nothing(tmp_path):
  lines = {"XLA Ops": [("%a = f", 0, 100, {}), ("%evaluation = f", 200, 500, {}), ("%a = f", 900, 100, {})]}
  host = {"python": [(trace.PAUSE, 150, 700, {})]}
  found = read(tmp_path, plane("/device:TPU:0", lines), plane("/host:CPU", host))
  assert [each.instruction for each in found.operations] == ["a"]
  assert found.seconds == pytest.approx(300e-9)
  assert found.outside == pytest.approx(100 / 300)


def test_a_trace_without_operations_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no operation"):
    read(tmp_path, plane("/host:CPU", {"python": [("train", 0, 10, {})]}))


def of_a_product(tmp_path, rest):
  """The summary of six products of this machine's first device, `rest` seconds between them."""
  multiply = jax.jit(lambda x, w: jnp.tanh(x @ w))
  x = jnp.ones((1024, 1024))  # large enough that tanh, compiled with the least effort, takes less
  jax.block_until_ready(multiply(x, x))
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  jax.profiler.start_trace(tmp_path, profiler_options=options)
  for _ in range(6):
    time.sleep(rest)
    jax.block_until_ready(multiply(x, x))
  jax.profiler.stop_trace()
  (path,) = tmp_path.rglob("*.xplane.pb")
  return trace.read(path)


def test_this_cpus_costliest_operation_is_the_product_and_it_waits_for_a_slow_host(tmp_path):
  quick, slow = of_a_product(tmp_path / "quick", 0.0), of_a_product(tmp_path / "slow", 0.05)
  for found in (quick, slow):
    assert found.devices == 1
    assert "dot" in found.operations[0].instruction or "ynn" in found.operations[0].instruction
    assert found.operations[0].count == 6
    assert sum(each.share for each in found.operations) == pytest.approx(1)
    assert 0 <= found.outside <= 1
  assert slow.seconds - slow.seconds * (1 - slow.outside) >= 5 * 0.05
  assert quick.outside < slow.outside
