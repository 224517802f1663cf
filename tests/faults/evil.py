"""Files that mean harm to who opens them, and one of each kind that does not."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np

from research import manifest
from research.checkpoint import Checkpoints
from research.data import tokenizers
from research.task import State


class Code:
  """What a pickle of this runs when it is read."""

  def __reduce__(self):
    return os.system, ("echo HEARD a pickle",)


PICKLE = pickle.dumps(Code())
DEEP = "[" * 100_000  # what a careless parser recurses into
CALL = "__import__('os').system('echo HEARD a call')"


def make(folder):
  for kind in ("checkpoint", "data", "flags", "hf", "run", "tokenizer"):
    (folder / kind).mkdir()
  checkpoints(folder / "checkpoint")
  arrays(folder / "data")
  pictures(folder / "data")
  flag_files(folder / "flags")
  hugging_face(folder / "hf")
  runs(folder / "run")
  vocabularies(folder / "tokenizer")


def checkpoints(folder):
  good = folder / "good"
  saved = Checkpoints(good)
  array = jnp.arange(12, dtype=jnp.float32)
  saved.save(1, State(jnp.int32(1), {"w": array}, {"mu": array}, {}))
  saved.close()

  def other(name, harm, *, rewritten=True):
    """A copy with some harm done to it, and, as who means it would, a manifest that fits."""
    copy = folder / name / "1"
    shutil.copytree(good / "1", copy)
    harm(copy)
    if rewritten:
      (copy / manifest.NAME).unlink(missing_ok=True)
      manifest.write(copy, 1, {"best": None, "about": {}})

  def replace(path, old, new):
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new))

  def data_of(copy):
    return max((copy / "state").rglob("d/*"), key=lambda path: path.stat().st_size)

  def link(copy):
    path = data_of(copy)
    shutil.copy(path, folder.parent / "outside")
    path.unlink()
    path.symlink_to(folder.parent / "outside")

  handler = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
  other("pickle beside", lambda copy: (copy / "state" / "evil.pkl").write_bytes(PICKLE))
  other("pickle for arrays", lambda copy: data_of(copy).write_bytes(PICKLE))
  other("pickle for metadata", lambda copy: (copy / "state" / "_METADATA").write_bytes(PICKLE))
  other("handler of its own", lambda copy: replace(copy / "_CHECKPOINT_METADATA", handler, "evil.Handler"))
  other("types of its own", lambda copy: replace(copy / "state" / "_METADATA", "jax.Array", "evil.Array"))
  other("link", link, rewritten=False)
  other("deep manifest", lambda copy: (copy / manifest.NAME).write_text(DEEP), rewritten=False)
  other("large manifest", lambda copy: os.truncate(copy / manifest.NAME, manifest.MOST_BYTES + 1), rewritten=False)


def npy(header, payload=b"", length=None):
  text = header.encode()
  return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text + payload


def arrays(folder):
  x, y = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32), np.arange(40) % 2
  np.savez(folder / "good.npz", x_train=x, y_train=y, x_test=x, y_test=y)
  (folder / "good.csv").write_text("a,b\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(40)))

  def archive(name, members):
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as file:
      for member, content in members.items():
        file.writestr(member, content)

  labels = io.BytesIO()
  np.save(labels, y)
  np.savez(folder / "objects.npz", x_train=np.array([Code()] * 40, object), y_train=y)
  archive("pickle.npz", {"x_train.npy": PICKLE, "y_train.npy": labels.getvalue()})
  head = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
  archive("call.npz", {"x_train.npy": npy(head.format(CALL, "(40,)")), "y_train.npy": labels.getvalue()})
  archive("larger than memory.npz", {"x_train.npy": npy(head.format("'<f4'", "(40, 10000000000000)"))})
  archive("long header.npz", {"x_train.npy": npy("{}", length=2**32 - 1), "y_train.npy": labels.getvalue()})
  archive("deep header.npz", {"x_train.npy": npy(DEEP), "y_train.npy": labels.getvalue()})
  archive("bomb.npz", {"x_train.npy": npy(head.format("'|u1'", "(40, 5000000)"), bytes(2 * 10**8))})
  archive("traversal.npz", {"../../x_train.npy": labels.getvalue(), "/y_train.npy": labels.getvalue()})


def pictures(folder):
  from PIL import Image

  def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

  vast = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
  vast += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
  for name in ("good folder", "vast picture", "pickled picture"):
    for label in ("a", "b"):
      (folder / name / label).mkdir(parents=True)
      for number in range(6):
        Image.new("L", (4, 4), 40 * number).save(folder / name / label / f"{number}.png")
  (folder / "vast picture" / "a" / "0.png").write_bytes(vast)
  (folder / "pickled picture" / "a" / "0.png").write_bytes(PICKLE)


def flag_files(folder):
  (folder / "good.flags").write_text("--seed=3\n")
  (folder / "call.flags").write_text(f"--model.widths={CALL}\n")
  (folder / "interpolated.flags").write_text("--seed=$(echo HEARD a shell)\n")
  (folder / "pickle.flags").write_bytes(PICKLE)
  (folder / "endless.flags").symlink_to("/dev/zero")
  os.mkfifo(folder / "nobody writes.flags")
  (folder / "includes endless.flags").write_text("--flagfile=/dev/zero\n")


def hugging_face(folder):
  from safetensors.numpy import save_file

  def directory(name, config=None):
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config or {"model_type": "gpt2"}))
    return folder / name

  def tensors(name, header, payload=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    length = len(text) if length is None else length
    (directory(name) / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + payload)

  save_file({"w": np.ones(3, np.float32)}, directory("good") / "model.safetensors")
  (directory("pickle") / "pytorch_model.bin").write_bytes(PICKLE)
  (directory("pickle under another name") / "model.safetensors").write_bytes(PICKLE)
  own = directory("code of its own", {"model_type": "gpt2", "auto_map": {"AutoModel": "evil.Model"}})
  (own / "evil.py").write_text("print('HEARD an import')\n")
  save_file({"w": np.ones(3, np.float32)}, own / "model.safetensors")
  tensors("header longer than the file", {}, length=2**60)
  tensors("deep header", DEEP.encode())
  tensors("tensor outside", {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}, bytes(16))
  index = {"weight_map": {"w": "../good/model.safetensors"}}
  (directory("shard outside") / "model.safetensors.index.json").write_text(json.dumps(index))
  (directory("deep config") / "config.json").write_text(DEEP)


def runs(folder):
  secret = folder.parent / "secret.png"
  secret.write_bytes(b"secret")

  def run(name, **files):
    path = folder / name
    path.mkdir()
    content = {"metrics.jsonl": '{"step": 1, "time": 1.0, "train/loss": 2.0}\n', "run.flags": "--seed=1\n", **files}
    for file, text in content.items():
      (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path

  run("good")
  objects = io.BytesIO()
  np.savez(objects, loss=np.array([Code()], object))
  run("pickled predictions", **{"predictions.npz": objects.getvalue()})
  run("deep record", **{"run.json": DEEP})
  run("deep lines", **{"metrics.jsonl": DEEP + "\n"})
  run("pickle for lines", **{"metrics.jsonl": PICKLE})
  run("deep account", **{"goodput.jsonl": DEEP + "\n"})
  samples = run("picture outside") / "samples"
  samples.mkdir()
  (samples / "000001.png").symlink_to(secret)


def vocabularies(folder):
  tokenizers.save(tokenizers.Characters("abc"), folder / "good.json")
  (folder / "pickle.json").write_bytes(PICKLE)
  (folder / "deep.json").write_text(DEEP)
  (folder / "call.json").write_text(json.dumps({"kind": CALL}))
  (folder / "library.json").write_text(json.dumps({"kind": "bpe", "tokenizer": {"model": {"type": CALL}}}))
