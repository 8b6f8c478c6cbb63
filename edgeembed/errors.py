"""The errors that the command line turns into one line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user; the message names the thing, its value and what to do. Exit code 2."""


class CheckFailed(RuntimeError):
    """A result that is not acceptable: a gate that failed, a wrong checksum, a failed verification. Exit code 1."""


class WriteFailed(OSError):
    """A file or folder that could not be written completely, for example on a full disk; exit code 1.

    The message names the path, the reason and what to do. An earlier file or folder at that path is unchanged.
    """


MAX_LISTED_CHOICES = 20


def did_you_mean(name: str, choices: Iterable[str], *, similarity: float = 0.6) -> str:
    """A question that names the most similar choice; empty where none reaches `similarity` (0..1)."""
    # A single suggestion: a list of all similar names would be longer to read than the choices.
    nearest = difflib.get_close_matches(name, list(choices), n=1, cutoff=similarity)
    return f"did you mean {nearest[0]!r}?" if nearest else ""


def unknown_choice(
    kind: str, value: str, choices: Iterable[str], remedy: str = "", *, similarity: float = 0.4
) -> UserError:
    """The error for a name that is not among `choices`: it suggests the most similar one, or lists the choices."""
    names = sorted(choices)
    listed = ", ".join(names[:MAX_LISTED_CHOICES]) + (", ..." if len(names) > MAX_LISTED_CHOICES else "")
    hint = did_you_mean(value, names, similarity=similarity) or f"choose one of {listed}"
    return UserError(f"unknown {kind} {value!r}: {hint}{' ' + remedy if remedy else ''}")
