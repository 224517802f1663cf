"""What the tests of commands share: runs that draw no pictures, and runs that a signal seems to stop."""

import contextlib

import pytest

from experiments import work
from research.report import pictures


@pytest.fixture(autouse=True, scope="module")
def without_matplotlib(request):
  """Its pictures take longer than these runs; the report's own tests look at them, and modules with DRAWS_PICTURES."""
  with pytest.MonkeyPatch.context() as patch:
    if not getattr(request.module, "DRAWS_PICTURES", False):
      patch.setattr(pictures, "write_all", lambda *_: [])
    yield


@contextlib.contextmanager
def _stopping_after(updates):
  class Request:
    asked = 0

    def __init__(self, grace):
      pass

    def __enter__(self):
      return self

    def __exit__(self, *_exception):
      pass

    def __call__(self):
      self.asked += 1
      return self.asked > updates  # once before the first update

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(work, "StopRequest", Request)
    yield


@pytest.fixture
def stopping_after():
  """updates → a context in which a run is asked to stop after so many of them."""
  return _stopping_after
