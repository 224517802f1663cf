"""The definition, in float64 numpy, given the random words."""

import numpy as np


def dropout(x, words_BW, dropped: int) -> np.ndarray:
  """Value i of a row is dropped where byte i of the row's words, each word's lowest first, is less than `dropped`."""
  x = np.asarray(x, np.float64)
  y = np.zeros(x.shape)
  for b in range(len(x)):
    for i, place in enumerate(np.ndindex(x.shape[1:])):
      byte = int(words_BW[b, i // 4]) >> (8 * (i % 4)) & 255
      if byte >= dropped:
        y[(b, *place)] = x[(b, *place)] * 256 / (256 - dropped)
  return y
