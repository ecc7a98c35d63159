"""The demo: index real photographs, query them with changed views and with photographs of others.

Without arguments it uses photographs that installed packages carry (demo_photos.py), knows which
answer is right, and says so; with a folder and a photo of one's own it shows what is found.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import typical_size
from delfsearch.cli.output import counted, hits_as_text
from delfsearch.cli.progress import format_seconds
from delfsearch.demo_photos import DemoQuery, write_demo_photos
from delfsearch.matches import Hit
from delfsearch.storage.photo_files import find_photos

if TYPE_CHECKING:
    from delfsearch.extraction.extractor import DelfExtractor
    from delfsearch.search import ImageSearch

Write = Callable[[str], None]
Progress = Callable[[int, int, float, str], None]
_INDEX_NAME = "demo-index"


@dataclass(frozen=True)
class Answer:
    """What one query of the demo came to."""

    query: DemoQuery
    hits: list[Hit]
    seconds: float

    @property
    def n_false(self) -> int:
        """Number of photos in the answer that do not show what the query shows."""
        return sum(Path(hit.path or "").name != self.query.truth for hit in self.hits)

    @property
    def is_right(self) -> bool:
        """Whether the right photo is first, or nothing was found where there is nothing."""
        if self.query.truth is None:
            return not self.hits
        return bool(self.hits) and Path(self.hits[0].path or "").name == self.query.truth


def run_demo(
    out: Path,
    extractor: DelfExtractor,
    *,
    write: Write,
    min_inliers: int | None = None,
    plots: bool = True,
    progress: Progress | None = None,
) -> bool:
    """Run the demo on the photographs that packages carry.

    out : folder for the photos, the index and the plots; made if needed, files of an earlier demo
        in it are replaced.
    extractor : what turns photos into features. write : takes the lines of the report.
    min_inliers : photos with fewer are no answer; None means the verifier's own.
    plots : whether to draw (needs matplotlib). progress : as in ImageSearch.fit.
    Returns whether every answer was right and no false photo was in any.
    Raises ImportError where a package of the ``demo`` extra is missing.
    """
    started = time.perf_counter()
    demo = write_demo_photos(out)
    write(
        f"Photos: {len(demo.labels)} photographs to index and {len(demo.queries)} queries, from "
        f"files that {', '.join(demo.packages)} install\n"
        "  (queries are changed views made just now, one second photograph, and photographs of "
        "things that are not in the index)"
    )
    _describe_extractor(extractor, write)
    labels = [demo.labels[path] for path in demo.labels]
    search = _index(out / _INDEX_NAME, extractor, list(demo.labels), labels, write, progress)
    least = search.verifier_.min_inliers if min_inliers is None else min_inliers

    write(f"\nQueries, best answer first; a photo is an answer from {least} verified matches on:")
    write(f"  {'query':<26}{'answer':<22}{'inliers':>7}{'time':>9}   verdict")
    answers = []
    for query in demo.queries:
        answer = _ask(search, query, least)
        answers.append(answer)
        for line in _lines(answer):
            write(line)
    written = _draw(search, extractor, answers, out, write) if plots else []

    matched = [answer for answer in answers if answer.query.truth is not None]
    unmatched = [answer for answer in answers if answer.query.truth is None]
    n_false = sum(answer.n_false for answer in answers)
    n_found, n_rejected = (sum(a.is_right for a in group) for group in (matched, unmatched))
    write(
        f"\nResult: {n_found} of {len(matched)} changed views found their photo first; "
        f"{n_rejected} of {len(unmatched)} photographs without a match were rejected; "
        f"{n_false} false photo{'' if n_false == 1 else 's'} in all answers."
    )
    _say_files(out, written, write)
    write(f"Total time {format_seconds(time.perf_counter() - started)}.")
    return all(answer.is_right for answer in answers) and n_false == 0


def run_own_demo(
    out: Path,
    extractor: DelfExtractor,
    photos: Path,
    query: Path,
    *,
    write: Write,
    min_inliers: int | None = None,
    plots: bool = True,
    progress: Progress | None = None,
) -> None:
    """Index a folder of one's own, ask for one photo, print the answers and draw the best three."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    _describe_extractor(extractor, write)
    search = _index(out / _INDEX_NAME, extractor, photos, None, write, progress)
    answer = _ask(search, DemoQuery(query, "", None), min_inliers)
    write("\n" + hits_as_text(str(query), answer.hits, answer.seconds))
    written = []
    if plots:
        for rank, hit in enumerate(answer.hits[:3], start=1):
            target = out / f"match_{rank}.png"
            _save_matches(search, query, hit, target)
            written.append(target)
        written.append(_save_scores(extractor, query, out))
    _say_files(out, written, write)
    write(f"Total time {format_seconds(time.perf_counter() - started)}.")


def _describe_extractor(extractor: DelfExtractor, write: Write) -> None:
    from delfsearch.extraction.weights import load_weights

    started = time.perf_counter()
    weights = load_weights(extractor.weights)
    seconds = time.perf_counter() - started
    score = extractor.score
    if score == "auto":
        score = "attention" if weights.attention else "l2 (these weights have no attention head)"
    reduction = "that comes with the weights" if weights.pca else "learned from the indexed photos"
    write(
        f"Weights: {weights.name} ({weights.provenance}; licence {weights.licence}; sha256 "
        f"{weights.sha256[:12]}), read in {format_seconds(seconds)}"
    )
    write(
        f"Features: the best {extractor.max_features} a photo by score {score}, pyramid scales "
        f"{extractor.scales}, photos at most {extractor.max_side} px; "
        f"{extractor.n_components} dimensions by a PCA {reduction}"
    )


def _index(
    folder: Path,
    extractor: DelfExtractor,
    photos: Any,
    labels: Sequence[str] | None,
    write: Write,
    progress: Progress | None,
) -> ImageSearch:
    from delfsearch.search import ImageSearch
    from delfsearch.storage.catalog import FILE_NAME

    if folder.exists():  # the index of an earlier demo, and nothing else
        if not (folder / FILE_NAME).is_file():
            raise FileExistsError(
                f"{folder} exists and holds no index; delete it or choose another --out"
            )
        shutil.rmtree(folder)
    files = find_photos(photos) if isinstance(photos, Path) else photos
    if files:
        expected = extractor.estimate_seconds(len(files), image_size=typical_size(files))
        write(f"Indexing {counted(len(files), 'photo')}: about {format_seconds(expected)}")
    started = time.perf_counter()
    search = ImageSearch(extractor).fit(photos, labels, index_path=folder, progress=progress)
    seconds = time.perf_counter() - started
    write(
        f"Index: {len(search)} photos, {search.index_.n_descriptors} descriptors in "
        f"{format_seconds(seconds)}"
    )
    for path, reason in search.skipped_:
        write(f"  skipped {path}: {reason}")
    return search


def _ask(search: ImageSearch, query: DemoQuery, min_inliers: int | None) -> Answer:
    started = time.perf_counter()
    hits = search.query(query.path, min_inliers=min_inliers)
    return Answer(query, hits, time.perf_counter() - started)


def _lines(answer: Answer) -> list[str]:
    verdict = "right" if answer.is_right else "WRONG"
    if not answer.hits:
        verdict += ": rejected" if answer.is_right else ": not found"
    first = f"  {answer.query.path.stem:<26}"
    took = f"{format_seconds(answer.seconds):>9}"
    if not answer.hits:
        return [f"{first}{'no match':<22}{'':>7}{took}   {verdict}", _note(answer)]
    lines = []
    for rank, hit in enumerate(answer.hits[:5]):
        name = Path(hit.path or "").name
        start, end = (first, f"{took}   {verdict}") if rank == 0 else (" " * 28, "")
        lines.append(f"{start}{name:<22}{hit.n_inliers:>7}{end}")
    lines.insert(1, _note(answer))
    return lines


def _note(answer: Answer) -> str:
    return f"    ({answer.query.description})"


def _draw(
    search: ImageSearch,
    extractor: DelfExtractor,
    answers: Sequence[Answer],
    out: Path,
    write: Write,
) -> list[Path]:
    from delfsearch.plotting import plot_ranked

    started = time.perf_counter()
    written = []
    for answer in answers:
        if answer.hits:
            target = out / f"match_{answer.query.path.stem}.png"
            _save_matches(search, answer.query.path, answer.hits[0], target)
            written.append(target)
    first = answers[0]
    figure = plot_ranked(
        first.query.path,
        first.hits,
        relevant=[Path(hit.path or "").name == first.query.truth for hit in first.hits],
        photo_of=search.path_of,
        title="the first query and its answers (green: right, red: wrong)",
    )
    figure.savefig(out / "ranked.png")
    written.append(out / "ranked.png")
    written.append(_save_scores(extractor, first.query.path, out))
    write(f"\nPlots: {len(written)} in {format_seconds(time.perf_counter() - started)}")
    return written


def _save_matches(search: ImageSearch, query: Path, hit: Hit, target: Path) -> None:
    from delfsearch.plotting import plot_matches

    plot_matches(query, search.path_of(hit), hit).figure.savefig(target)


def _save_scores(extractor: DelfExtractor, photo: Path, out: Path) -> Path:
    from delfsearch.plotting import plot_scores

    target = out / f"scores_{photo.stem}.png"
    plot_scores(photo, extractor.score_map(photo)).figure.savefig(target)
    return target


def _say_files(out: Path, written: Sequence[Path], write: Write) -> None:
    write(f"Files: the index {out / _INDEX_NAME}")
    if written:
        write("  plots " + ", ".join(path.name for path in written) + f" in {out}")
