"""Learn the general PCA that ships beside the weights, and print what it was learned from.

    python tools/fit_general_pca.py PHOTOS [--components 128] [--photos 600] [--output FILE]

PHOTOS is a folder with photos.csv (path, role, source) and ground_truth.json. Only photos of role
distractor are used, without the distractor queries, so nothing that an evaluation asks or should
find is in the sample. The photographs themselves are not part of the result, only the mean, the
leading principal directions and their variances, in float16.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from delfsearch.extraction.extractor import DelfExtractor
from delfsearch.extraction.weights import load_weights, save_weights

WEIGHTS = "resnet50-imagenet"
OUTPUT = (
    Path(__file__).resolve().parent.parent
    / "python/delfsearch/extraction/data"
    / f"{WEIGHTS}-pca.safetensors"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="PHOTOS")
    parser.add_argument("--components", type=int, default=128)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--threads", type=int, default=-1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()

    with open(args.folder / "photos.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == "distractor"]
    truth = json.loads((args.folder / "ground_truth.json").read_text(encoding="utf-8"))
    queries = {q if isinstance(q, str) else q["path"] for q in truth["distractor_queries"]}
    rows = [row for row in rows if row["path"] not in queries]
    n_photos = min(args.photos, len(rows))
    sample = np.random.default_rng(0).choice(len(rows), n_photos, replace=False)
    extractor = DelfExtractor(
        WEIGHTS,
        n_components=args.components,
        precision="fp32",
        device="cpu",
        n_fit_photos=args.photos,
        n_jobs=args.threads,
    ).fit([args.folder / rows[i]["path"] for i in np.sort(sample)])

    pca, (n_photos, n_descriptors) = extractor.pca_, extractor.fit_sample_
    sources = dict(Counter(row["source"] for row in rows).most_common())
    meta = {
        "weights": WEIGHTS,
        "weights_sha256": load_weights(WEIGHTS).sha256,
        "provenance": (
            f"PCA of {n_descriptors} descriptors of {n_photos} photographs of role distractor "
            "(scales 0.25-2, 1000 strongest by L2 norm), sampled with seed 0 from the sources "
            "below; no photograph is included"
        ),
        "sources": sources,
        "explained_variance_ratio": [
            round(float(pca.explained_variance_ratio_[:k].sum()), 4) for k in (40, args.components)
        ],
    }
    arrays = {name: value.astype(np.float16) for name, value in pca.to_arrays().items()}
    # Variances of normalised rows are small: float16 would lose their digits.
    arrays["pca.explained_variance"] = pca.explained_variance_.astype(np.float32)
    save_weights(args.output, arrays, meta)
    print(json.dumps(meta, indent=2, ensure_ascii=False))
    print(f"{args.output.name}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
