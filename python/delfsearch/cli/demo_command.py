"""delfsearch demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from delfsearch.cli.common import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    CommandError,
    add_extractor_options,
    add_progress_options,
    make_extractor,
    positive,
    progress_interval,
)
from delfsearch.cli.output import answer
from delfsearch.cli.progress import ShownProgress


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="index and query real photographs, and see what comes out",
        description="Index photographs that installed packages carry, query them with strongly "
        "changed views and with photographs of other things, and check the answers (exit code 1 "
        "if any is wrong). With --photos and --query: the same on photos of your own.",
    )
    parser.add_argument("--out", default="delfsearch-demo", metavar="FOLDER", help="for all files")
    parser.add_argument("--photos", metavar="FOLDER", help="photos of your own to index")
    parser.add_argument("--query", metavar="PHOTO", help="photo of your own to look for")
    parser.add_argument(
        "--min-inliers",
        type=positive,
        metavar="N",
        help="verified matches that make a photo an answer; default: the library's",
    )
    parser.add_argument("--no-plots", action="store_true", help="do without matplotlib")
    add_extractor_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_demo, preset="fast")


def _demo(arguments: argparse.Namespace) -> int:
    from delfsearch.demo import run_demo, run_own_demo

    if (arguments.photos is None) != (arguments.query is None):
        raise CommandError("--photos and --query go together: a folder to index, a photo to find")
    extractor = make_extractor(arguments)
    every_s = progress_interval(arguments)
    with ShownProgress(every_s, "the demo begins anew each time") as progress:
        options: dict[str, Any] = {
            "write": _write,
            "min_inliers": arguments.min_inliers,
            "plots": not arguments.no_plots,
            "progress": progress,
        }
        if arguments.photos is None:
            right = run_demo(Path(arguments.out), extractor, **options)
            return EXIT_OK if right else EXIT_CHECK_FAILED
        photos, query = Path(arguments.photos), Path(arguments.query)
        run_own_demo(Path(arguments.out), extractor, photos, query, **options)
    return EXIT_OK


def _write(line: str) -> None:
    answer(line, flush=True)
