"""The photographs of the demo: real ones that registry packages carry, and changed views of them.

Nothing is fetched and none is copied into this project: scikit-image, scikit-learn and matplotlib
install them. A changed view is a photograph put through a known homography, crop, zoom, change of
light, noise and JPEG compression; the one exception, ``motorcycle_right``, is a second photograph
taken from another place.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FOLDER_IN = {
    "skimage": "data",
    "sklearn": "datasets/images",
    "matplotlib": "mpl-data/sample_data",
}
_PIP_NAME = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}

# (package, file, what it shows)
DATABASE = (
    ("sklearn", "china.jpg", "Summer Palace, Beijing"),
    ("skimage", "motorcycle_left.png", "motorcycle in a garage"),
    ("skimage", "rocket.jpg", "rocket on its launch pad"),
    ("skimage", "camera.png", "photographer on a lawn"),
    ("skimage", "coffee.png", "cup of coffee"),
    ("skimage", "astronaut.png", "Eileen Collins"),
    ("skimage", "chelsea.png", "Chelsea the cat"),
    ("skimage", "coins.png", "coins of Pompeii"),
    ("skimage", "hubble_deep_field.jpg", "Hubble deep field"),
    ("skimage", "brick.png", "brick wall"),
    ("skimage", "gravel.png", "gravel"),
    ("skimage", "retina.jpg", "retina of an eye"),
)
# Left out of the database: nothing there shows the same thing. Two are hard on purpose: a portrait
# before the same flag as another portrait's, and a texture much like another texture.
UNMATCHED = (
    ("sklearn", "flower.jpg", "a flower"),
    ("matplotlib", "grace_hopper.jpg", "another portrait before a flag"),
    ("skimage", "grass.png", "a lawn (a texture, like the gravel)"),
    ("skimage", "moon.png", "the moon"),
    ("skimage", "page.png", "a printed page"),
)


@dataclass(frozen=True)
class View:
    """How to change a photograph, everything that changes at once.

    tilt_x, tilt_y : perspective, as if seen from the side or from above; 0.2 is strong.
    rotation : degrees. crop : (left, top, right, bottom) as shares of the sides, taken first.
    zoom : size of the result relative to the crop. gamma : light, over 1 is darker.
    tint : factor on red, green, blue. noise : standard deviation in grey levels.
    quality : of the JPEG compression.
    """

    tilt_x: float = 0.0
    tilt_y: float = 0.0
    rotation: float = 0.0
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    zoom: float = 1.0
    gamma: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.0
    quality: int = 90


# (file that it is made from, name of the query, what was done, how)
VIEWS = (
    (
        "china.jpg",
        "palace_from_the_side",
        "seen from the side, JPEG quality 25",
        View(tilt_x=0.22, quality=25),
    ),
    (
        "china.jpg",
        "palace_at_dusk",
        "a 55% crop at 1.5 x the size, dark, yellow light",
        View(crop=(0.2, 0.1, 0.75, 0.75), zoom=1.5, gamma=1.8, tint=(1.0, 0.85, 0.6)),
    ),
    (
        "rocket.jpg",
        "rocket_detail",
        "a crop at 1.6 x the size, JPEG quality 30",
        View(crop=(0.25, 0.0, 0.8, 0.9), zoom=1.6, quality=30),
    ),
    (
        "camera.png",
        "photographer_overexposed",
        "60% of the size, overexposed, noise",
        View(zoom=0.6, gamma=0.5, noise=8.0),
    ),
    (
        "coffee.png",
        "coffee_from_above",
        "seen from above, 70% of the size, blue light",
        View(tilt_y=0.18, zoom=0.7, tint=(0.7, 0.85, 1.0)),
    ),
    (
        "astronaut.png",
        "astronaut_tilted",
        "turned by 12 degrees, from the side, dark",
        View(rotation=12.0, tilt_x=-0.12, gamma=1.6),
    ),
    (
        "chelsea.png",
        "cat_close",
        "the left 70% at 1.5 x the size, noise",
        View(crop=(0.0, 0.0, 0.7, 1.0), zoom=1.5, noise=12.0),
    ),
    (
        "coins.png",
        "coins_tilted",
        "seen from above and the side, JPEG quality 30",
        View(tilt_x=0.12, tilt_y=0.15, zoom=1.2, quality=30),
    ),
    (
        "retina.jpg",
        "retina_part",
        "most of it at 60% of the size, dark",
        View(crop=(0.15, 0.1, 0.95, 0.9), zoom=0.6, gamma=1.4),
    ),
)
# A photograph of its own, taken 20 cm further to the right.
SECOND_PHOTOGRAPH = ("skimage", "motorcycle_right.png", "motorcycle_left.png")


@dataclass(frozen=True)
class DemoQuery:
    """One query: its photo, what it is, and the database photo it should find (None: no match)."""

    path: Path
    description: str
    truth: str | None


@dataclass(frozen=True)
class DemoPhotos:
    """The photographs of the demo: label of each database photo by its path, and the queries."""

    labels: dict[Path, str]
    queries: tuple[DemoQuery, ...]
    packages: tuple[str, ...]


def write_demo_photos(folder: Path) -> DemoPhotos:
    """Copy the database photos to folder/photos and write the queries to folder/queries.

    Returns what was written, in a fixed order; the bytes are the same on every run.
    Raises ImportError where a package that carries photographs is not installed.
    """
    photos, queries = folder / "photos", folder / "queries"
    for target in (photos, queries):
        target.mkdir(parents=True, exist_ok=True)
    labels = {}
    for package, name, label in DATABASE:
        labels[Path(shutil.copyfile(find_photo(package, name), photos / name))] = label
    made = []
    for seed, (name, query, change, view) in enumerate(VIEWS):
        path = queries / f"{query}.jpg"
        with Image.open(photos / name) as photo:
            changed_view(photo, view, seed=seed).save(path, quality=view.quality)
        made.append(DemoQuery(path, f"{name}: {change}", truth=name))
    package, name, truth = SECOND_PHOTOGRAPH
    path = Path(shutil.copyfile(find_photo(package, name), queries / name))
    made.insert(2, DemoQuery(path, f"{truth}: photographed from another place", truth=truth))
    for package, name, label in UNMATCHED:
        path = Path(shutil.copyfile(find_photo(package, name), queries / name))
        made.append(DemoQuery(path, f"not in the index: {label}", truth=None))
    used = {package for package, _, _ in (*DATABASE, *UNMATCHED)}
    return DemoPhotos(labels, tuple(made), tuple(sorted(_PIP_NAME[package] for package in used)))


def find_photo(package: str, name: str) -> Path:
    """Return the path of a photograph that an installed package carries, not importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"the demo's photographs come with {_PIP_NAME[package]}, which is not installed: "
            "pip install delfsearch[demo]"
        )
    path = Path(spec.submodule_search_locations[0]) / _FOLDER_IN[package] / name
    if not path.is_file():
        raise ImportError(f"this version of {_PIP_NAME[package]} does not carry {name}")
    return path


def changed_view(photo: Image.Image, view: View, *, seed: int) -> Image.Image:
    """Return the photo as seen after the change; what lies outside the photo is left out."""
    image = photo.convert("RGB")
    width, height = image.size
    left, top, right, bottom = view.crop
    box = (left * width, top * height, right * width, bottom * height)
    size = (round((box[2] - box[0]) * view.zoom), round((box[3] - box[1]) * view.zoom))
    corners = _seen_corners(view, box)
    frame = ((0.0, 0.0), (size[0], 0.0), size, (0.0, size[1]))
    # Pillow reads few source pixels for each result pixel: shrink first, or the result aliases.
    shrink = min(view.zoom, 1.0)
    if shrink < 1.0:
        image = image.resize((round(width * shrink), round(height * shrink)), Image.Resampling.BOX)
        corners = corners * [image.size[0] / width, image.size[1] / height]
    coefficients = _homography(frame, corners)
    image = image.transform(
        size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    levels = (np.asarray(image, np.float64) / 255.0) ** view.gamma * view.tint * 255.0
    if view.noise > 0:
        levels = levels + np.random.default_rng(seed).normal(0.0, view.noise, levels.shape)
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _seen_corners(view: View, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return the four points of the photo, (4, 2), that become the corners of the view.

    The quadrilateral stays within the crop, so the view never shows an empty border.
    """
    left, top, right, bottom = box
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    half = np.array([(right - left) / 2, (bottom - top) / 2])
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    # Seen from the right, the right side is near: less of the photo fills the view's right edge.
    near_x = 1.0 - abs(view.tilt_x) - view.tilt_x * corners[:, 0]
    near_y = 1.0 - abs(view.tilt_y) - view.tilt_y * corners[:, 1]
    seen = corners * np.stack([near_y, near_x], axis=1) * half
    angle = np.deg2rad(view.rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    seen = seen @ turn.T
    shrink = min(1.0, float((half / np.abs(seen).max(axis=0)).min()))
    return np.asarray(centre + seen * shrink)


def _homography(
    source: Sequence[tuple[float, float]], target: NDArray[np.float64]
) -> tuple[float, ...]:
    """Return Pillow's 8 coefficients of the homography that takes four points to four points."""
    rows: list[list[float]] = []
    values: list[float] = []
    for (x, y), (u, v) in zip(source, target):
        rows.append([x, y, 1.0, 0.0, 0.0, 0.0, -u * x, -u * y])
        rows.append([0.0, 0.0, 0.0, x, y, 1.0, -v * x, -v * y])
        values.extend((u, v))
    return tuple(float(c) for c in np.linalg.solve(np.array(rows), np.array(values)))
