"""delfsearch index, add, remove, info: what changes an index or describes it."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delfsearch.cli.common import (
    EXIT_CHECK_FAILED,
    EXIT_ERROR,
    EXIT_OK,
    CommandError,
    add_extractor_options,
    add_machine_options,
    add_progress_options,
    load_search,
    make_extractor,
    photo_files,
    positive,
    progress_interval,
    typical_size,
)
from delfsearch.cli.output import answer, counted, format_bytes, say
from delfsearch.cli.progress import ShownProgress, format_seconds
from delfsearch.storage.photo_files import name_of, printable


def add_parsers(commands: Any) -> None:
    """Add the commands."""
    parser = commands.add_parser(
        "index",
        help="index a folder of photos",
        description="Index every photo in a folder and its subfolders. Interrupted, the same "
        "command goes on where it stopped. Photos that cannot be read are listed at the end with "
        "the reason and do not stop the rest (exit code 0 if at least one could be).",
    )
    parser.add_argument("photos", metavar="PHOTOS", help="folder")
    parser.add_argument("index", metavar="INDEX", help="folder to write; made if needed")
    parser.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="table with the columns path (relative to PHOTOS) and label: hits of one label are "
        "shown as one place",
    )
    parser.add_argument(
        "--pca",
        choices=("own", "general"),
        help="own: learn the reduction to --dimensions from these photos; general: the one that "
        "comes with the weights. Default: general where the weights have one",
    )
    group = parser.add_argument_group("index")
    group.add_argument(
        "--method",
        choices=("auto", "kdtree", "ivf"),
        default="auto",
        help="kdtree: 8 bits a dimension; ivf: posting lists of 50-bit codes, for collections that "
        "outgrow memory. Default: auto, ivf from 20 million descriptors on",
    )
    group.add_argument(
        "--n-lists", type=positive, default=8000, metavar="N", help="posting lists; default 8000"
    )
    group.add_argument(
        "--postings",
        choices=("auto", "features", "photos"),
        default="auto",
        help="what the lists name; photos takes less memory. Default: auto, photos from 200 "
        "million descriptors on",
    )
    group.add_argument(
        "--rerank",
        type=int,
        default=0,
        metavar="R",
        help="compare the R best codes of each descriptor by 8 bits a dimension; default 0",
    )
    add_extractor_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_index)

    parser = commands.add_parser(
        "add",
        help="add photos to an index",
        description="Add photos to an index. Photos that are in it already are passed over, or "
        "replaced where the file has changed. Photos that cannot be read are listed at the end "
        "with the reason and do not stop the rest (exit code 0 if at least one could be).",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photo, or folder of photos")
    parser.add_argument("--labels", metavar="FILE.csv", help="as for index; paths as given here")
    add_machine_options(parser)
    add_progress_options(parser)
    parser.set_defaults(run=_add)

    parser = commands.add_parser(
        "remove",
        help="remove photos from an index",
        description="Remove photos from an index; the photo files stay. All or none: an id or "
        "path that the index does not hold is an error and nothing is removed.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("photos", metavar="PHOTO|ID", nargs="+", help="as `query` shows them")
    parser.set_defaults(run=_remove)

    parser = commands.add_parser("info", help="describe an index")
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "--check", action="store_true", help="verify every byte too; exit code 1 if it is damaged"
    )
    parser.set_defaults(run=_info)


def _index(arguments: argparse.Namespace) -> int:
    from delfsearch.index.builder import check_place
    from delfsearch.index.delf_index import DelfIndex
    from delfsearch.search import ImageSearch

    labels = None if arguments.labels is None else read_labels(arguments.labels)
    if not os.path.isdir(arguments.photos):  # said now, not after the weights are loaded
        problem = "is no folder" if os.path.exists(arguments.photos) else "does not exist"
        raise CommandError(f"PHOTOS must be a folder; {arguments.photos} {problem}")
    check_place(Path(arguments.index))
    extractor = make_extractor(arguments)
    if arguments.pca == "general":
        extractor.get_state()  # says so where the weights have none
    if not arguments.quiet:
        _say_expected_time(extractor, photo_files(arguments.photos), arguments)
    index = DelfIndex(
        method=arguments.method,
        n_lists=arguments.n_lists,
        postings=arguments.postings,
        rerank=arguments.rerank,
        max_squared_distance=extractor.max_squared_distance,
    )
    search = ImageSearch(extractor, index)
    every_s = progress_interval(arguments)
    with ShownProgress(every_s, "the same command goes on from there") as progress:
        search.fit(
            arguments.photos,
            labels,
            index_path=arguments.index,
            progress=progress,
            learn_reduction=arguments.pca == "own",
        )
    _say_left_out(search.skipped_, search.duplicates_)
    answer(
        f"{arguments.index}: {counted(len(search), 'photo')}, "
        f"{search.index_.n_descriptors} descriptors, {format_seconds(progress.seconds)}"
    )
    return EXIT_OK


def _add(arguments: argparse.Namespace) -> int:
    labels = None if arguments.labels is None else read_labels(arguments.labels)
    files = []
    for photo in arguments.photos:
        found = photo_files(photo)
        if not found:
            raise CommandError(f"found no photos in {photo}")
        files += found
    search = load_search(arguments)
    if not arguments.quiet:
        _say_expected_time(search.extractor_, files, arguments)
    with ShownProgress(progress_interval(arguments), "the same command adds the rest") as progress:
        ids = search.add(files, labels, progress=progress)
    # What earlier commands left out is not this one's affair, unless it was given again.
    given = {printable(name_of(file, search.photo_root_)) for file in files}
    skipped, duplicates = (
        [entry for entry in group if entry[0] in given]
        for group in (search.skipped_, search.duplicates_)
    )
    _say_left_out(skipped, duplicates)
    answer(
        f"{arguments.index}: {counted(len(ids), 'photo')} added or changed, {len(search)} in all, "
        f"{format_seconds(progress.seconds)}"
    )
    return EXIT_ERROR if len(skipped) == len(given) else EXIT_OK


def _remove(arguments: argparse.Namespace) -> int:
    from delfsearch.search import ImageSearch

    search = ImageSearch.load(arguments.index)
    # A number is an id unless a file has that name.
    photos = [
        int(photo) if photo.isdecimal() and not os.path.exists(photo) else photo
        for photo in arguments.photos
    ]
    try:
        ids = search.remove(photos)
    except KeyError as error:  # its text, without the quotes of str(KeyError)
        raise CommandError(str(error.args[0])) from None
    answer(f"{arguments.index}: {counted(len(ids), 'photo')} removed, {len(search)} left")
    return EXIT_OK


def _info(arguments: argparse.Namespace) -> int:
    from delfsearch.errors import IndexFormatError
    from delfsearch.search import ImageSearch

    try:
        search = ImageSearch.load(arguments.index, verify=arguments.check)
    except IndexFormatError as error:
        if not arguments.check:
            raise
        answer(f"{arguments.index}: DAMAGED: {error}")
        return EXIT_CHECK_FAILED
    index = search.index_
    memory = index.memory_usage()
    labels = {record.label for record in index.images() if record.label is not None}
    size = sum(file.stat().st_size for file in Path(arguments.index).rglob("*") if file.is_file())
    for name, value in {
        "photos": f"{len(search)}, in {search.photo_root_}",
        "places": f"{len(labels)} labels",
        "left out": f"{len(search.skipped_)} unreadable, {len(search.duplicates_)} duplicates",
        "descriptors": f"{index.n_descriptors} of {index.dimension_} dimensions",
        "on disk": f"{format_bytes(size)}, {memory['bytes_per_descriptor']:.1f} bytes a "
        f"descriptor, {memory['in_memory_per_descriptor']:.1f} of them in memory",
        "extractor": _described((index.attachment("extractor") or ({},))[0]),
        "method": index.method_
        + (f", postings of {index.postings_}" if index.method_ == "ivf" else ""),
        "index": _described(index.get_params()),
        "verifier": _described(search.verifier_.get_params()),
    }.items():
        answer(f"{name:<12} {value}")
    if arguments.check:
        answer(f"{'check':<12} every byte fits its checksum")
    return EXIT_OK


def _described(parameters: Mapping[str, Any]) -> str:
    hidden = ("n_jobs", "verbose", "device", "weights_sha256")
    shown = {name: value for name, value in parameters.items() if name not in hidden}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def read_labels(table: str) -> dict[str, str]:
    """Return label by path from a CSV table with the columns path and label (or scene)."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        column = next((name for name in ("label", "scene") if name in columns), None)
        if "path" not in columns or column is None:
            raise CommandError(
                f"{table} must have the columns path and label; got {', '.join(columns) or 'none'}"
            )
        return {row["path"]: row[column] for row in rows if row["path"] and row[column]}


def _say_expected_time(
    extractor: Any, files: Sequence[Path], arguments: argparse.Namespace
) -> None:
    if not files:
        return
    n_photos = len(files)
    if getattr(arguments, "pca", None) == "own":
        n_photos += min(n_photos, extractor.n_fit_photos)  # they are extracted twice
    seconds = extractor.estimate_seconds(n_photos, image_size=typical_size(files))
    hint = ""
    if seconds > 600 and getattr(arguments, "preset", "") == "full" and arguments.scales is None:
        hint = "; --preset fast takes about a quarter of it"
    # It is processor time over threads: what else runs here is not in it.
    say(
        f"{counted(len(files), 'photo')}: about {format_seconds(seconds)} where all are new and "
        f"nothing else runs{hint}"
    )


def _say_left_out(
    skipped: Sequence[tuple[str, str]], duplicates: Sequence[tuple[str, str]]
) -> None:
    if duplicates:
        say(f"{counted(len(duplicates), 'photo')} with the very content of another, not indexed:")
        for path, first in duplicates:
            say(f"  {path}: same as {first}")
    if skipped:
        say(f"{counted(len(skipped), 'file')} could not be used:")
        for path, reason in skipped:
            say(f"  {path}: {reason}")
