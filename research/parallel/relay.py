"""A process' way to process 0's store, which stays open when process 0 is gone.

jaxlib ends a process with a trace of its C++ as soon as that connection closes, before anybody can say who has died. So
jaxlib connects to this process itself, from where bytes go on to process 0; what is lost there is only noted.
"""

import contextlib
import socket
import threading
import time

CONNECT_SECONDS = 10.0


class Relay:
  """A port of this host's loopback that leads to an address.

  Args:
    address: HOST:PORT to lead to.

  Attributes:
    address: HOST:PORT to connect to instead.
  """

  def __init__(self, address: str):
    host, _, port = address.rpartition(":")
    self._target = (host.strip("[]"), int(port))
    self._holds, self._lost, self._kept = False, None, []
    self._server = socket.create_server(("127.0.0.1", 0))
    self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
    _begin(self._accept)

  def hold(self) -> None:
    """From now on a connection whose other end is gone stays open here; before, it is for the caller to try again."""
    self._holds = True

  def lost_seconds(self) -> float:
    """How long ago the other end went away; 0 while it is there."""
    return 0.0 if self._lost is None else time.monotonic() - self._lost

  def _accept(self) -> None:
    while True:
      near = self._server.accept()[0]
      _begin(self._lead, near)

  def _lead(self, near: socket.socket) -> None:
    try:
      far = socket.create_connection(self._target, CONNECT_SECONDS)
    except OSError:
      _close(near)
      return
    far.settimeout(None)
    for each in (near, far):
      each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ended = threading.Event()
    _begin(self._pump, near, far, near, ended)
    self._pump(far, near, near, ended)

  def _pump(self, source: socket.socket, sink: socket.socket, near: socket.socket, ended: threading.Event) -> None:
    """Until one of the two is gone; what it was is decided once for both directions."""
    last = source
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        last = sink
        sink.sendall(data)
        last = source
    if not ended.is_set():
      ended.set()
      far = sink if source is near else source
      if last is far and self._holds:
        self._lost = self._lost or time.monotonic()
        self._kept.append(near)  # what nobody refers to would be closed
        _close(far)
      else:
        _close(near, far)


def _close(*sockets: socket.socket) -> None:
  for each in sockets:
    with contextlib.suppress(OSError):
      each.shutdown(socket.SHUT_RDWR)
    each.close()


def _begin(act, *arguments) -> None:
  threading.Thread(target=act, args=arguments, daemon=True, name="relay").start()
