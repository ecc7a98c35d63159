"""Which systems the report compares, and how each is made ready for one set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delfsearch.baselines import load_system
from delfsearch.errors import WeightsError
from delfsearch.evaluation.datasets.base import Dataset
from delfsearch.evaluation.report.entrants import (
    Contender,
    Entrant,
    Unavailable,
    Workshop,
    entrant_of,
    identity_of,
    learn,
)
from delfsearch.evaluation.report.fold_weights import fold_files, prepare_folds, trained_note
from delfsearch.evaluation.report.whitened import whitened
from delfsearch.evaluation.running.runnable import Runnable
from delfsearch.extraction.weights import DEFAULT_WEIGHTS, load_weights

logger = logging.getLogger("delfsearch")

_IMAGENET = "resnet50-imagenet"

_SCALES = ("0.25-1", "0.25-2")
_OURS = tuple(
    Contender(
        f"delf-{score}-{scales}",
        f"DELF {scales}, {shown}",
        "delf",
        {"scales": scales, "score": score},
    )
    for score, shown in (("attention", "attention"), ("l2", "L2"))
    for scales in _SCALES
)
# What training started from, beside weights that were trained.
_UNTRAINED = tuple(
    Contender(
        f"delf-imagenet-l2-{scales}",
        f"DELF {scales}, ImageNet, L2",
        "delf",
        {"scales": scales, "score": "l2", "weights": _IMAGENET},
    )
    for scales in _SCALES
)
_SHARED = (
    Contender("rootsift", "RootSIFT", "rootsift"),
    Contender("congas", "CONGAS-style", "congas"),
    Contender("xfeat", "XFeat", "xfeat"),
    Contender("aliked", "ALIKED", "aliked"),
    Contender("dir", "DIR", "dir"),
    Contender("dir+qe", "DIR + QE", "dir+qe"),
    Contender("siamac", "siaMAC", "siamac"),
    Contender("siamac+qe", "siaMAC + QE", "siamac+qe"),
)
LINEUP = _OURS + _UNTRAINED + _SHARED


def lineup(
    keys: Sequence[str] = (), weights: Mapping[str, str] | None = None
) -> tuple[Contender, ...]:
    """Return the systems with these keys, in their order and each once; none means all.

    weights : see Workshop. Of all systems, attention is one where the weights of "delf" have it,
    and the ImageNet trunk one where they are others.
    Raises ValueError for a key that is not in LINEUP, WeightsError where what is named for "delf"
    cannot be read.
    """
    known = {contender.key: contender for contender in LINEUP}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"systems must be of {', '.join(known)}; got {unknown[0]!r}")
    if keys:
        return tuple(known[key] for key in dict.fromkeys(keys))
    named = (weights or {}).get("delf")
    file = DEFAULT_WEIGHTS if named is None else named
    files = fold_files(file)
    try:
        attends = bool(load_weights(files[0] if files else file).attention)
    except WeightsError:
        if named is not None:
            raise
        attends = False  # prepare says what is wrong with the default weights
    return tuple(
        contender
        for contender in LINEUP
        if (attends or contender.options.get("score") != "attention")
        and (file != _IMAGENET or contender not in _UNTRAINED)
    )


def prepare(contender: Contender, dataset: Dataset, workshop: Workshop) -> Entrant:
    """Make a contender ready for a set, learning what it needs.

    Raises Unavailable where a package or the default weights are absent, or the set has too few
    photos to learn from; WeightsError and ValueError where weights that the user named do not fit.
    """
    family = contender.system.partition("+")[0]
    options: dict[str, Any] = {"n_jobs": workshop.n_jobs}
    if family in ("delf", "dir", "siamac"):
        options["device"] = workshop.device
        if family in workshop.weights:
            options["weights"] = workshop.weights[family]
    named = "weights" in options and "weights" not in contender.options
    options |= {**contender.options, **workshop.options.get(family, {})}
    try:
        if family == "delf" and fold_files(options.get("weights", DEFAULT_WEIGHTS)):
            entrant = prepare_folds(contender, dataset, workshop, options)
        else:
            system = load_system(contender.system, **options)
            if system.kind == "global" and system.needs == "labels":
                entrant = whitened(contender, dataset, workshop, system)
            else:
                entrant = _plain(contender, dataset, workshop, system)
        # Packages and networks are loaded by the first photo: better now than hours later.
        for _ in entrant.parts[0][0].shelf.extract(()):
            pass
    except ImportError as error:
        raise Unavailable(str(error)) from error
    except WeightsError as error:
        if named:
            raise
        raise Unavailable(str(error)) from error
    return entrant


def _plain(contender: Contender, dataset: Dataset, workshop: Workshop, system: Any) -> Entrant:
    family = contender.system.partition("+")[0]
    identity, learned_from = learn(system, dataset, workshop, identity_of(family, system))
    shelf = workshop.store.shelf({"system": family, "identity": identity}, system.stream)
    note = trained_note(system, dataset) if family == "delf" else ""
    if note:
        logger.warning("%s on %s%s", contender.key, dataset.name, note)
    # A report names files, not where they lie.
    file = str(getattr(system, "weights", None) or "")
    ran = system.ran.replace(file, Path(file).name) if file else system.ran
    runnable = Runnable(
        system.kind,
        ran + learned_from + note,
        shelf,
        query_expansion=getattr(system, "query_expansion", 0),
    )
    return entrant_of(contender, ((runnable, dataset),), workshop, system)
