"""delfsearch reproduce: the tables of the paper, on one's own copies of the data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delfsearch.cli.common import (
    EXIT_OK,
    add_machine_options,
    add_progress_options,
    existing_folder,
    named_file,
    positive,
    progress_interval,
)
from delfsearch.cli.output import answer, say
from delfsearch.cli.progress import StagedProgress
from delfsearch.evaluation.paper.printed import TABLE_NAMES


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reproduce",
        help="run the tables of the paper on your copies of its data",
        description="Run every row of the paper's tables on the sets that are at hand, and print "
        "ours beside the paper's printed figures. Nothing is downloaded but the default weights. "
        "What is worked out is kept in the --out folder: the same command goes on after an "
        "interruption, and other tables share its features.",
    )
    parser.add_argument(
        "tables", nargs="+", choices=TABLE_NAMES, metavar="TABLE", help="table1 ... table7, fig4"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for results and features")
    sets = parser.add_argument_group("sets (docs/datasets.md says how they are laid out)")
    sets.add_argument("--oxford", metavar="F", help="Oxford5k")
    sets.add_argument("--paris", metavar="F", help="Paris6k")
    sets.add_argument("--flickr100k", metavar="F", help="Flickr100k, for tables 3 and 4")
    sets.add_argument("--large", metavar="F", help="a table of photos with GPS, for tables 5 to 7")
    sets.add_argument(
        "--smoke",
        metavar="FOLDER",
        help="ask a folder in the library's own format in place of every set; implies --small",
    )
    sets.add_argument(
        "--training",
        metavar="F",
        help="photos to learn PCAs and whitenings from, a subfolder for each label",
    )
    sets.add_argument("--lift", metavar="F", help="what LIFT's released code wrote")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help="a network that the paper names: SD, LF, LC, Att-LC, LC+RS, LF+RS, DIR, siaMAC, or "
        "imagenet for the trunk that stands in; may be repeated",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="few photos and queries, small photos, two points of the grid: to see that everything "
        "runs; no figures to quote",
    )
    parser.add_argument(
        "--lists",
        type=positive,
        metavar="N",
        help="index by N posting lists of 50-bit codes in place of the tree; the paper has 8000 in "
        "tables 5 to 7",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each table")
    add_machine_options(parser.add_argument_group("machine"))
    parser.add_argument(
        "--max-candidates",
        type=positive,
        metavar="N",
        help="photos verified for each query; default 500",
    )
    add_progress_options(parser)
    parser.set_defaults(run=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from delfsearch.evaluation.paper.output import as_json, as_markdown, write_table
    from delfsearch.evaluation.paper.reproduce import ReproduceSettings, reproduce
    from delfsearch.evaluation.paper.sets import Sources
    from delfsearch.evaluation.running.runnable import SearchSettings

    names = ("oxford", "paris", "flickr100k", "large", "smoke", "training")
    sources = Sources(**{name: _folder(getattr(arguments, name)) for name in names})
    search = SearchSettings(
        n_jobs=-1 if arguments.threads is None else arguments.threads,
        lists=None if arguments.lists is None else {"n_lists": arguments.lists},
        max_candidates=arguments.max_candidates or SearchSettings().max_candidates,
    )
    options: dict[str, Any] = {
        "weights": dict(arguments.weights),
        "lift": _folder(arguments.lift),
        "search": search,
        "device": arguments.device or "auto",
    }
    small = arguments.small or sources.smoke is not None
    settings = ReproduceSettings.small(**options) if small else ReproduceSettings(**options)
    out = Path(arguments.out)
    for name in dict.fromkeys(arguments.tables):
        shown = StagedProgress(progress_interval(arguments))
        try:
            result = reproduce(
                name,
                sources,
                out / "work",
                settings=settings,
                progress=_into(shown),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "interrupted; what is finished is kept, and the same command goes on from there"
            ) from None
        finally:
            shown.finish()
        files = write_table(result, sources, out)
        if arguments.json:
            answer(json.dumps(as_json(result, sources), allow_nan=False), flush=True)
        else:
            answer(as_markdown(result), flush=True)
        say("written: " + ", ".join(map(str, files)))
    return EXIT_OK


def _into(shown: StagedProgress) -> Callable[[str, str, str, int, int], None]:
    def update(row: str, dataset: str, what: str, done: int, total: int) -> None:
        shown.update(f"{what} ({row}; {dataset})", done, total)

    return update


def _folder(text: str | None) -> Path | None:
    return None if text is None else existing_folder(text)
