"""What random folders, tables and images share: outcomes, pictures to draw, and running edgeembed's commands."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image

from edgeembed.cli import run

RIGHT, REFUSED, WRONG = "right", "refused by name", "wrong"
MOST_SECONDS = 30
INTERNAL = re.compile(
    r"Traceback|internal|--debug shows where|\b(Unicode\w*|Key|Type|Attribute|Index|Assertion)Error\b"
)
"""What no message for a person holds."""
LEFT_OUT = re.compile(r"(\d+) left out")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one kind in one sample; `message` says what is wrong."""

    kind: str
    outcome: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def error(self) -> str:
        return next((line for line in reversed(self.err.splitlines()) if line.startswith("error: ")), self.err[-300:])

    def names(self, *names: str) -> bool:
        return any(spelled(name) in self.text for name in names)

    @property
    def num_left_out(self) -> int:
        """What the line that counts it says; 0 without such a line."""
        return sum(int(count) for count in LEFT_OUT.findall(self.text))

    def fault(self) -> str | None:
        """What is wrong with how it ended, whatever it was asked: its exit code, or words meant for a programmer."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}: {self.error}"
        if self.code and (INTERNAL.search(self.err) or len(self.err.strip().splitlines()) == 0):
            return f"exit code {self.code}: {self.error}"
        return None


def spelled(name: str) -> str:
    """A file name as a message shows it: bytes that are not UTF-8 as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def command(*arguments: str | Path) -> Ran:
    """Runs a command in this process, at most `MOST_SECONDS`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit():
        remove_handlers()
        try:
            code = run([os.fspath(argument) for argument in arguments])
        except BaseException as error:  # a fault of the command, not of this script
            code, _ = 99, err.write(f"{type(error).__name__}: {error}")
    return Ran(code=code, out=text_of(out), err=text_of(err))


def command_apart(*arguments: str | Path) -> Ran:
    """Runs a command in a process of its own, as a person does."""
    line = [sys.executable, "-m", "edgeembed", *map(os.fspath, arguments)]
    ended = subprocess.run(line, capture_output=True, timeout=4 * MOST_SECONDS, check=False)
    decoded = [stream.decode("utf-8", "surrogateescape") for stream in (ended.stdout, ended.stderr)]
    return Ran(code=ended.returncode, out=decoded[0], err=decoded[1])


def text_of(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return content.decode("utf-8", "surrogateescape")


def remove_handlers() -> None:
    """Removes handlers that write to the stream of an earlier command."""
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"did not end in {MOST_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def picture(rng: random.Random, width: int = 24, height: int = 16) -> Image.Image:
    """Smooth random colours: another picture each time, which small errors of an encoder change little."""
    seed = rng.getrandbits(32)
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR)


def save(rng: random.Random, path: Path | str) -> None:
    """A picture of its own into a file, in the format of its suffix; PNG where the suffix names none."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    stream = io.BytesIO()
    picture(rng).save(stream, Image.registered_extensions()[suffix] if suffix in suffixes() else "PNG")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(stream.getvalue())


def suffixes() -> tuple[str, ...]:
    """Every suffix of which Pillow itself writes and reads a small RGB picture back, found by trying."""
    if not FOUND:
        Image.init()
        for suffix, name in sorted(Image.registered_extensions().items()):
            if name != "EPS" and name in Image.SAVE and name in Image.OPEN and reads_back(name):  # EPS runs Ghostscript
                FOUND.append(suffix)
    return tuple(FOUND)


FOUND: list[str] = []


def reads_back(name: str) -> bool:
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of formats that a later Pillow drops
            picture(random.Random(0), 32, 32).save(stream, name)
            stream.seek(0)
            with Image.open(stream) as image:
                image.load()
                return image.format == name or (name, image.format) in {("JPEG2000", "JPEG2000"), ("MPO", "JPEG")}
    except (AttributeError, KeyError, OSError, SystemError, TypeError, ValueError):  # no writer, or not for this mode
        return False
