"""How a new machine gets the environment of `make setup`, in shell commands: the versions of constraints.txt, by uv."""

PYTHON = "3.12"


def install(extra: str) -> list[str]:
  """For the extra "cuda", "tpu" or "" (a CPU), run in the folder of the code. A second time they do nothing."""
  extras = ",".join(each for each in ("text", extra) if each)
  return [
    # uv brings a Python where the machine's own is older; the variable is for systems that keep theirs to themselves.
    "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv",
    f"python3 -m uv venv --quiet --allow-existing --python={PYTHON} .venv",
    f"python3 -m uv pip install --quiet --constraint constraints.txt --editable '.[{extras}]'",
  ]
