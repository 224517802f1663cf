"""The two passes as kernels: each row is read once, made into results in registers, and written once."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from research.kernels import mosaic
from research.kernels.norm import how as of
from research.kernels.norm.blocks import Block, launch
from research.kernels.norm.how import How
from research.kernels.norm.tiles import Plan, Tile


def forward(*arrays: jax.Array, how: How, plan: Plan) -> list[jax.Array]:
  """Groups of rows, each normalised.

  Args:
    *arrays: `Forward`: (G, N, D), and parameters (1 or G, D).
    how: what is computed.
    plan: for N.

  Returns: y (G, N, D), x + residual where there is one, and (G, N) float32 the mean, if any, and the inverse deviation.
  """
  given = of.forward(arrays, how)
  groups, count, width = given.x.shape
  tile = plan.tile

  def body(block: Block, _: Sequence[Any], outputs: Sequence[Any]) -> None:
    y_ref, *total_ref = outputs[: len(outputs) - how.statistics]
    number_refs = outputs[len(outputs) - how.statistics :]

    def step(turn: jax.Array, buffers: Sequence[Any], carry: tuple) -> tuple:
      for start in range(0, plan.rows, tile.rows):
        row, pieces, numbers = block.row(turn) + start, [], []
        for column in tile.pieces:
          total = functools.reduce(jnp.add, [_read(tile, each, start, column) for each in buffers])
          for ref in total_ref:
            mosaic.store(tile.part(ref, row, column), total)
          pieces.append(total.astype(jnp.float32))
        if how.kind == "layer":
          mean = _sums(tile, pieces) / width
          pieces = [each - tile.over_columns(mean) for each in pieces]
          numbers.append(mean)
        inverse = lax.rsqrt(_sums(tile, [each * each for each in pieces]) / width + how.epsilon)
        for ref, values in zip(number_refs, [*numbers, inverse], strict=True):
          mosaic.store(tile.numbers(ref, row), values)
        for column, piece in zip(tile.pieces, pieces, strict=True):
          y, columns = piece * tile.over_columns(inverse), block.columns(column)
          y = y * columns[0] if how.scale else y
          y = y + columns[-1] if how.bias else y
          mosaic.store(tile.part(y_ref, row, column), y.astype(how.dtype))
      return carry

    block.each_step(step, ())

  rows = [each.reshape(-1, width) for each in (given.x, given.residual) if each is not None]
  outputs = [
    jax.ShapeDtypeStruct((groups * count, width), how.dtype),
    *[jax.ShapeDtypeStruct((groups * count, width), given.x.dtype)] * how.residual,
    *[jax.ShapeDtypeStruct((groups * count,), jnp.float32)] * how.statistics,
  ]
  parameters = [each for each in (given.scale_D, given.bias_D) if each is not None]
  found = launch(body, "norm", plan, groups, rows=rows, parameters=parameters, outputs=outputs)
  return [each.reshape(groups, count, *each.shape[1:]) for each in found]


def backward(*arrays: jax.Array, how: How, plan: Plan) -> list[jax.Array]:
  """Groups of rows, their gradients.

  Args:
    *arrays: `Backward`: (G, N, D), numbers (G, N), and a scale (1 or G, D).
    how: what is computed.
    plan: for N.

  Returns: the gradient to x (G, N, D); to scale and bias, where there are any, each block's sums, (G, blocks, D)
    float32.
  """
  given = of.backward(arrays, how)
  groups, count, width = given.x.shape
  tile, dtype, starts = plan.tile, given.x.dtype, range(0, plan.rows, plan.tile.rows)

  def body(block: Block, number_refs: Sequence[Any], outputs: Sequence[Any]) -> None:
    to_x_ref, *sum_refs = outputs

    def numbers_of(turn: jax.Array | int) -> list[list[jax.Array]]:
      """Of the tiles of a step."""
      rows = [block.row(turn) + start for start in starts]
      return [[mosaic.load(tile.numbers(each, row), tile.row_layout) for each in number_refs] for row in rows]

    def read(buffers: Sequence[Any], numbers: list[jax.Array], start: int, column: int) -> tuple[jax.Array, ...]:
      """→ the normalised values once more, the gradients to y and to the normalised values."""
      x, to_y = (_read(tile, each, start, column).astype(jnp.float32) for each in buffers[:2])
      x = x - tile.over_columns(numbers[0]) if how.kind == "layer" else x
      return x * tile.over_columns(numbers[-1]), to_y, to_y * block.columns(column)[0] if how.scale else to_y

    def step(turn: jax.Array, buffers: Sequence[Any], carry: tuple) -> tuple:
      numbers_of_tiles, sums = carry
      sums = [[*each] for each in sums]
      numbers_of_next = numbers_of(turn + 1)  # asked for now, and needed a step later
      for start, numbers in zip(starts, numbers_of_tiles, strict=True):
        pieces = [read(buffers, numbers, start, column) for column in tile.pieces]
        along = _sums(tile, [to_normal * normal for normal, _, to_normal in pieces]) / width
        plain = _sums(tile, [to_normal for *_, to_normal in pieces]) / width
        for place, column in enumerate(tile.pieces):
          normal, to_y, to_normal = read(buffers, numbers, start, column) if plan.in_pieces else pieces[place]
          to_x = to_normal - normal * tile.over_columns(along)
          to_x = to_x - tile.over_columns(plain) if how.kind == "layer" else to_x
          to_x = (to_x * tile.over_columns(numbers[-1])).astype(dtype)
          for each in buffers[2:]:
            to_x = to_x + _read(tile, each, start, column)
          mosaic.store(tile.part(to_x_ref, block.row(turn) + start, column), to_x)
          more = ([to_y * normal] if how.scale else []) + ([to_y] if how.bias else [])
          for total, each in zip(sums, more, strict=True):
            total[place] = total[place] + each
      return numbers_of_next, [tuple(each) for each in sums]

    zeros = mosaic.cast(jnp.zeros(tile.shape, jnp.float32), tile.layout)
    nothing = [(zeros,) * len(tile.pieces) for _ in sum_refs]
    _, sums = block.each_step(step, (numbers_of(0), nothing))
    for ref, pieces in zip(sum_refs, sums, strict=True):
      for column, piece in zip(tile.pieces, pieces, strict=True):
        piece = piece.sum(axis=0) if tile.rows > 1 else piece
        mosaic.store(ref.at[block.place, pl.ds(column, tile.piece)], piece)

  rows = [each.reshape(-1, width) for each in (given.x, given.to_y, given.to_total) if each is not None]
  outputs = [
    jax.ShapeDtypeStruct((groups * count, width), dtype),
    *[jax.ShapeDtypeStruct((groups * plan.blocks, width), jnp.float32)] * (how.scale + how.bias),
  ]
  parameters = [] if given.scale_D is None else [given.scale_D]
  others = [each.reshape(-1) for each in (given.mean, given.inverse) if each is not None]
  options = {"rows": rows, "parameters": parameters, "others": others, "outputs": outputs}
  to_x, *sums = launch(body, "norm_gradients", plan, groups, **options)
  return [to_x.reshape(given.x.shape), *(each.reshape(groups, plan.blocks, width) for each in sums)]


def _read(tile: Tile, buffer: Any, start: int, column: int) -> jax.Array:
  return mosaic.load(tile.part(buffer, start, column), tile.layout)


def _sums(tile: Tile, pieces: Sequence[jax.Array]) -> jax.Array:
  """Of each row, over all its pieces."""
  return tile.sums(functools.reduce(jnp.add, pieces))
