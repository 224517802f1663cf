"""A study of devices: which points there are, how one is timed, what efficiency is, and that failures are rows."""

import csv
import json
import sys

import pytest

from experiments.gpt.__main__ import Config as GPTConfig
from experiments.gpt.__main__ import Model as GPTModel
from experiments.mlp.__main__ import Config as MLPConfig
from experiments.mlp.__main__ import Model as MLPModel
from launch.scaling import __main__ as scaling
from launch.scaling import device_plots, device_table, devices, estimates, meshes, point
from research.errors import UserError

GPT = GPTConfig(model=GPTModel(heads=6, kv_heads=2, layers=3))
MLP = MLPConfig(model=MLPModel(widths=(64, 12)))


@pytest.mark.parametrize(
  ("strategy", "devices", "config", "mesh"),
  [
    ("dp", 8, GPT, "data:8"),
    ("fsdp", 8, GPT, "data:8"),
    ("tp", 8, GPT, "data:4,model:2"),  # two heads of keys and values
    ("tp", 8, MLP, "data:2,model:4"),
    ("tp", 3, GPT, "data:3,model:1"),
    ("fsdp_tp", 8, MLP, "data:4,model:2"),
    ("fsdp_tp", 1, MLP, "data:1,model:1"),
    ("pp", 6, GPT, "data:2,stage:3"),
    ("sp", 4, GPT, "data:1,sequence:4"),
    ("ep", 4, GPT, "data:1,expert:4"),  # which has no experts: the point says so
  ],
)
def test_a_strategys_own_axis_has_the_devices_that_divide_what_it_cuts(strategy, devices, config, mesh):
  assert meshes.automatic(strategy, devices, config) == mesh
  assert meshes.size(mesh) == devices


def test_a_topology_is_as_many_chips_as_its_sides_say():
  assert meshes.chips("v5e:16x16") == 256
  assert meshes.chips("v5p:4x4x8") == 128
  for wrong in ("v5e", "v5e:", "v5e:4xx", "16x16"):
    with pytest.raises(UserError, match="is not chip:sides"):
      meshes.chips(wrong)


def test_a_group_is_long_enough_and_never_more_than_two_calls_are_under_way():
  time, under_way, most = 0.0, [], 0

  def call():
    nonlocal time, most
    time += 0.25
    under_way.append(len(under_way))
    most = max(most, sum(each is not None for each in under_way))
    return under_way[-1]

  def wait(each):
    under_way[each] = None

  seconds = list(point.timed(call, 3, 6.0, wait, lambda: time))
  assert seconds == [0.25] * 3
  assert len(under_way) == 2 + 2 + 3 * 8  # 2 s in each group
  assert most == 2
  assert under_way == [None] * len(under_way)


def test_a_cpu_becomes_as_many_devices_as_the_point_has_whatever_was_asked_for(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8 --b=2")
  monkeypatch.setenv("NPROC", "32")
  point.make_devices(2)
  assert point.os.environ["XLA_FLAGS"].split() == ["--a=1", "--b=2", "--xla_force_host_platform_device_count=2"]
  assert point.os.environ["NPROC"] == "8"


def facts(devices, seconds=0.1, sent=0.0, chip="v5e", mfu=0.5):
  return {
    "run": {"tokens": 16 * 128},
    "devices": {"kind": chip},
    "device memory": {"parameters": 8e6 / devices, "optimizer": 2e6, "total": 1e7, "capacity": 1.6e10, "fits": True},
    "FLOPs": {"model": 1e9},
    "collectives": [{"kind": "all-reduce", "sent": sent}, {"kind": "all-gather", "sent": 1.0}],
    "estimate": {
      "seconds": seconds, "bound": "network", "mfu": mfu, "dtype": "float32", "work": {}, "chip": {"name": chip},
    },
    "compiled in seconds": 2.0,
  }


def row(devices, strategy, seconds, mode="strong", kind="measured", ok=True, chip="v5e"):
  about = {"devices": devices, "mesh": f"data:{devices}", "strategy": strategy, "mode": mode,
           "batch": 16 * (devices if mode == "weak" else 1), "kind": kind}  # fmt: skip
  timed = [0.9 * seconds, seconds, 1.2 * seconds] if kind == "measured" else []
  numbers = device_table.numbers(facts(devices, seconds, 1e6, chip), timed, about) if ok else {}
  name = f"{devices}-{strategy}"
  return {"name": name, "ok": ok, "reason": "" if ok else "exit code 2: no", "seconds": 1.0, **about, **numbers}


def test_a_rows_numbers():
  found = row(4, "dp", 0.2)
  assert (found["step_ms"], found["least_ms"], found["greatest_ms"]) == pytest.approx((200, 180, 240))
  assert (found["examples_per_s"], found["tokens_per_s"]) == pytest.approx((16 / 0.2, 16 * 128 / 0.2))
  assert (found["sent_bytes"], found["all-reduce"], found["reduce-scatter"]) == (1e6 + 1, 1e6, 0)
  assert found["mfu"] == pytest.approx(0.5)  # as long as estimated: the share that was estimated
  slower = device_table.numbers(facts(4, 0.1), [0.2], {"batch": 16})
  assert "step_ms" not in device_table.numbers(facts(4, 0.1), [], {"batch": 16})
  assert slower["mfu"] == pytest.approx(0.25)


def test_a_points_rounds_are_one_row():
  first, second = row(2, "dp", 0.2), row(2, "dp", 0.1)
  failed = row(2, "dp", 0.1, ok=False)
  for place, each in enumerate((second, failed), start=2):
    each |= {"again": first["name"], "name": f"{first['name']}-round{place}"}
  (found,) = device_table.in_one([first, second, failed])
  assert found["name"] == first["name"]
  assert (found["least_ms"], found["greatest_ms"], found["groups"]) == pytest.approx((90, 240, 6))
  assert found["step_ms"] == pytest.approx((120 + 180) / 2)  # of 90, 100, 120, 180, 200, 240
  assert found["examples_per_s"] == pytest.approx(16 / 0.15)
  assert found["mfu"] == pytest.approx(0.5 * 0.1 / 0.15)  # by the estimate with the highest peaks
  assert [each["ok"] for each in device_table.in_one([first, failed])] == [True]


def test_points_of_a_cpu_are_estimated_by_the_highest_peaks_of_any():
  """Two devices that were measured while others had the machine: half the peaks, so twice the seconds of each part."""
  one, two = row(1, "dp", 1.0, chip="cpu"), row(2, "dp", 1.0, chip="cpu")
  peaks = {"name": "cpu", "memory": 1.0, "source": "", "shared": True}
  one |= {"peaks": {**peaks, "flops": 9.0, "flops_f32": 100.0, "bandwidth": 10.0, "network": 10.0, "meeting": 0.0},
          "work": {"flops": 80.0, "moved": 5.0, "sent": 0.0, "collectives": 0},
          "estimate_ms": 1300.0, "bound": "compute", "predicted_mfu": 0.8, "mfu": 0.72}  # fmt: skip
  two |= {"peaks": {**peaks, "flops": 9.0, "flops_f32": 25.0, "bandwidth": 4.0, "network": 2.5, "meeting": 0.01},
          "work": {"flops": 40.0, "moved": 3.0, "sent": 5.0, "collectives": 4},
          "estimate_ms": 4390.0, "bound": "network", "predicted_mfu": 0.4, "mfu": 0.68}  # fmt: skip
  there = row(2, "tp", 1.0)
  found = estimates.by_one_machine([one, two, there])
  assert found[2] == there
  assert (found[0]["estimate_ms"], found[0]["mfu"]) == pytest.approx((1300, 0.72))
  assert found[1]["estimate_ms"] == pytest.approx(1000 * (40 / 50 + 3 / 5 + 5 / 5 + 4 * 0.01))
  assert found[1]["bound"] == "network"
  assert found[1]["predicted_mfu"] == pytest.approx(0.4 * 4390 / 2440 / 2)  # less time, of a peak twice as high
  assert found[1]["mfu"] == pytest.approx(0.34)


def test_an_order_is_right_where_the_estimates_have_it_too():
  """Kendall's τ by hand: of six pairs five agree and one does not. Mutation: the estimates the other way round."""
  rows = [
    {"step_ms": step, "least_ms": 0.9 * step, "greatest_ms": 1.1 * step, "estimate_ms": guess}
    for step, guess in ((100, 10), (105, 20), (200, 40), (400, 30))
  ]
  found = estimates.order(rows)
  assert (found["pairs"], found["clear"], found["right"]) == (6, 5, 4)
  assert found["tau"] == pytest.approx((5 - 1) / 6)
  assert "Of 6 pairs of points 5 differ clearly" in estimates.said(found)


def test_efficiency_is_against_the_fewest_devices_of_the_same_strategy_and_kind():
  rows = [
    row(1, "dp", 1.0), row(2, "dp", 0.625), row(4, "tp", 0.25), row(4, "fsdp", 1.0, ok=False),
    row(16, "tp", 0.1, kind="compiled"), row(64, "tp", 0.05, kind="compiled"),
    row(64, "tp", 0.05, kind="compiled", chip="v6e"),
  ]  # fmt: skip
  found = device_table.with_efficiency(rows)
  assert [each.get("efficiency") for each in found] == pytest.approx([1, 0.8, 1, None, 1, 0.5, 1])
  assert [each["kind"] for each in found] == ["measured"] * 3 + ["failed"] + ["compiled"] * 3
  weak = device_table.with_efficiency([row(1, "dp", 1.0, "weak"), row(8, "dp", 1.25, "weak")])
  assert [each["efficiency"] for each in weak] == pytest.approx([1, 0.8])
  assert weak[1]["examples_per_s"] == pytest.approx(8 * 16 / 1.25)


def test_the_pictures_show_the_rows_beside_what_was_promised():
  rows = device_table.with_efficiency([row(1, "dp", 1.0), row(2, "dp", 0.6), row(4, "dp", 0.4), row(4, "tp", 0.5)])
  time, pace, efficiency = device_plots.time_figure(rows).axes
  drawn = {line.get_label(): list(line.get_ydata()) for line in time.lines}
  assert drawn["ideal"] == pytest.approx([1000, 500, 250])
  containers = {each.get_label(): list(each.lines[0].get_ydata()) for each in time.containers}
  assert containers["dp"] == pytest.approx([1000, 600, 400])
  assert containers["tp"] == pytest.approx([1000, 500])
  assert pace.get_title() == "tokens/s"
  assert [text.get_text() for text in efficiency.get_xticklabels()] == ["1", "2", "4"]
  assert all(each.has_yerr for each in time.containers)
  sent, memory, _ = device_plots.cost_figure(rows).axes
  assert memory.get_title() == "memory of a device, MB"
  assert [each.get_label() for each in sent.containers] == ["all-reduce", "all-gather"]
  assert [bar.get_width() for bar in memory.containers[0]] == pytest.approx([8, 4, 2, 2])


FAKE = """#!{python} -S
import json, sys
flags = dict(each[2:].partition("=")[::2] for each in sys.argv[1:] if each.startswith("--"))
assert sys.argv[1:4] == ["-m", "experiments.mlp", "preflight"] and "json" in flags, sys.argv
if flags["parallel.strategy"] == "tp":
  sys.exit("parallel: no")
chips = eval(flags["topology"].partition(":")[2].replace("x", "*"))
facts = json.loads({facts!r})
facts["estimate"]["seconds"] = 0.4 / chips if chips < 100 else 0.002
print("a note\\n" + json.dumps(facts))
"""


def test_points_for_chips_that_are_not_here_are_compiled_and_say_so(in_directory, capsys):
  fake = in_directory / "python"
  fake.write_text(FAKE.format(python=sys.executable, facts=json.dumps(facts(1))))
  fake.chmod(0o755)
  arguments = ["devices", "--experiment=mlp", "--config=digits", "--topology=v5e:4x4,v5e:16x16", "--mode=weak",
               "--strategies=dp,tp", f"--python={fake}", "--workdir=w"]  # fmt: skip
  assert scaling.main(arguments) == 0
  rows = list(csv.DictReader((in_directory / "w" / "points.csv").read_text().splitlines()))
  assert [(each["name"], each["kind"], each["devices"]) for each in rows] == [
    ("v5e4x4-data16-dp", "compiled", "16"),
    ("v5e4x4-data1_model16-tp", "failed", "16"),
    ("v5e16x16-data256-dp", "compiled", "256"),
    ("v5e16x16-data1_model256-tp", "failed", "256"),
  ]
  assert [each["step_ms"] for each in rows] == [""] * 4
  assert rows[2]["batch"] == str(64 * 256)
  assert float(rows[2]["efficiency"]) == pytest.approx(0.4 / 16 / 0.002)
  assert rows[1]["reason"] == "exit code 1: parallel: no"
  text = (in_directory / "w" / "README.md").read_text()
  assert "| v5e:16x16 | data:256 | dp | 16,384 | 2 |" in text
  assert "not run" in text
  assert {path.name for path in (in_directory / "w").glob("*.png")} == {"compiled.png"}
  capsys.readouterr()
  assert scaling.main(["devices", "--experiment=mlp", "--config=digits", "--devices=1", "--workdir=w"]) == 2
  assert "the points of w were compiled, and without --topology they are measured" in capsys.readouterr().err
  assert (in_directory / "w" / "README.md").read_text() == text


def test_real_points_are_measured_once_and_a_strategy_that_does_not_divide_is_a_row(in_directory, capsys):
  arguments = ["devices", "--experiment=mlp", "--config=iris", "--devices=1,2", "--strategies=dp,fsdp",
               "--model.widths=7", "--seconds=0.2", "--groups=2", "--workdir=w"]  # fmt: skip
  assert scaling.main(arguments) == 0
  assert "3 of 3: 2-data2-fsdp" in capsys.readouterr().out
  one, two, failed = (json.loads(line) for line in (in_directory / "w" / "points.jsonl").read_text().splitlines())
  assert (one["sent_bytes"], one["devices"], one["groups"]) == (0, 1, 2)
  assert two["all-reduce"] > 0
  assert two["memory"]["parameters"] == one["memory"]["parameters"]
  for each in (one, two):
    assert 0 < each["least_ms"] <= each["step_ms"] <= each["greatest_ms"]
    assert each["examples_per_s"] == pytest.approx(32 / each["step_ms"] * 1000)
    assert each["compile_s"] > 0
  assert not failed["ok"]
  assert "has 7 of embed, which --parallel.strategy=fsdp cannot divide over data:2" in failed["reason"]

  for path in (in_directory / "w").glob("*.png"):
    path.unlink()
  assert scaling.main(arguments) == 0
  printed = capsys.readouterr().out
  assert " of " not in printed  # nothing is run again
  assert {path.name for path in (in_directory / "w").glob("*.png")} == {"time.png", "cost.png"}
  text = (in_directory / "w" / "README.md").read_text()
  assert "| 1 | data:1 | dp | 32 |" in text
  assert "virtual" in text
  assert "- `2-data2-fsdp`: exit code 2: parallel: " in text


def test_parts_of_a_pipeline_go_to_pipelines_alone():
  study = devices.Devices(experiment="gpt", devices="1,2", strategies="dp,pp")
  found = devices.plan(study, ["--config=stdlib", "--model.layers=4", "--parallel.micro_batches=8"])
  parts = [[word for word in point.command if word.startswith("--parallel.micro_batches")][-1] for point in found]
  assert [(point.name, last[-2:]) for point, last in zip(found, parts, strict=True)] == [
    ("1-data1-dp", "=0"), ("2-data2-dp", "=0"), ("2-data1_stage2-pp", "=8")
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (["--strategies=dp,tpp"], "no strategy 'tpp'"),
    (["--devices=1,two"], "are no numbers of devices"),
    (["--experiment=mlpp"], "did you mean mlp?"),
    (["--meshes=data"], "is not axis:size"),
    (["--meshes=data:2", "--topology=v5e:4x4"], "both given"),
    (["--meshes=data:2", "--devices=1,2,4,8"], "--devices=1,2,4,8 and --meshes are both given"),
    (["--topology=v5e:4x4", "--devices=4"], "--devices=4 and --topology are both given"),
    (["--topology=v5e:4x4", "--seconds=2"], "compiled and not timed"),
    (["--python=python3"], "--python=python3 is the interpreter of compiled points"),
    (["--parallel.strategy=tp"], "--strategies=… names those"),
    (["--parallel.mesh", "data:2"], "--meshes=… names those"),
    (["--parallel.micro_batches=2"], "are parts in a pipeline, which --parallel.strategy=dp is not"),
    (["--topology=v5e"], "is not chip:sides"),
    (["--model.widthz=3"], "did you mean --model.widths?"),
    (["sample"], "makes no samples"),
    (["eval"], "eval is no word of a study"),
  ],
)
def test_flags_that_make_no_study(arguments, complaint, in_directory, capsys):
  assert scaling.main(["devices", "--experiment=mlp", "--config=iris", "--workdir=w", *arguments]) == 2
  assert complaint in capsys.readouterr().err
  assert not list(in_directory.iterdir())
