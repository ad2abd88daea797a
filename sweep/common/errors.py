"""Mistakes that a person can correct: shown as one line, never as a traceback."""


class UserError(ValueError):
    """One line that names the key or file, the value found, and what to do about it."""
