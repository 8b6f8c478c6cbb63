"""The errors that the command line turns into one line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: names the thing, the value and the remedy. Exit code 2."""


class CheckFailed(RuntimeError):
    """Work ran and its result is not acceptable: a gate, a checksum, a verification. Exit code 1."""


class WriteFailed(OSError):
    """Something could not be written to the end, as on a full disk: names the path, the reason and the remedy.

    What was there before is still there. Exit code 1.
    """


LISTED_CHOICES = 20


def did_you_mean(name: str, choices: Iterable[str], *, similarity: float = 0.6) -> str:
    """The most similar choice, as a question; empty where none is similar enough (0..1)."""
    nearest = difflib.get_close_matches(name, list(choices), n=1, cutoff=similarity)
    return f"did you mean {nearest[0]!r}?" if nearest else ""


def unknown_choice(
    kind: str, value: str, choices: Iterable[str], remedy: str = "", *, similarity: float = 0.4
) -> UserError:
    """An error for a name that is not among `choices`, with the nearest valid one that is similar enough (0..1)."""
    names = sorted(choices)
    listed = ", ".join(names[:LISTED_CHOICES]) + (", ..." if len(names) > LISTED_CHOICES else "")
    hint = did_you_mean(value, names, similarity=similarity) or f"choose one of {listed}"
    return UserError(f"unknown {kind} {value!r}: {hint}{' ' + remedy if remedy else ''}")
