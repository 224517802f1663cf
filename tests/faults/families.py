"""A small run of every experiment that there is. One that has no line here is run by its first preset, made small."""

from pathlib import Path

from tests.experiments.definitions import EXPERIMENTS

TEXT = Path(__file__).with_name("evil.py")
NOTES = Path(__file__).parents[1] / "experiments" / "notes.csv"
SMALL = [
  "--run.steps=40", "--run.eval_every=15", "--run.checkpoint_every=10", "--run.log_every=4", "--data.batch_size=8",
  "--data.eval_batch_size=64", "--parallel.mesh=data:1", "--run.grace_seconds=5",
]  # fmt: skip
HELD_OUT = ["--data.validation_fraction=0.1", "--run.best_metric=validation/loss"]
TRANSFORMER = [
  "--model.layers=1", "--model.width=16", "--model.heads=2", "--model.dropout=0.1", "--optim.ema_decay=0.9",
]  # fmt: skip
WORDS = [f"--data.source=text:{TEXT}", *TRANSFORMER, "--model.context=16", "--text.tokenizer=byte"]
FLAGS = {
  "autoencoder": ["--data.source=sklearn:digits", "--model.network=conv", "--model.widths=4,8", *HELD_OUT],
  "bert": [*WORDS, "--data.test_fraction=0", "--optim.name=lamb"],
  "cnn": ["--data.source=folder:{pictures}", "--data.cache_dir={cache}", "--model.widths=4,8", "--model.norm=batch",
          "--data.pad_crop=1", "--data.flip", "--optim.ema_decay=0.9", *HELD_OUT],
  "forecast": ["--data.source=synthetic:seasonal?size=300", "--series.context=12", "--series.horizon=4",
               "--series.season=6", "--model.name=gru", "--model.hidden=8", "--model.dropout=0.1"],
  "gan": ["--data.source=synthetic:ring?size=400", "--model.name=mlp", "--model.widths=8,8", "--model.spectral_norm",
          "--gan.critic_steps=2", "--gan.r1=0.1", "--optim.name=adam", "--optim.ema_decay=0.9"],
  "gpt": [*WORDS, "--optim.name=muon"],
  "linear": ["--data.source=sklearn:digits", "--data.mixup=0.2", *HELD_OUT],
  "mlp": ["--data.source=sklearn:iris", "--model.widths=8", "--model.dropout=0.2", "--model.norm=batch",
          "--optim.ema_decay=0.9", "--optim.micro_batches=2", *HELD_OUT],
  "text": [f"--data.source=csv:{NOTES}", "--text.length=12", "--model.width=8", "--model.filters=8"],
  "vit": ["--data.source=sklearn:digits", *TRANSFORMER, "--model.patch=4", *HELD_OUT],
}  # fmt: skip
FED_BY_GRAIN = ("bert", "linear", "vit", "forecast", "mlp")  # the others' data are on the device


def arguments(name: str, folder: Path) -> list[str]:
  """The command line of experiment `name`, but for its --workdir; what it reads lies in `folder`, or will."""
  definition = next(each for each in EXPERIMENTS if each.name == name)
  preset = sorted(path.stem for path in definition.directory.glob("*.flags"))[0]
  own = FLAGS.get(name, [f"--config={preset}"])
  own = [flag.format(pictures=folder / "pictures", cache=folder / "cache") for flag in own]
  return [*own, *SMALL, f"--data.feed={'grain' if name in FED_BY_GRAIN else 'device'}"]


def pictures(folder: Path) -> None:
  """Sixty small PNG files of three classes."""
  import numpy as np
  from PIL import Image

  rng = np.random.default_rng(0)
  for label in "abc":
    (folder / label).mkdir(parents=True)
    for number in range(20):
      Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / label / f"{number}.png")
