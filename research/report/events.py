"""TensorBoard event files, always exactly what metrics.jsonl and samples/ hold; they are a copy, never a source.

tensorboardX gives the messages and their checksums, without TensorFlow. Its writers stay unused: one syncs the disk at
every flush, the other blocks the training loop for ever once its disk is full. Here an event is one unbuffered write,
and a write that fails ends the copy with one note while the run goes on.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from research.report import samples
from research.report.record import Record


class Events:
  """Rewrites the event files in `folder` from `records` and the sample files by kind, then appends to them.

  note: told one line, once, if the copy cannot be written; training needs no TensorBoard.
  """

  def __init__(self, folder: Path, records: Iterable[Record], files: samples.Files, note: Callable[[str], None]):
    self._note = note
    self._file = None
    with self._forgiving():
      from tensorboardX.proto.event_pb2 import Event

      folder.mkdir(parents=True, exist_ok=True)
      # Event files cannot be cut in the middle, so a resumed run writes them anew.
      for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
      name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
      self._file = open(folder / name, "wb", buffering=0)  # noqa: SIM115 (held open for the length of the run)
      self._file.write(_framed(Event(wall_time=time.time(), file_version="brain.Event:2")))
    for record in records:
      self.scalars(record)
    for kind, paths in files.items():
      for path in paths:
        self.sample(int(path.stem), kind, path, path.stat().st_mtime)

  def scalars(self, record: Record) -> None:
    """One event with every scalar of `record`, at the record's own step and time."""
    if self._file is None:
      return
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = [(name, value) for name, value in record.items() if name not in ("step", "time")]
    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars]
    self._write(int(record["step"]), record["time"], Summary(value=values))

  def sample(self, step: int, kind: str, path: Path, wall_time: float | None = None) -> None:
    """The PNG or text file at `path` as it is; `wall_time` is now if left out."""
    if self._file is None:
      return
    with self._forgiving():
      tag = samples.tag(kind)
      summary = _image(tag, path.read_bytes()) if path.suffix == ".png" else _text(tag, path.read_text("utf-8"))
      self._write(step, time.time() if wall_time is None else wall_time, summary)

  def close(self) -> None:
    if self._file is not None:
      file, self._file = self._file, None
      file.close()

  def _write(self, step: int, wall_time: float, summary) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with self._forgiving():
      self._file.write(_framed(Event(wall_time=wall_time, step=step, summary=summary)))

  @contextlib.contextmanager
  def _forgiving(self):
    try:
      yield
    except (ImportError, OSError) as error:
      self.close()
      self._note(f"no TensorBoard events from here on: {error}")


def _framed(event) -> bytes:
  """The event as a TFRecord: length, masked CRC-32C of the length, message, masked CRC-32C of the message."""
  from tensorboardX.record_writer import masked_crc32c

  message = event.SerializeToString()
  length = struct.pack("<Q", len(message))
  return length + struct.pack("<I", masked_crc32c(length)) + message + struct.pack("<I", masked_crc32c(message))


def _image(tag: str, png: bytes):
  from tensorboardX.proto.summary_pb2 import Summary

  width, height = struct.unpack(">II", png[16:24])  # the IHDR chunk comes first in every PNG
  image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
  return Summary(value=[Summary.Value(tag=tag, image=image)])


def _text(tag: str, content: str):
  from tensorboardX.summary import text

  # TensorBoard renders Markdown; an indented block keeps a sample as it was written.
  return text(tag, "".join(f"    {line}\n" for line in content.splitlines()))
