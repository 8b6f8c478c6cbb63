"""Standard output and error that lose no text: neither in an encoding without its letters nor to a closed pipe."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from typing import TextIO

from edgeembed.texts import read_as_utf8

CLOSED_PIPE = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


class SafeStream(io.TextIOWrapper):
    """Text stream that escapes what its encoding has no letter for, and drops text for a closed pipe.

    A character without a code is written as `\\u5199`, a byte of a file name that is not UTF-8 as `\\xe9`. When the
    reader of a pipe has gone (`edgeembed search ... | head -1`), the rest is dropped and the command ends as it would
    have.
    """

    def write(self, text: str) -> int:
        if text == "":  # with which Typer probes a stream, and passes over any error
            return 0
        try:
            return super().write(read_as_utf8(text, other_bytes="backslashreplace"))
        except OSError as error:
            self._drop_the_rest(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop_the_rest(error)

    def _drop_the_rest(self, error: OSError) -> None:
        """Lets the file descriptor lead nowhere, so that no buffer is in the way of the exit code.

        Raises OSError where not the reader but something else is missing, such as space on the disk.
        """
        descriptor, nowhere = self.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
        if error.errno not in CLOSED_PIPE:
            raise OSError(error.errno, error.strerror, f"standard {'error' if descriptor == 2 else 'output'}")


def make_streams_safe() -> None:
    """Replaces sys.stdout and sys.stderr of this process by streams that lose no text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None in a Windows program without a console
            encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
            safe = SafeStream(
                stream.detach(), encoding, "backslashreplace", line_buffering=by_line, write_through=at_once
            )
            setattr(sys, name, safe)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time: a line then stands above a progress bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
