"""How a new machine gets the environment of `make setup`, in shell commands: the versions of constraints.txt, by uv."""

PYTHON = "3.12"


def install(extra: str) -> list[str]:
  """For the extra "cuda", "tpu" or "" (a CPU), run in the folder of the code. A second time they do nothing."""
  extras = ",".join(each for each in ("text", extra) if each)
  return [
    "python3 -m pip install --quiet --user uv",  # which brings a Python where the image's own is older
    f"python3 -m uv venv --quiet --allow-existing --python={PYTHON} .venv",
    f"python3 -m uv pip install --quiet --constraint constraints.txt --editable '.[{extras}]'",
  ]
