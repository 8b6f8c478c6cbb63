"""The `edgeembed` command: one Typer app, and the rule that a mistake is one line and an exit code."""

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

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

GLOBAL_OPTIONS = ("--debug", "--quiet", "--verbose", "-v", "--version")
NOISY_LIBRARIES = ("absl", "httpx", "httpx2", "onnx_ir", "onnxscript", "PIL", "torch.onnx")

log = logging.getLogger(__name__)

app = typer.Typer(
    name="edgeembed",
    cls=CommandGroup,
    help="Train an image-embedding teacher, distil it into small students, and prove on your device how good they are.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgeembed {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only results, warnings and errors.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="Log more, with time and module. Without a command: the same as --version."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that may stand before or after the command."""
    del debug, version  # read by run(), which must know it even where parsing fails; printed by its callback
    if quiet and verbose:
        raise UserError("--quiet and --verbose: expected one of them at most")
    set_up_logging(logging.WARNING if quiet else logging.INFO, verbose=verbose)
    if quiet:  # the downloads of pretrained weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def set_up_logging(level: int, *, verbose: bool) -> None:
    """Logs to stderr, unless the surrounding program has set up logging already."""
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s"
    logging.basicConfig(level=level, format=line, handlers=[StderrHandler()])
    if verbose:
        logging.getLogger("edgeembed").setLevel(logging.DEBUG)
        log.debug("edgeembed %s, Python %s, %s", __version__, platform.python_version(), platform.platform())
        return
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object, alone, on stdout: in ASCII, which every terminal and pipe takes, and with null for NaN."""
    print(json.dumps(as_json_value(value), allow_nan=False))


def as_json_value(value: Any) -> Any:
    """A value with null for NaN and infinity, which JSON has no number for, and with names read as UTF-8."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return read_as_utf8(value)
    if isinstance(value, dict):
        return {as_json_value(key): as_json_value(item) for key, item in value.items()}
    return [as_json_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 misused, 128 + n stopped by signal n."""
    arguments = global_options_first(sys.argv[1:] if arguments is None else arguments)
    with signals_that_stop() as received:
        try:
            result = app(args=arguments, prog_name="edgeembed", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk is still an error of the command
        except SystemExit:
            if received:
                print("stopped", file=sys.stderr)
            raise
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in arguments:
                traceback.print_exc()
            if received and not hasattr(error, "exit_code"):  # a module half imported may make any error of a signal
                print("stopped", file=sys.stderr)
                return 128 + received[0]
            return report(error, arguments)
    if result == INTERRUPTED:  # what Typer makes of Ctrl-C
        print("stopped", file=sys.stderr)
    return result if isinstance(result, int) else DONE


def global_options_first(arguments: list[str]) -> list[str]:
    """Arguments with the options of every command brought to the front, where Typer looks for them."""
    if arguments in (["-v"], ["--verbose"]):  # nothing would be logged
        return ["--version"]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [argument for argument in arguments[:end] if argument in GLOBAL_OPTIONS]
    kept = [argument for argument in arguments[:end] if argument not in GLOBAL_OPTIONS]
    return [*moved, *kept, *arguments[end:]]


def report(error: BaseException, arguments: Sequence[str] = ()) -> int:
    """Prints one line for an exception and returns the exit code that it stands for."""
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    code = getattr(error, "exit_code", None)
    message = str(error)
    if hasattr(error, "format_message"):  # Typer's own usage errors
        code, message = MISUSED, usage_message(error, arguments)
    elif isinstance(error, UserError):
        code = MISUSED
    elif isinstance(error, ModuleNotFoundError) and is_dependency(error.name or ""):
        code, message = MISUSED, f"this command {install_hint(error.name or '')}"
    elif isinstance(error, MemoryError):
        code, message = FAILED, f"out of memory: {message}"
    elif code is None:
        code = FAILED
        if not isinstance(error, (CheckFailed, OSError)):
            message = f"{type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return int(code)


@contextlib.contextmanager
def signals_that_stop() -> Iterator[list[int]]:
    """Within the block, SIGTERM raises SystemExit and Ctrl-C KeyboardInterrupt, so that the command cleans up.

    Gives the list of the signals received so far. The previous handlers come back. Nothing changes outside the main
    thread, the only one that may handle signals, or where a handler was not set from Python; Ctrl-C keeps a handler of
    the surrounding program.
    """
    received: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        received.append(signum)
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signum)

    previous = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
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
