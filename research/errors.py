"""The one error that a user is meant to read: a line that says what is wrong and what would be right."""

from collections.abc import Sequence


class UserError(Exception):
  """The flags, the data or the run directory are wrong. The command prints it as one line and exits with code 2.

  Args:
    line: what is wrong, and what would be right.
    table: lines to show below it, such as the two sides of a difference.
  """

  def __init__(self, line: str = "", table: Sequence[str] = ()):
    super().__init__(line)
    self.table = tuple(table)
