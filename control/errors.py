"""The two ways a command says no. Both carry one sentence that ends with the remedy; `cli.main` prints it and picks
the exit code, so that no command prints errors or exits by itself. Anything else that reaches `main` is a defect."""

from __future__ import annotations


class Failed(Exception):  # noqa: N818 - reads as what happened
    """What was asked could not be done: exit code 1."""


class Misused(Exception):  # noqa: N818
    """What was asked makes no sense as written: exit code 2."""
