"""delfsearch query: which photos of the index show what these photos show?"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import (
    EXIT_ERROR,
    EXIT_OK,
    CommandError,
    add_machine_options,
    bounds,
    box,
    check_plot_target,
    conditions,
    load_search,
    positive,
    save_figure,
)
from delfsearch.cli.output import answer, hits_as_json, hits_as_text, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delfsearch.matches import Hit
    from delfsearch.search import ImageSearch
    from delfsearch.where import Where


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "query",
        help="find the photos that show what a photo shows",
        description="Print the photos of the index that show the same place, building or object, "
        "each with its number of geometrically verified matches, grouped by place where photos "
        "have a label; or 'no match', which is an answer too (exit code 0).",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("photos", metavar="PHOTO", nargs="+")
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="default 10")
    parser.add_argument(
        "--min-inliers",
        type=positive,
        metavar="N",
        help="a photo with fewer verified matches is not an answer; default: the index's own",
    )
    parser.add_argument(
        "--box", type=box, metavar="X0,Y0,X1,Y1", help="ask only for this part, in pixels"
    )
    filters = parser.add_argument_group("which photos may answer (all that is given must hold)")
    filters.add_argument(
        "--label",
        action="append",
        metavar="NAME",
        help="this label, or one of several given so",
    )
    filters.add_argument(
        "--near-box",
        type=bounds,
        metavar="S,W,N,E",
        help="within these degrees (south, west, north, east; west > east crosses the 180th "
        "meridian). Write --near-box=-34,... where the first is negative",
    )
    filters.add_argument(
        "--where",
        type=conditions,
        metavar="JSON",
        help="any condition, as the library takes it: '{\"ids\": [1, 2]}', "
        '\'{"metadata": {"year": {"min": 2010}}}\'',
    )
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON for each photo, nothing else"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the best hit's match lines")
    parser.add_argument(
        "--plot-hit", type=positive, default=1, metavar="N", help="draw the N-th hit instead"
    )
    add_machine_options(parser)
    parser.set_defaults(run=_query)


def _query(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        if len(arguments.photos) > 1:
            raise CommandError("--plot draws one query; give one photo")
        check_plot_target(arguments.plot)
    elif arguments.plot_hit != 1:
        raise CommandError("--plot-hit says which hit --plot draws; give --plot FILE.png too")
    if arguments.box is not None and len(arguments.photos) > 1:
        raise CommandError("--box is a part of one photo; give one photo")

    where = _where(arguments)

    from delfsearch.errors import PhotoError

    search = load_search(arguments)
    code = EXIT_OK
    for photo in arguments.photos:
        started = time.perf_counter()
        try:
            hits = search.query(
                photo,
                box=arguments.box,
                top=arguments.top,
                min_inliers=arguments.min_inliers,
                where=where,
            )
        except PhotoError as error:
            # The other photos still get their answers.
            say(f"delfsearch: error: {error}")
            code = EXIT_ERROR
            continue
        seconds = time.perf_counter() - started
        if arguments.json:
            answer(hits_as_json(photo, hits), flush=True)
        else:
            answer(hits_as_text(photo, hits, seconds), flush=True)
        if arguments.plot is not None:
            _plot(search, photo, hits, arguments.plot, arguments.plot_hit)
    return code


def _where(arguments: argparse.Namespace) -> Where:
    from delfsearch.where import Where

    given = dict(arguments.where or {})
    for option, name in (("label", "label"), ("near_box", "bounds")):
        value = getattr(arguments, option)
        if value is None:
            continue
        if name in given:
            raise CommandError(f"--{option.replace('_', '-')} and --where both say {name}")
        given[name] = value
    try:
        return Where.of(given) or Where()
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None


def _plot(search: ImageSearch, photo: str, hits: Sequence[Hit], target: str, number: int) -> None:
    from delfsearch.plotting import plot_matches

    if not hits:
        say(f"no match, so no plot: {target} is not written")
        return
    if number > len(hits):
        raise CommandError(f"--plot-hit {number}: there are only {len(hits)} hits")
    hit = hits[number - 1]
    ax = plot_matches(photo, search.path_of(hit), hit)
    save_figure(ax.figure, target)
    say(f"match lines of hit {number} drawn: {target}")
