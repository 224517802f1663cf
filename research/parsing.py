"""JSON of files that anybody may have written: what is wrong with it is a ValueError, however it is wrong."""

import json
from typing import Any


def parse_json(text: str | bytes, **options: Any) -> Any:
  """json.loads, which lets a RecursionError out of brackets in brackets. Raises ValueError."""
  try:
    return json.loads(text, **options)
  except RecursionError as error:
    raise ValueError("brackets in brackets, too deep to be read") from error
