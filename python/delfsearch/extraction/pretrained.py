"""An extractor as a folder, in the Hugging Face habit: config.json, model.safetensors, README.md.

config.json holds the extractor's parameters and the weights' checksum; model.safetensors the
network, the attention head, the PCA and what must be known to run them (weights.py); README.md is
the card. Loading looks at nothing but the given path: there is no network access.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch import __version__
from delfsearch.errors import WeightsError
from delfsearch.extraction.weights import (
    MODEL_FILE,
    REGISTRY,
    SHIPPED,
    Weights,
    cached_path,
    load_weights,
    save_weights,
)
from delfsearch.extraction.weights_io.formats import is_there

if TYPE_CHECKING:
    from delfsearch.extraction.extractor import DelfExtractor

CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_LIBRARY, _FORMAT = "delfsearch", 1
_LONGEST_SHOWN = 10  # of a recipe's lists: scales, gammas
# What belongs to the machine or to fit, not to the features: not kept.
_NOT_KEPT = ("weights", "device", "n_jobs", "verbose", "random_state", "n_fit_photos")


def save_pretrained(
    extractor: DelfExtractor, folder: str | os.PathLike[str], *, dtype: str = "float32"
) -> None:
    """Write an extractor as a folder; see DelfExtractor.save_pretrained."""
    params, _ = extractor.get_state()
    weights = extractor._runtime().weights
    pca = getattr(extractor, "pca_", None)
    if pca is not None:
        kept = {
            "pca.mean": pca.mean_,
            "pca.components": pca.components_,
            "pca.explained_variance": pca.explained_variance_,
        }
        weights = replace(weights, pca=kept)
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder must be a folder, new or not; got the file {os.fspath(folder)!r}")
    target.mkdir(parents=True, exist_ok=True)
    path = target / MODEL_FILE
    arrays = weights.to_arrays()
    if dtype == "float32":  # nothing is rounded, a PCA in float64 neither
        save_weights(path, arrays, weights.to_meta())
    else:
        save_weights(path, arrays, weights.to_meta(), dtype=dtype)
    saved = load_weights(path)
    config = {
        "library": _LIBRARY,
        "format": _FORMAT,
        "version": __version__,
        "weights_sha256": saved.sha256,
        "extractor": {
            key: value
            for key, value in params.items()
            if key not in _NOT_KEPT and key != "weights_sha256"
        },
    }
    _write(target / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    _write(target / CARD_FILE, model_card(saved, dtype=dtype))


def from_pretrained(
    cls: type[DelfExtractor], source: str | os.PathLike[str], **overrides: Any
) -> DelfExtractor:
    """Restore an extractor from a folder or a weights file; see DelfExtractor.from_pretrained."""
    name = os.fspath(source)
    path = Path(name)
    if name in REGISTRY:
        if not cached_path(name).exists():
            raise WeightsError(
                f"weights {name!r} are not in the cache, and from_pretrained fetches nothing: run "
                f"`delfsearch weights --fetch {name}` first"
            )
    elif name not in SHIPPED and not is_there(path):
        raise WeightsError(
            f"source must be an existing folder or file; got {name!r}. Nothing is downloaded: "
            "fetch it first, then pass the path"
        )
    if "weights" in overrides:
        raise TypeError("weights cannot be overridden: they are what source names")
    params: dict[str, Any] = {}
    if path.is_dir() and (path / CONFIG_FILE).exists():
        params = _read_config(path)
        source = path / MODEL_FILE
    extractor = cls.from_state({**params, **overrides, "weights": os.fspath(source)}, {})
    extractor._runtime()  # now, not at the first photo: is everything there and whole?
    return extractor


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable JSON ({error}); save it again") from None
    if not isinstance(config, dict) or config.get("library") != _LIBRARY:
        raise WeightsError(
            f"{path} is not the configuration of a DelfExtractor, as save_pretrained writes it; "
            "for the weights alone pass the path of their file"
        )
    if config.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} has the format {config.get('format')!r}, this version reads {_FORMAT}: update "
            "delfsearch"
        )
    params, sha256 = config.get("extractor"), config.get("weights_sha256")
    if not isinstance(params, dict) or not isinstance(sha256, str):
        raise WeightsError(f"{path} lacks 'extractor' or 'weights_sha256'; save it again")
    return {**params, "weights_sha256": sha256}


def model_card(weights: Weights, *, dtype: str = "float32") -> str:
    """Return the README.md of weights: what they are, where from, under which licence."""
    field = weights.receptive_field
    score = "attention" if weights.attention else "L2 norm (there is no attention head)"
    if weights.attention and weights.score_meaning:
        score += f": {weights.score_meaning}"
    pca = f"{len(weights.pca['pca.components'])} components" if weights.pca else "none: call `fit`"
    rows = {
        "network": f"ResNet50 to conv4_x, stride layout `{weights.layout}`",
        "receptive field": f"{field.size} px, stride {field.stride}, padding {field.padding:g}",
        "input": f"RGB in 0 ... 255, minus {_listed(weights.input_mean)}, over "
        f"{_listed(weights.input_std)}",
        "score": score,
        "score scale": f"{weights.score_scale:g}",
        "PCA": pca,
        "stored as": dtype,
        "sha256": f"`{weights.sha256}`",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    parts = [
        "---\nlibrary_name: delfsearch\npipeline_tag: image-feature-extraction\nlicense: other\n"
        f"license_name: {json.dumps(weights.licence, ensure_ascii=False)}\n"
        "tags: [delf, image-retrieval, local-features]\n---\n",
        "# DELF features\n",
        "    from delfsearch import DelfExtractor\n\n"
        '    extractor = DelfExtractor.from_pretrained("this folder")\n',
        f"| | |\n|---|---|\n{table}\n",
        f"## Provenance\n{weights.provenance}\n",
        f"## Licence\n{weights.licence}\n",
    ]
    if weights.recipe:
        recipe = json.dumps(shortened(weights.recipe), indent=2, ensure_ascii=False)
        parts.append(
            f"## Training\nIn full in the metadata of `{MODEL_FILE}`.\n```json\n{recipe}\n```\n"
        )
    return "\n".join(parts)


def shortened(recipe: Any) -> Any:
    """Return a recipe for people to read: of long lists, as of photos, their number."""
    if isinstance(recipe, Mapping):
        return {key: shortened(value) for key, value in recipe.items()}
    if isinstance(recipe, (list, tuple)):
        if len(recipe) > _LONGEST_SHOWN:
            return f"{len(recipe)} entries"
        return [shortened(value) for value in recipe]
    return recipe


def _listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def check_can_whiten(weights: Weights, whiten: bool) -> None:
    """Raise WeightsError where whitening is asked of a PCA that came without variances."""
    pca: Mapping[str, Any] = weights.pca
    if whiten and pca and not pca["pca.explained_variance"].any():
        raise WeightsError(
            f"weights {weights.name!r} bring a PCA without variances, which cannot whiten: set "
            "whiten=False, or call fit(photos) to learn one that can"
        )
