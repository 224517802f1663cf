"""Compiles the C++ kernels with g++: `make setup` does, or

  python -m research.kernels.native.build

They are optional. Without a compiler this says so in a line and exits with 0, and operations have XLA's forms.
"""

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from research.kernels import native

SOURCES = Path(__file__).parent / "src"
# Each source is compiled once for each of these, in a namespace of its own; what calls them is compiled for any x86-64.
TARGETS = {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
OPTIONS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]


def main() -> int:
  if platform.machine() not in ("x86_64", "AMD64"):
    print(f"native: no kernels for {platform.machine()}; operations have XLA's forms")
    return 0
  compiler = shutil.which("g++")
  if compiler is None:
    print("native: no g++, so operations have XLA's forms; install it and run python -m research.kernels.native.build")
    return 0
  with tempfile.TemporaryDirectory() as folder:
    objects, running = [], []
    includes = [f"-I{SOURCES}", "-isystem", jax.ffi.include_dir()]
    for source in sorted(SOURCES.glob("*.cc")):
      targets = {"": []} if source.name == "ffi.cc" else TARGETS
      for name, options in targets.items():
        objects.append(str(Path(folder) / f"{source.stem}{name}.o"))
        define = [f"-DFLAGSHIP_TARGET={name}"] if name else []
        command = [compiler, *OPTIONS, *options, *define, *includes, "-c", str(source), "-o", objects[-1]]
        running.append(subprocess.Popen(command))
    if sum(process.wait() != 0 for process in running):  # not any(): all are waited for
      print("native: g++ failed, so operations have XLA's forms", file=sys.stderr)
      return 1
    library = str(Path(folder) / "library.so")
    linking = [compiler, "-shared", *objects, "-o", library, "-static-libstdc++", "-static-libgcc"]
    if subprocess.run(linking).returncode:
      print("native: g++ cannot link, so operations have XLA's forms", file=sys.stderr)
      return 1
    native.PATH.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a process may have the old one open, and a half-written one is never loaded.
    partial = native.PATH.with_suffix(".partial")
    shutil.copyfile(library, partial)
    partial.replace(native.PATH)
  print(f"native: {native.PATH}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
