"""How rows are cut for one warpgroup of a GPU (128 threads), and how much of them waits in shared memory.

A tile is what the warpgroup works on at once: four rows, one for each warp, or one row, where rows are wide. A step is
the tiles that are copied to shared memory together; some steps ahead are copied while one is worked on. Each block of
the grid takes every so many-th step, so that it sees many and sums over them before anything is written.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl

LANES, WARPS = 32, 4
HELD = 32  # values of a row that a thread may hold throughout; wider rows are read in pieces, and twice
MOST = 64  # values of a row for each thread: as many sums over columns are held, of each of two gradients
TILES = 8  # in a step at most: the program repeats their code
SHARED = 227 * 1024  # bytes that a block may have on sm_90
RESERVED = 3072  # of them for reductions and barriers


@dataclasses.dataclass(frozen=True)
class Tile:
  """Columns of some rows, divided among threads.

  Attributes:
    width: of a row.
    rows: 4 or 1.
    piece: columns that are worked on together; it divides the width.
    vector: neighbours that a thread reads together.
  """

  width: int
  rows: int
  piece: int
  vector: int

  @property
  def pieces(self) -> range:
    """Where each begins."""
    return range(0, self.width, self.piece)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of a piece."""
    return (self.rows, self.piece) if self.rows > 1 else (self.piece,)

  @property
  def layout(self) -> Any:
    """Of a piece: neighbouring lanes read neighbouring vectors."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    run = LANES * self.vector
    shapes = ((WARPS, run), (self.vector,)) if self.rows > 1 else ((WARPS * run,), (run,), (self.vector,))
    return plgpu.Layout.TILED(plgpu.Tiling(shapes), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)

  @property
  def column_layout(self) -> Any:
    """Of the columns of a piece, (piece,): all warps have them where each has a row."""
    return self.layout.reduce(0) if self.rows > 1 else self.layout

  @property
  def row_layout(self) -> Any:
    """Of a number for each row."""
    return self.layout.reduce(1) if self.rows > 1 else None

  def numbers(self, ref: Any, row: Any) -> Any:
    """The part of a ref (N,) for the rows from one on; a scalar where a tile is one row."""
    return ref.at[pl.ds(row, self.rows)] if self.rows > 1 else ref.at[row]

  def part(self, ref: Any, row: Any, column: int) -> Any:
    """The part of a ref (N, D) for the rows from one on, and the piece that begins at a column."""
    columns = pl.ds(column, self.piece)
    return ref.at[pl.ds(row, self.rows), columns] if self.rows > 1 else ref.at[row, columns]

  def over_columns(self, numbers: jax.Array) -> jax.Array:
    """A number for each row as a piece."""
    return lax.broadcast_in_dim(numbers, self.shape, (0,) if self.rows > 1 else ())

  def over_rows(self, columns: jax.Array) -> jax.Array:
    """(piece,) as a piece."""
    return lax.broadcast_in_dim(columns, self.shape, (1,)) if self.rows > 1 else columns

  def sums(self, values: jax.Array) -> jax.Array:
    """Of each row of a piece."""
    return values.sum(axis=1) if self.rows > 1 else values.sum()


@dataclasses.dataclass(frozen=True)
class Plan:
  """A tile, and the steps.

  Attributes:
    tile: the tile.
    rows: of a step; it divides the number of rows.
    steps: of all blocks together.
    stages: steps that are in shared memory at once.
    blocks: of the grid; at most as many as there are steps.
  """

  tile: Tile
  rows: int
  steps: int
  stages: int
  blocks: int

  @property
  def in_pieces(self) -> bool:
    """Whether a row is too wide to be held, and columns' parameters wait in shared memory."""
    return self.tile.piece < self.tile.width


def cut(count: int, width: int) -> Tile | str:
  """The tile for rows of a width, or why there is none."""
  if width % 64:
    return f"rows of {width} are no multiple of 64"
  fours = count % WARPS == 0 and width <= MOST * LANES
  ones = width % (LANES * WARPS) == 0 and width <= MOST * LANES * WARPS
  if fours and (width <= HELD * LANES or not ones):
    rows, unit = WARPS, LANES
  elif ones:
    rows, unit = 1, LANES * WARPS
  elif width > MOST * LANES:
    return f"rows of {width} are wider than {MOST * LANES * WARPS}, or no multiple of {LANES * WARPS}"
  else:
    return f"{count} rows of {width} are no multiple of {WARPS}, nor {width} of {LANES * WARPS}"
  vector = max(each for each in (1, 2, 4) if width % (unit * each) == 0)
  runs = width // (unit * vector)
  most = HELD if width <= HELD * unit else HELD // 2
  piece = max(each for each in range(1, runs + 1) if runs % each == 0 and each * vector <= most)
  return Tile(width, rows, piece * unit * vector, vector)


def plan(
  count: int,
  width: int,
  sizes: Sequence[int],
  *,
  parameters: int,
  groups: int = 1,
  kilobytes: int,
  stages: int,
  blocks: int,
) -> Plan | str:
  """How `count` rows are cut, or why they cannot be.

  Args:
    count: of rows, of a group.
    width: of a row.
    sizes: the bytes of a value, of each array of rows that is read.
    parameters: arrays (D,) that are read, float32.
    groups: that share the blocks.
    kilobytes: of one array in a step, at most, unless one tile has more.
    stages: at most; at least two.
    blocks: at most.
  """
  tile = cut(count, width)
  if isinstance(tile, str):
    return tile
  kept = parameters * width * 4 if tile.piece < width else 0
  most = max(tile.rows, min(TILES * tile.rows, kilobytes * 1024 // (width * max(sizes))))
  choices = [
    (number, rows)
    for number in range(2, stages + 1)
    for rows in range(tile.rows, most + 1, tile.rows)
    if count % rows == 0
  ]
  for residents in (2, 1):  # blocks of a multiprocessor
    room = SHARED // residents - RESERVED - kept
    if fits := [each for each in choices if math.prod(each) * width * sum(sizes) <= room]:
      number, rows = max(fits, key=lambda each: ((each[0] - 1) * each[1], each[1]))  # the most under way
      share = max(1, blocks * residents // 2 // groups)
      return Plan(tile, rows, count // rows, number, min(share, count // rows))
  return f"rows of {width} do not fit into shared memory"
