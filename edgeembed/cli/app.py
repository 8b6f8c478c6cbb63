"""The `edgeembed` program: its Typer app, global options, and errors as one line with an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from edgeembed import __version__
from edgeembed.cli.help import CommandGroup
from edgeembed.cli.streams import StderrHandler
from edgeembed.cli.usage import usage_message
from edgeembed.errors import CheckFailed, UserError
from edgeembed.extras import install_hint, is_dependency
from edgeembed.texts import read_as_utf8

# 130 is 128 + SIGINT, as shells report Ctrl-C.
EXIT_DONE, EXIT_FAILED, EXIT_MISUSE, EXIT_INTERRUPTED = 0, 1, 2, 130

GLOBAL_OPTIONS = ("--debug", "--quiet", "--verbose", "-v", "--version")
# Their warnings are about things that a user cannot change.
NOISY_LIBRARIES = ("absl", "httpx", "httpx2", "onnx_ir", "onnxscript", "PIL", "torch.onnx")

log = logging.getLogger(__name__)

app = typer.Typer(
    name="edgeembed",
    cls=CommandGroup,
    help="Train an image-embedding teacher, distil it into small students, export and measure them on your device.",
    no_args_is_help=True,
    # Errors are printed by `report_error`, help is plain text on every terminal.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(is_requested: bool) -> None:
    """Prints the version and ends the command, where --version is given."""
    if is_requested:
        print(f"edgeembed {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only results, warnings and errors.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="Log more, with times and module names. Without a command: the same as --version."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; they may be written before or after it."""
    del debug, version  # run() reads --debug, also where parsing fails; print_version handles --version
    if quiet and verbose:
        raise UserError("--quiet and --verbose: expected one of them at most")
    set_up_logging(logging.WARNING if quiet else logging.INFO, verbose=verbose)
    if quiet:  # downloads of pretrained weights draw progress bars
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def set_up_logging(level: int, *, verbose: bool) -> None:
    """Sends log messages to stderr, unless the calling program has set up logging already."""
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"
    logging.basicConfig(level=level, format=line, handlers=[StderrHandler()])
    if verbose:
        logging.getLogger("edgeembed").setLevel(logging.DEBUG)
        log.debug("edgeembed %s, Python %s, %s", __version__, platform.python_version(), platform.platform())
        return
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on stdout, in ASCII, which every terminal can show, and with null for NaN."""
    print(json.dumps(as_json_value(value), allow_nan=False))


def as_json_value(value: Any) -> Any:
    """A value with None for NaN and infinity, which JSON does not have, and with file names decoded as UTF-8."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return read_as_utf8(value)
    if isinstance(value, dict):
        return {as_json_value(key): as_json_value(item) for key, item in value.items()}
    return [as_json_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 wrong usage, 128 + n stopped by signal n."""
    arguments = global_options_first(sys.argv[1:] if arguments is None else arguments)
    with exit_on_signals() as received:
        try:
            result = app(args=arguments, prog_name="edgeembed", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()  # while a full disk can still be reported as an error
        # Raised by `stop` for SIGTERM, or by a library.
        except SystemExit:
            if received:
                print("stopped", file=sys.stderr)
            raise
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in arguments:
                traceback.print_exc()
            if received and not hasattr(error, "exit_code"):  # a signal during an import may surface as any error
                print("stopped", file=sys.stderr)
                return 128 + received[0]
            return report_error(error, arguments)
    if result == EXIT_INTERRUPTED:  # what Typer returns after Ctrl-C
        print("stopped", file=sys.stderr)
    return result if isinstance(result, int) else EXIT_DONE


def global_options_first(arguments: list[str]) -> list[str]:
    """The arguments with the global options moved to the front, where Typer expects them."""
    if arguments in (["-v"], ["--verbose"]):  # without a command there is nothing to log
        return ["--version"]
    # What follows `--` is never an option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [argument for argument in arguments[:end] if argument in GLOBAL_OPTIONS]
    kept = [argument for argument in arguments[:end] if argument not in GLOBAL_OPTIONS]
    return [*moved, *kept, *arguments[end:]]


def report_error(error: BaseException, arguments: Sequence[str] = ()) -> int:
    """Prints one line for an exception and returns the exit code for it."""
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    code = getattr(error, "exit_code", None)
    message = str(error)
    if hasattr(error, "format_message"):  # Typer's own usage errors
        code, message = EXIT_MISUSE, usage_message(error, arguments)
    elif isinstance(error, UserError):
        code = EXIT_MISUSE
    elif isinstance(error, ModuleNotFoundError) and is_dependency(error.name or ""):
        code, message = EXIT_MISUSE, f"this command {install_hint(error.name or '')}"
    elif isinstance(error, MemoryError):
        code, message = EXIT_FAILED, f"out of memory: {message}"
    elif code is None:
        code = EXIT_FAILED
        # Their message explains itself; any other error is a bug, whose type helps to report it.
        if not isinstance(error, (CheckFailed, OSError)):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
    # One line, also where a library's message has line breaks.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return int(code)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[list[int]]:
    """Within the block, SIGTERM raises SystemExit and Ctrl-C raises KeyboardInterrupt, so that the command cleans up.

    Yields the list of signals received so far, and restores the previous handlers at the end. It changes nothing
    outside the main thread, the only one that may handle signals, nor where a handler was not set from Python. A
    handler of the calling program for Ctrl-C stays.
    """
    received: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        received.append(signum)
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signum)

    previous = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    # Only Python's own handler is replaced: a calling program may have set another.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or None in previous.values():
        yield received
        return
    for number in previous:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
