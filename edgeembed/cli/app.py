"""The `edgeembed` command: one Typer app, and the rule that a mistake is one line and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from edgeembed.cli.suggestions import set_instead
from edgeembed.errors import CheckFailed, UserError
from edgeembed.extras import is_known, needed

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="edgeembed",
    help="Train an image-embedding teacher, distil it into small students, and prove on your device how good they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log warnings only.")] = False,
) -> None:
    """Options that stand before the command."""
    del debug  # read by run(), which must know it even where parsing fails
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "httpx", "httpx2", "onnx_ir", "onnxscript", "PIL", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, alone, on stdout; in ASCII where stdout has no letter for every character, as on Windows."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not is_utf8))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 misused, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # --debug is understood anywhere on the line.
    arguments = (["--debug"] if debug else []) + [argument for argument in arguments if argument != "--debug"]
    try:
        with leaving_on_sigterm():
            result = app(args=arguments, standalone_mode=False)
        return result if isinstance(result, int) else DONE
    except Exception as error:
        if debug:
            raise
        return report(error, arguments)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def report(error: Exception, arguments: Sequence[str] = ()) -> int:
    """Prints one line for an exception and returns the exit code that it stands for."""
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    code = getattr(error, "exit_code", None)
    message = str(error)
    usage = getattr(error, "format_message", None)  # Typer's own usage errors
    if usage is not None:
        message, code = usage(), MISUSED
        if instead := set_instead(error, arguments):
            message = f"unknown option {error.option_name!r}: recipe keys are set with {instead}"  # type: ignore[attr-defined]
        if not message:  # no command: the help was printed
            return MISUSED
    elif isinstance(error, UserError):
        code = MISUSED
    elif isinstance(error, ModuleNotFoundError) and is_known(error.name or ""):
        code, message = MISUSED, f"this command {needed(error.name or '')}"
    elif isinstance(error, MemoryError):
        code, message = FAILED, f"out of memory: {message}"
    elif code is None:
        code = FAILED
        if not isinstance(error, (CheckFailed, OSError)):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return int(code)


@contextlib.contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises SystemExit, so that the command cleans up; the previous handler comes back.

    Nothing changes outside the main thread, the only one that may handle signals, or where the previous handler was not
    set from Python.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or previous is None:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def leave(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
