"""delfsearch report: every system on a folder with ground truth, measured and written down."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from delfsearch.cli.common import (
    EXIT_OK,
    CommandError,
    add_machine_options,
    add_progress_options,
    existing_folder,
    named_file,
    positive,
    progress_interval,
)
from delfsearch.cli.output import answer, say
from delfsearch.cli.progress import StagedProgress

_WEIGHTS = ("delf", "dir", "siamac")


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="measure every system on a folder with ground truth",
        description="Run DELF and every system it is compared with on a folder in the library's "
        "own format (photos.csv, ground_truth.json; docs/datasets.md), and write tables with "
        "intervals, precision-recall curves, costs and the worst failures. What is worked out is "
        "kept in the --out folder: the same command goes on after an interruption.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="photographs with ground truth")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="for features, answers and drawn failures"
    )
    parser.add_argument(
        "--results",
        metavar="FILE.md",
        help="the report, with its JSON and curves beside it; default results.md in --out",
    )
    parser.add_argument(
        "--systems",
        metavar="A,B",
        type=_listed(","),
        default=(),
        help="only these, the first being compared with the others: delf-l2-0.25-1, "
        "delf-l2-0.25-2, rootsift, congas, xfeat, aliked, dir, dir+qe, siamac, siamac+qe; "
        "delf-attention-0.25-1, delf-attention-0.25-2 where the weights have attention; "
        "delf-imagenet-l2-0.25-1, delf-imagenet-l2-0.25-2, what training started from",
    )
    parser.add_argument(
        "--beside",
        metavar="A,B",
        type=_listed(","),
        default=(),
        help="compare the others with each of these systems; default the first",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help=f"weights of {', '.join(_WEIGHTS)}; without them docs/baselines.md says what runs. "
        "delf=FOLDER with fold-0.safetensors, fold-1.safetensors, ...: each query is answered by "
        "the weights that held its scene out of their training",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="SUBSET",
        help="count the headline a second time without this subset of distractors, or a pattern "
        "such as scene15_*; may be repeated",
    )
    parser.add_argument(
        "--without-trained",
        action="store_true",
        help="count the headline a second time without the photos that the weights of folds were "
        "trained on, which their recipes must list",
    )
    parser.add_argument(
        "--together",
        action="append",
        default=[],
        type=_listed("+"),
        metavar="A+B",
        help="a table for these subsets together, beside one for each; may be repeated",
    )
    parser.add_argument(
        "--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap; 1000"
    )
    parser.add_argument("--no-pictures", action="store_true", help="do not draw the worst failures")
    parser.add_argument(
        "--small",
        action="store_true",
        help="photos of at most 256 pixels and short vectors: to see that everything runs; no "
        "figures to quote",
    )
    add_machine_options(parser.add_argument_group("machine"))
    add_progress_options(parser)
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from delfsearch.evaluation.folder import PhotoFolder
    from delfsearch.evaluation.report.standing import ReportSettings, make_report
    from delfsearch.evaluation.report.written import check_writable, write_report

    for name, _ in arguments.weights:
        if name not in _WEIGHTS:
            raise CommandError(f"--weights takes {', '.join(_WEIGHTS)}; got {name!r}")
    folder = PhotoFolder.read(existing_folder(arguments.folder))
    settings = ReportSettings(
        systems=arguments.systems,
        beside=arguments.beside,
        weights=dict(arguments.weights),
        options=_SMALL if arguments.small else {},
        without=tuple(arguments.without),
        without_trained=arguments.without_trained,
        together=tuple(arguments.together),
        n_resamples=arguments.resamples,
        device=arguments.device or "auto",
        n_jobs=-1 if arguments.threads is None else arguments.threads,
    )
    out = Path(arguments.out)
    results = Path(arguments.results) if arguments.results else out / "results.md"
    check_writable(results)
    shown = StagedProgress(progress_interval(arguments))
    try:
        report = make_report(
            folder,
            out / "work",
            settings=settings,
            progress=lambda system, what, done, total: shown.update(
                f"{what} ({system})", done, total
            ),
        )
        files = write_report(
            report,
            results,
            out / "failures",
            out / "work",
            draw=not arguments.no_pictures,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted; what is finished is kept, and the same command goes on from there"
        ) from None
    finally:
        shown.finish()
    answer(files[0].read_text(encoding="utf-8"), flush=True)
    say("written: " + ", ".join(map(str, files)))
    return EXIT_OK


_SMALL: dict[str, dict[str, object]] = {
    **{name: {"max_side": 256} for name in ("delf", "rootsift", "congas", "xfeat", "aliked")},
    "dir": {"sides": (160, 224), "n_components": 64},
    "siamac": {"max_side": 256, "n_components": 64},
}


def _listed(separator: str) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(separator))
        if not all(names):
            raise argparse.ArgumentTypeError(f"want names with {separator!r} between; got {text!r}")
        return names

    return parse
