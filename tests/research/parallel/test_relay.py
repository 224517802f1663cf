"""Bytes through it, and what the near end sees when the far end is gone."""

import socket
import time

import pytest

from research.parallel.relay import Relay


@pytest.fixture
def ends():
  """(relay, near socket, far socket)."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
    host, _, port = relay.address.rpartition(":")
    near = socket.create_connection((host, int(port)), timeout=5)
    far = server.accept()[0]
    with near, far:
      yield relay, near, far


def test_bytes_go_both_ways(ends):
  _, near, far = ends
  data = bytes(range(256)) * 4096
  near.sendall(b"to process 0")
  assert far.recv(100) == b"to process 0"
  far.sendall(data)
  got = b""
  while len(got) < len(data):
    got += near.recv(1 << 16)
  assert got == data


def test_before_it_holds_the_end_is_passed_on(ends):
  relay, near, far = ends
  far.close()
  assert near.recv(1) == b""
  assert relay.lost_seconds() == 0


def test_held_it_stays_open_and_is_noted(ends):
  """Mutation: without `hold` jaxlib aborts every process when process 0 dies."""
  relay, near, far = ends
  relay.hold()
  assert relay.lost_seconds() == 0
  far.close()
  near.settimeout(0.5)
  with pytest.raises(TimeoutError):
    near.recv(1)
  assert relay.lost_seconds() > 0
  near.sendall(b"goes nowhere")


def test_nobody_there_is_an_end():
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  host, _, near = Relay(f"127.0.0.1:{port}").address.rpartition(":")
  with socket.create_connection((host, int(near)), timeout=5) as connection:
    assert connection.recv(1) == b""


def test_a_connection_that_jaxlib_closes_itself_is_not_lost(ends):
  relay, near, far = ends
  relay.hold()
  near.close()
  assert far.recv(1) == b""
  time.sleep(0.1)
  assert relay.lost_seconds() == 0
