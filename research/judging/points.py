"""Points in a feature space, as (N, D) arrays, checked before a number is computed of them."""

import numpy as np

from research.errors import UserError


def checked(points_ND: np.ndarray, least: int, purpose: str) -> np.ndarray:
  """The points as float64, in which all judging is done.

  Args:
    points_ND: (N, D), any real dtype.
    least: how many points the purpose takes.
    purpose: what they are for, such as "a covariance".

  Raises:
    UserError: another rank, too few points, or a number that is NaN or infinite.
  """
  points_ND = np.asarray(points_ND)
  if points_ND.ndim != 2 or points_ND.shape[1] == 0:
    raise UserError(f"metrics: {purpose} is computed of points (N, D), not of an array of shape {points_ND.shape}")
  if len(points_ND) < least:
    raise UserError(f"metrics: {purpose} takes {least} examples or more, and there are {len(points_ND)}")
  points_ND = points_ND.astype(np.float64)
  if not np.isfinite(points_ND).all():
    raise UserError(f"metrics: {purpose} cannot be computed of features that are NaN or infinite")
  return points_ND


def check_alike(ours: int, theirs: int) -> None:
  """Raises UserError where two sets of points have different dimensions: they come from different judges."""
  if ours != theirs:
    raise UserError(f"metrics: points of {ours} dimensions cannot be compared with points of {theirs}; use one judge")
