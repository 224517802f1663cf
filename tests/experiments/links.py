"""Ways between two processes that can go dead without being closed, as a link that is down does."""

import contextlib
import os
import socket
import subprocess
import threading

HOSTS = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


class Relay:
  """A port in between, which stops relaying: process 1's way to process 0's store. Gloo's own connections live on."""

  def __init__(self, folder):
    del folder
    self._port, self._down, self._server = 0, threading.Event(), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=self._accept, daemon=True).start()

  def before(self, index):
    return []

  def extra(self, index, port):
    self._port = port
    address = f"127.0.0.1:{self._server.getsockname()[1]}"
    return {"JAX_COORDINATOR_ADDRESS": address} if index else {}

  def cut(self):
    self._down.set()

  def close(self):
    self._server.close()

  def _accept(self):
    with contextlib.suppress(OSError):
      while True:
        near = self._server.accept()[0]
        try:
          far = socket.create_connection(("127.0.0.1", self._port), 5)
        except OSError:
          near.close()
          continue
        far.settimeout(None)
        for ends in ((near, far), (far, near)):
          threading.Thread(target=self._pump, args=ends, daemon=True).start()

  def _pump(self, source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        if not self._down.is_set():  # else it is lost, as all that follows
          sink.sendall(data)
    for each in (source, sink):
      each.close()


class Namespaces:
  """Two hosts with a cable between them, for root on Linux: each process has a network and a host name of its own."""

  def __init__(self, folder):
    self._names = [f"flagship{os.getpid()}n{index}" for index in (0, 1)]
    self._hosts = folder / "hosts"
    self._hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{self._of(i)} {self._names[i]}\n" for i in (0, 1)))
    for name in self._names:
      _ip("netns", "add", name)
    first, second = self._names
    _ip("link", "add", "v0", "netns", first, "type", "veth", "peer", "name", "v1", "netns", second)
    for index, name in enumerate(self._names):
      _ip("-n", name, "addr", "add", f"{self._of(index)}/24", "dev", f"v{index}")
      _ip("-n", name, "link", "set", f"v{index}", "up")
      _ip("-n", name, "link", "set", "lo", "up")

  @staticmethod
  def permitted():
    """Whether namespaces can be made here."""
    name = f"flagship{os.getpid()}"
    with contextlib.suppress(OSError):
      if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0:
        _ip("netns", "del", name)
        return True
    return False

  def before(self, index):
    name = self._names[index]
    return ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", HOSTS, name, str(self._hosts)]

  def extra(self, index, port):
    del index
    return {"JAX_COORDINATOR_ADDRESS": f"{self._of(0)}:{port}"}

  def cut(self):
    _ip("-n", self._names[0], "link", "set", "v0", "down")

  def close(self):
    for name in self._names:
      _ip("netns", "del", name)

  @staticmethod
  def _of(index):
    return f"10.77.0.{index + 1}"


def _ip(*words):
  subprocess.run(["ip", *words], check=True, capture_output=True)
