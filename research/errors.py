"""The one error that a user is meant to read: a line that says what is wrong and what would be right."""


class UserError(Exception):
  """The flags, the data or the run directory are wrong. The command prints it as one line and exits with code 2."""
