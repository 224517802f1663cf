"""What a generator makes, to look at: a grid from fixed noise, walks through the latent space, a row for each class."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from research.adversarial import Adversaries
from research.data.source import Source
from research.data.splits import Splits
from research.parallel import arrays
from research.task import Key, State

CALL = 256  # examples made in one compiled call
WALKS, WALK_STEPS = 6, 10
EACH_CLASS = 10  # pictures in a class' row


class Maker:
  """Examples from a state, `CALL` at a time, so that any number of them is one compiled program.

  Args:
    players: the networks.
    labelled: the training data, whose labels are drawn for a conditional generator; None for one without classes.
  """

  def __init__(self, players: Adversaries, labelled: Source | None):
    self.players = players
    self._labels = None if labelled is None else np.asarray(labelled.column("label"), np.int32)
    self._generate = jax.jit(players.generate)

  def labels(self, count: int) -> np.ndarray | None:
    """label_N as frequent as in the training data, the same each time; None without classes."""
    if self._labels is None:
      return None
    return self._labels[np.random.default_rng(0).integers(0, len(self._labels), count)]

  def from_noise(self, state: State, z_NZ: np.ndarray, label_N: np.ndarray | None) -> np.ndarray:
    """Examples_N of given noise, float32: images in [−1, 1] or points."""
    parts = []
    for start in range(0, len(z_NZ), CALL):
      z_BZ, label_B = z_NZ[start : start + CALL], None if label_N is None else label_N[start : start + CALL]
      missing = CALL - len(z_BZ)
      z_BZ = np.pad(z_BZ, ((0, missing), (0, 0)))
      label_B = None if label_B is None else np.pad(label_B, (0, missing))
      parts.append(arrays.get(self._generate(state, z_BZ, label_B))[: CALL - missing])
    return np.concatenate(parts)

  def noise(self, key: Key, count: int) -> np.ndarray:
    """z_NZ; the first of a longer row are those of a shorter one."""
    calls = -(-count // CALL)
    draw = jax.vmap(lambda number: self.players.noise(jax.random.fold_in(key, number), CALL))
    return np.asarray(draw(jnp.arange(calls))).reshape(-1, self.players.latent)[:count]

  def __call__(self, state: State, key: Key, count: int) -> np.ndarray:
    """`count` examples with labels as in `labels`."""
    return self.from_noise(state, self.noise(key, count), self.labels(count))


def images(made: Maker, class_names: Sequence[str]) -> Callable[[State, Key, int], dict[str, np.ndarray]]:
  """Task.sample of an image generator: "samples", "interpolation" and, with classes, "classes"."""

  def sample(state: State, key: Key, count: int) -> dict[str, np.ndarray]:
    conditional, classes = made.labels(1) is not None, len(class_names)
    grid_key, walk_key = jax.random.split(key)
    z_NZ = made.noise(grid_key, count)
    ends_WZ = made.noise(walk_key, 2 * WALKS)
    walks_WSZ = great_circles(ends_WZ[:WALKS], ends_WZ[WALKS:], WALK_STEPS)
    walk_label_W = np.arange(WALKS, dtype=np.int32) % max(classes, 1) if conditional else None
    label_N = np.arange(count, dtype=np.int32) % classes if conditional else None
    found = {"samples": made.from_noise(state, z_NZ, label_N)}
    if conditional:  # one noise a column, so that what a column shares is the style and what a row shares the class
      z_CKZ = np.broadcast_to(z_NZ[:EACH_CLASS], (classes, *z_NZ[:EACH_CLASS].shape))
      label_CK = np.broadcast_to(np.arange(classes, dtype=np.int32)[:, None], z_CKZ.shape[:2])
      found["classes"] = _rows(made, state, z_CKZ, label_CK)
    labels_WS = None if walk_label_W is None else np.repeat(walk_label_W[:, None], WALK_STEPS, axis=1)
    found["interpolation"] = _rows(made, state, walks_WSZ, labels_WS)
    return {name: (np.clip(value, -1, 1) + 1) / 2 for name, value in found.items()}

  return sample


def _rows(made: Maker, state: State, z_RKZ: np.ndarray, label_RK: np.ndarray | None) -> np.ndarray:
  flat = made.from_noise(state, z_RKZ.reshape(-1, z_RKZ.shape[-1]), None if label_RK is None else label_RK.reshape(-1))
  return flat.reshape(*z_RKZ.shape[:2], *flat.shape[1:])


def great_circles(start_WZ: np.ndarray, end_WZ: np.ndarray, steps: int) -> np.ndarray:
  """Spherical interpolation, z_WSZ: normal noise lies near a sphere, and a straight line would cut through it."""
  unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (start_WZ, end_WZ)]
  angle_W1 = np.arccos(np.clip((unit[0] * unit[1]).sum(-1, keepdims=True), -0.9999, 0.9999))
  share_S1 = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
  start, end, angle = start_WZ[:, None], end_WZ[:, None], angle_W1[:, None]
  walk = (np.sin((1 - share_S1) * angle) * start + np.sin(share_S1 * angle) * end) / np.sin(angle)
  return walk.astype(np.float32)


def points(made: Maker, splits: Splits) -> Callable[[State, Key, int], np.ndarray]:
  """Task.sample of a generator of points in the plane: one picture of `count` of them over the real ones."""
  real_ND = np.asarray(splits.train.column("features"))[:2000]
  if real_ND.shape[1] != 2:
    return None
  low_2, high_2 = real_ND.min(0), real_ND.max(0)
  margin = 0.15 * float((high_2 - low_2).max())

  def sample(state: State, key: Key, count: int) -> np.ndarray:
    fake_ND = made(state, key, count)
    return scatter(real_ND, fake_ND, (low_2 - margin, high_2 + margin))[None]

  return sample


def scatter(real_ND: np.ndarray, fake_ND: np.ndarray, edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """picture_HWC uint8: real points in grey, made ones in blue, between the given corners."""
  from research.report.pictures import COLOURS, new_figure

  figure = new_figure(4, 4)
  figure.set_layout_engine("none")  # the axes are the whole picture
  axes = figure.add_axes((0, 0, 1, 1))
  axes.plot(*real_ND.T, ".", color="#c4c9d0", markersize=9, markeredgewidth=0)
  size = float(np.clip(95 / np.sqrt(len(fake_ND)), 3, 9))  # a few must be seen, and many must not cover each other
  axes.plot(*fake_ND.T, ".", color=COLOURS[0], markersize=size, alpha=0.5, markeredgewidth=0)
  axes.set(xlim=(edges[0][0], edges[1][0]), ylim=(edges[0][1], edges[1][1]), aspect="equal")
  axes.axis("off")
  figure.set_dpi(200)
  figure.canvas.draw()
  return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
