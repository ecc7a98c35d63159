"""Miniature evaluation sets in the real file formats, with pictures that a system can match.

Every place is a drawing (a façade of random shapes and lines over a cloudy ground) from the seed;
a photo of it is a view: a slightly tilted crop at another light, saved as JPEG. Photos of one place
therefore match, and photos of two do not. ``make_miniature`` writes the trees asked for; the same
seed gives the same pixels.

What is in them: oxford5k and paris6k with a query's box, good, ok and junk answers, photos of no
landmark, and in paris6k one of the photos that hold an error page instead of an image; flickr100k;
roxford5k and rparis6k of the same places; holidays; smvs with two devices and a photo that nothing
answers; google_landmarks with train, index and test; large, a table with GPS places; training, a
folder of labelled photos for each of the paper's three training sets; library, the library's own
format.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from evaluation.datasets.trees import (
    QueryFiles,
    landmarks_path,
    write_csv,
    write_oxford,
    write_paris,
    write_photos,
    write_revisited,
)
from PIL import Image, ImageDraw

PARTS = (
    "oxford5k",
    "paris6k",
    "flickr100k",
    "roxford5k",
    "rparis6k",
    "holidays",
    "smvs",
    "google_landmarks",
    "large",
    "training",
    "library",
)
OXFORD_LANDMARKS = ("all_souls", "ashmolean", "radcliffe_camera")
PARIS_LANDMARKS = ("defense", "eiffel", "triomphe")
UNREADABLE = "paris_louvre_000136"  # as in the real set
_ERROR_PAGE = b"<html><head><title>302 Found</title></head><body>moved</body></html>\n"
# Places of the large set, over 25 km apart: Oxford, Paris, Rome.
_PLACES = ((51.7548, -1.2544), (48.8584, 2.2945), (41.8902, 12.4922))


@dataclass(frozen=True)
class Camera:
    """Takes photos of drawn places. seed : of everything. size : of a photo, (width, height)."""

    seed: int = 0
    size: tuple[int, int] = (320, 240)

    @functools.lru_cache(maxsize=256)  # noqa: B019 (cameras live as long as a test)
    def place(self, name: str) -> Image.Image:
        """Draw a place, larger than a photo by half."""
        rng = self._rng("place", name)
        width, height = (side * 3 // 2 for side in self.size)
        image = _clouds(rng, (width, height))
        draw = ImageDraw.Draw(image)
        for _ in range(90):
            x, y = rng.integers(0, width), rng.integers(0, height)
            w, h = rng.integers(8, width // 4), rng.integers(8, height // 4)
            colour = tuple(int(c) for c in rng.integers(0, 256, 3))
            shape = rng.integers(0, 4)
            if shape == 0:
                draw.ellipse((x, y, x + w, y + h), fill=colour, outline=(0, 0, 0))
            elif shape == 1:
                draw.line((x, y, x + w, y + h), fill=colour, width=int(rng.integers(2, 6)))
            elif shape == 2:
                draw.polygon([(x, y + h), (x + w // 2, y), (x + w, y + h)], fill=colour)
            else:
                draw.rectangle((x, y, x + w, y + h), fill=colour, outline=(0, 0, 0))
        return image

    def view(self, name: str, number: int, *, zoom: float = 1.0) -> Image.Image:
        """Photograph a place from view point number; zoom > 1 shows less of it."""
        rng = self._rng("view", name, number)
        scene = self.place(name)
        share = 0.85 / zoom * rng.uniform(0.95, 1.05)
        w, h = scene.width * share, scene.height * share
        left = (scene.width - w) * rng.uniform(0.2, 0.8)
        top = (scene.height - h) * rng.uniform(0.2, 0.8)
        corners = np.array([(left, top), (left, top + h), (left + w, top + h), (left + w, top)])
        corners += rng.uniform(-0.03, 0.03, (4, 2)) * (w, h)
        photo = scene.transform(
            self.size,
            Image.Transform.QUAD,
            tuple(corners.ravel()),
            resample=Image.Resampling.BICUBIC,
        )
        pixels = np.asarray(photo, np.float32) * rng.uniform(0.85, 1.15)
        pixels += rng.normal(0, 3, pixels.shape)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _rng(self, *what: object) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(repr(what).encode())])


@dataclass
class Miniature:
    """Where the trees are: the root of each by the name of its set."""

    root: Path
    camera: Camera
    n_queries: int
    roots: dict[str, Path] = field(default_factory=dict)
    shown: dict[str, tuple[str, int, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path:
        return self.roots[name]

    def save(self, file: Path, name: str) -> None:
        """Write the photo planned under a name."""
        stem = file.stem
        if stem == UNREADABLE:
            file.write_bytes(_ERROR_PAGE)
            return
        place, number, zoom = self.shown.get(name) or self.shown[stem]
        self.camera.view(place, number, zoom=zoom).save(file, quality=92)

    def plan(self, name: str, place: str, number: int = 0, *, zoom: float = 1.0) -> str:
        """Say what a photo shows, by its stem or its path in the tree."""
        self.shown[name] = (place, number, zoom)
        return name


def make_miniature(
    root: Path,
    *,
    seed: int = 0,
    parts: Collection[str] = PARTS,
    n_queries: int = 2,
    size: tuple[int, int] = (320, 240),
) -> Miniature:
    """Write miniature sets below root, one folder for each part.

    n_queries : queries of each of the three landmarks of Oxford5k and Paris6k, 1 to 3.
    """
    made = Miniature(root, Camera(seed, size), n_queries)
    for part in parts:
        made.roots[part] = _MAKERS[part](made, root / part)
    return made


def box_of(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of every query: all but a margin."""
    width, height = size
    return (width * 0.05, height * 0.05, width * 0.95, height * 0.95)


def _landmark_set(
    made: Miniature, landmarks: tuple[str, ...], photo: str, others: str, n_others: int = 4
) -> tuple[list[str], dict[str, QueryFiles]]:
    """Plan photos named photo.format(landmark, number), and the ground truth."""
    names: list[str] = []
    queries: dict[str, QueryFiles] = {}
    for landmark in landmarks:
        views = [
            made.plan(photo.format(landmark, 13 + i), f"{photo}/{landmark}", i) for i in range(5)
        ]
        # Junk shows under a quarter of the object.
        junk = made.plan(photo.format(landmark, 99), f"{photo}/{landmark}", 9, zoom=2.6)
        names += [*views, junk]
        for i in range(made.n_queries):
            queries[f"{landmark}_{i + 1}"] = QueryFiles(
                views[i], box_of(made.camera.size), tuple(views[:4]), (views[4],), (junk,)
            )
    names += [made.plan(others.format(i), others.format(i)) for i in range(n_others)]
    return names, queries


def _oxford(made: Miniature, root: Path) -> Path:
    names, queries = _landmark_set(made, OXFORD_LANDMARKS, "{}_{:06d}", "oxford_{:06d}")
    return write_oxford(root, names, queries, made.save)


def _paris(made: Miniature, root: Path) -> Path:
    names, queries = _landmark_set(
        made, PARIS_LANDMARKS, "paris_{}_{:06d}", "paris_general_{:06d}", n_others=8
    )
    return write_paris(root, [*names, UNREADABLE], queries, made.save)


def _flickr(made: Miniature, root: Path) -> Path:
    folder = root / "oxc1_100k"
    names = [f"{tag}/{tag}_{i:06d}.jpg" for tag in ("06", "cat", "park") for i in range(3)]
    for name in names:
        made.plan(name, f"flickr/{name}")
    write_photos(folder, names, made.save)
    return root


def _revisited(
    made: Miniature, root: Path, name: str, landmarks: tuple[str, ...], photo: str, others: str
) -> Path:
    names, queries = _landmark_set(made, landmarks, photo, others)
    asked = [files.photo for files in queries.values()]
    imlist = [name for name in names if name not in asked]
    place = {photo: i for i, photo in enumerate(imlist)}
    gnd = [
        {
            "bbx": list(files.box),
            "easy": [place[p] for p in files.good if p in place],
            "hard": [place[p] for p in files.ok if p in place],
            "junk": [place[p] for p in files.junk if p in place],
        }
        for files in queries.values()
    ]
    return write_revisited(root, name, imlist, asked, gnd, made.save)


def _roxford(made: Miniature, root: Path) -> Path:
    return _revisited(made, root, "roxford5k", OXFORD_LANDMARKS, "{}_{:06d}", "oxford_{:06d}")


def _rparis(made: Miniature, root: Path) -> Path:
    return _revisited(
        made, root, "rparis6k", PARIS_LANDMARKS, "paris_{}_{:06d}", "paris_general_{:06d}"
    )


def _holidays(made: Miniature, root: Path) -> Path:
    names = [
        made.plan(f"{1000 + group}{i:02d}.jpg", f"holiday/{group}", i)
        for group in range(4)
        for i in range(2 + group % 2)
    ]
    write_photos(root / "jpg", names, made.save)
    return root


def _smvs(made: Miniature, root: Path) -> Path:
    names = []
    for category in ("book_covers", "landmarks"):
        for number in range(1, 4):
            for view, folder in enumerate(("Reference", "Droid", "Canon")):
                if (folder, number) != ("Reference", 3):  # nothing answers the third
                    names.append(
                        made.plan(
                            f"{category}/{folder}/{number:03d}.jpg", f"{category}/{number}", view
                        )
                    )
    write_photos(root, names, made.save)
    return root


def _google_landmarks(made: Miniature, root: Path) -> Path:
    def photo(part: str, landmark: int, i: int) -> str:
        name = f"{('train', 'index', 'test').index(part) + 1}{landmark:03x}{i:012x}"
        made.plan(landmarks_path(part, name), f"gldv2/{landmark}", len(part) * 10 + i)
        write_photos(root, [landmarks_path(part, name)], made.save)
        return name

    train = {landmark: [photo("train", landmark, i) for i in range(3)] for landmark in (7, 8, 9)}
    index = {landmark: [photo("index", landmark, i) for i in range(2)] for landmark in (7, 8, 11)}
    test = {landmark: photo("test", landmark, 0) for landmark in (7, 8, 12)}  # 12 is no landmark
    public = photo("test", 7, 1)
    write_csv(
        root / "train" / "train.csv",
        ("id", "url", "landmark_id"),
        [(name, "", landmark) for landmark, names in train.items() for name in names],
    )
    write_csv(
        root / "train" / "train_clean.csv",
        ("landmark_id", "images"),
        [(landmark, " ".join(names[:2])) for landmark, names in train.items()],
    )
    write_csv(
        root / "index" / "index.csv", ("id",), [(n,) for names in index.values() for n in names]
    )
    write_csv(
        root / "index" / "index_image_to_landmark.csv",
        ("id", "landmark_id"),
        [(name, landmark) for landmark, names in index.items() for name in names],
    )
    write_csv(root / "test" / "test.csv", ("id",), [(name,) for name in (*test.values(), public)])
    write_csv(
        root / "test" / "recognition_solution_v2.1.csv",
        ("id", "landmarks", "Usage"),
        [
            (test[7], "7", "Private"),
            (test[8], "8", "Private"),
            (test[12], "", "Private"),
            (public, "7", "Public"),
        ],
    )
    write_csv(
        root / "test" / "retrieval_solution_v2.1.csv",
        ("id", "images", "Usage"),
        [
            (test[7], " ".join(index[7]), "Private"),
            (test[8], " ".join(index[8]), "Private"),
            (test[12], "None", "Ignored"),
            (public, " ".join(index[7]), "Public"),
        ],
    )
    return root


def _large(made: Miniature, root: Path) -> Path:
    """A table whose answers are right within 25 km; its landmarks are on photographs' GPS."""
    rows: list[tuple[object, ...]] = []
    for place, (latitude, longitude) in enumerate(_PLACES):
        for i in range(4):
            role = "query" if i == 3 else "db"
            name = made.plan(f"photos/{place}_{i}.jpg", f"large/{place}", i)
            rows.append((name, role, f"landmark {place}", latitude + 0.01 * i, longitude))
    for i in range(4):  # 1,000 km and more from every place, one of each pair a query
        name = made.plan(f"photos/far_{i}.jpg", f"large/far {i}")
        role = "distractor_query" if i % 2 else "distractor"
        rows.append((name, role, "", -40.0 + i, 170.0))
    write_photos(root, (str(row[0]) for row in rows), made.save)
    write_csv(root / "large.csv", ("path", "role", "label", "latitude", "longitude"), rows)
    return root


def _training(made: Miniature, root: Path) -> Path:
    """LF, LC and SD: labelled photos; LF has a wrong photo in each landmark, as the real one."""
    for name, wrong in (("landmarks_full", 1), ("landmarks_clean", 0), ("street_dataset", 0)):
        for landmark in range(3):
            photos = [
                made.plan(f"{name}/{landmark:03d}/{i}.jpg", f"{name[:4]}/{landmark}", i)
                for i in range(4)
            ]
            photos += [
                made.plan(f"{name}/{landmark:03d}/wrong_{i}.jpg", f"{name}/wrong/{landmark}", i)
                for i in range(wrong)
            ]
            write_photos(root, photos, made.save)
    return root


def _library(made: Miniature, root: Path) -> Path:
    """photos.csv and ground_truth.json, two subsets, one query without match."""
    table: list[tuple[str, ...]] = []
    queries: dict[str, dict[str, object]] = {}
    for scene, subset in enumerate(("landmarks", "landmarks", "objects", "objects")):
        for i in range(3):
            role = "db" if i else "query"
            path = made.plan(f"scenes/{scene}/{i:02d}.jpg", f"library/{scene}", i)
            table.append((path, role, f"scene {scene}", "pair", subset))
        queries[f"scenes/{scene}/00.jpg"] = {
            "scene": f"scene {scene}",
            "kind": "pair",
            "subset": subset,
            "positives": [f"scenes/{scene}/{i:02d}.jpg" for i in (1, 2)],
            "junk": [],
        }
    lonely = made.plan("scenes/none/00.jpg", "library/none")
    table.append((lonely, "query_nomatch", "scene none", "nomatch_query", "objects"))
    queries[lonely] = {"kind": "nomatch_query", "subset": "objects", "positives": []}
    distractors = [made.plan(f"distractors/{i}.jpg", f"library/far {i}") for i in range(6)]
    table += [(path, "distractor", "", "", "") for path in distractors]
    write_photos(root, (row[0] for row in table), made.save)
    write_csv(root / "photos.csv", ("path", "role", "scene", "kind", "subset"), table)
    truth = {
        "queries": queries,
        "headline_queries": [path for path in queries if path != lonely],
        "no_match_queries": [lonely],
        "distractor_queries": distractors[:4],
        "database": [row[0] for row in table if row[1] in ("db", "distractor")],
    }
    (root / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return root


_MAKERS = {
    "oxford5k": _oxford,
    "paris6k": _paris,
    "flickr100k": _flickr,
    "roxford5k": _roxford,
    "rparis6k": _rparis,
    "holidays": _holidays,
    "smvs": _smvs,
    "google_landmarks": _google_landmarks,
    "large": _large,
    "training": _training,
    "library": _library,
}


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A ground of soft colours at three scales."""
    total = np.zeros((size[1], size[0], 3), np.float32)
    for cells in (4, 16, 64):
        small = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        layer = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float32) / 3
    return Image.fromarray(total.astype(np.uint8))
