"""The parser with all commands, and what happens around a command: errors, Ctrl-C, broken pipes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence

from delfsearch import __version__
from delfsearch.cli import (
    demo_command,
    index_commands,
    query_command,
    report_command,
    reproduce_command,
    scores_command,
    train_command,
    weights_command,
)
from delfsearch.cli.common import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE, CommandError
from delfsearch.cli.output import say

_DESCRIPTION = """\
Find the same place, building or object in a folder of photos, or learn that nothing matches.

  delfsearch index PHOTOS INDEX      once
  delfsearch query INDEX PHOTO       as often as you like
"""
_EPILOG = """\
exit codes: 0 done (also where a query has no match); 1 a check failed (info --check, demo);
2 an error, said in one line on standard error; 130 interrupted; 141 the reader of a pipe left.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="delfsearch",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"delfsearch {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (
        index_commands,
        query_command,
        scores_command,
        weights_command,
        demo_command,
        report_command,
        reproduce_command,
        train_command,
    ):
        group.add_parsers(commands)
    # After the command as well: that is where one adds it when a command has just failed. The
    # default is suppressed there, or it would undo a --debug given before the command.
    for command in commands.choices.values():
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises, short of ``--debug``."""
    _tolerate_any_terminal()
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why, or printed the help
        return stop.code if isinstance(stop.code, int) else EXIT_ERROR
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        message = str(stop) or "interrupted"
        say(f"\ndelfsearch: {message}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter would flush again at exit, fail again, and print a warning about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    # Whatever a command raises becomes one line: a person at a terminal can't use a traceback.
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        say(f"delfsearch: error: {_one_line(error)}")
        return EXIT_ERROR
    return code


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    expected = isinstance(error, (CommandError, ValueError, ImportError, OSError))
    if expected and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _tolerate_any_terminal() -> None:
    # A name that the terminal's encoding can't show is shown escaped instead of ending the run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
