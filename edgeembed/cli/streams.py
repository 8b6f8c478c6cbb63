"""Makes standard output and error robust: characters that the encoding lacks, closed pipes, full disks."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from typing import TextIO

from edgeembed.texts import read_as_utf8

# Windows reports a closed pipe as EINVAL.
CLOSED_PIPE = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


class SafeStream(io.TextIOWrapper):
    """A text stream that escapes characters which its encoding lacks, and discards text for a closed pipe.

    A character that cannot be encoded is written as `\\u5199`, a byte of a file name that is not UTF-8 as `\\xe9`. When
    the reader of a pipe has exited (`edgeembed search ... | head -1`), the rest of the output is discarded and the
    command ends normally.
    """

    def write(self, text: str) -> int:
        if text == "":  # Typer writes this to test a stream, and ignores errors
            return 0
        try:
            return super().write(read_as_utf8(text, other_bytes="backslashreplace"))
        except OSError as error:
            self._discard_output(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._discard_output(error)

    def _discard_output(self, error: OSError) -> None:
        """Redirects the file descriptor to the null device, so that flushing at exit does not fail again.

        Raises OSError for any other error than a closed pipe, such as a full disk.
        """
        descriptor, null_device = self.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, descriptor)
        os.close(null_device)
        if error.errno not in CLOSED_PIPE:
            raise OSError(error.errno, error.strerror, f"standard {'error' if descriptor == 2 else 'output'}")


def make_streams_safe() -> None:
    """Replaces sys.stdout and sys.stderr of this process with `SafeStream`s."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None in a Windows program without a console
            encoding, line_buffering, write_through = stream.encoding, stream.line_buffering, stream.write_through
            safe = SafeStream(
                # The old wrapper gives up its buffer, which it would close when it is deleted.
                stream.detach(),
                encoding,
                "backslashreplace",
                line_buffering=line_buffering,
                write_through=write_through,
            )
            setattr(sys, name, safe)


class StderrHandler(logging.StreamHandler[TextIO]):
    """A log handler that writes to the current sys.stderr, so that lines appear above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
