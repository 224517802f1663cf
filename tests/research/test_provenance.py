"""run.json's commit and "dirty": whatever code could have changed the numbers changes it."""

import subprocess

import pytest

from research.provenance import git_state


@pytest.fixture
def checkout(tmp_path):
  def git(*arguments):
    subprocess.run(
      ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=tmp_path, check=True, capture_output=True
    )

  for folder in ("research", "experiments/gan"):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / "research/loop.py").write_text("a = 1\n")
  (tmp_path / "experiments/gan/networks.py").write_text("b = 1\n")
  (tmp_path / ".gitignore").write_text("runs/\n.venv/\n")
  git("init", "-q")
  git("add", "-A")
  git("commit", "-qm", "first")
  return tmp_path


def test_an_unchanged_checkout_is_its_commit(checkout):
  state = git_state(checkout / "research")
  assert len(state["commit"]) == 40
  assert state["dirty"] is None
  (checkout / "runs").mkdir()
  (checkout / "runs/mine.flags").write_text("ignored")
  (checkout / "notes.txt").write_text("no code")
  assert git_state(checkout / "research") == state


PATHS = ["research/loop.py", "experiments/gan/networks.py", "experiments/gan/new.flags", "new.py"]


@pytest.mark.parametrize("path", PATHS)
def test_changed_and_new_code_anywhere_is_told(checkout, path):
  found = set()
  for content in ("one", "two"):
    (checkout / path).write_text(content)
    found.add(git_state(checkout / "research")["dirty"])
  assert len(found) == 2
  assert None not in found


def test_a_checkout_that_the_code_is_not_in_says_nothing_of_it(checkout, tmp_path):
  installed = checkout / ".venv/site-packages/research"
  installed.mkdir(parents=True)
  (installed / "loop.py").write_text("a = 1\n")
  assert git_state(installed) is None
