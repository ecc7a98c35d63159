"""Folds of scenes, and which scenes and photos weights say that they have or have not seen.

Whoever trains weights for a fold and whoever asks them for its scenes deal with one function, so
that both mean the same folds. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from delfsearch._validation import check_integer, check_seed
from delfsearch.errors import WeightsError
from delfsearch.evaluation.folder import PhotoFolder
from delfsearch.storage.arrays import hash_file

if TYPE_CHECKING:
    from delfsearch.extraction.weights import Weights

HELD_OUT = "held_out_scenes"
TRAINED_ON = "trained_photos"


def deal_scenes(
    scenes: Iterable[str],
    n_folds: int,
    *,
    together: Iterable[Collection[str]] = (),
    random_state: object = 0,
) -> tuple[tuple[str, ...], ...]:
    """Deal scenes into folds: a seeded permutation of the sorted names, dealt round-robin.

    scenes : names in any order; a repeated name is one scene. n_folds : from 2 to the number of
        scenes. together : groups of scenes that are dealt as one, see linked_scenes.
    random_state : int, numpy generator or None, as in scikit-learn.
    Returns n_folds tuples of sorted names. Every scene is in exactly one of them, their sizes
    differ by one at most where none are dealt together, and they depend on the set of names, the
    groups, n_folds and random_state only.
    Raises ValueError for a scene without a name, or more folds than scenes or groups of them.
    """
    names = sorted(set(scenes))
    if "" in names:
        raise ValueError("scenes must have names; got '': leave out photos of no known scene")
    check_integer(n_folds, "n_folds", minimum=2)
    if n_folds > len(names):
        raise ValueError(
            f"n_folds must be at most the number of scenes, {len(names)}; got {n_folds}"
        )
    groups = _groups(names, together)
    if n_folds > len(groups):
        raise ValueError(
            f"n_folds must be at most the number of groups of scenes, {len(groups)}; got {n_folds}"
        )
    order = np.random.default_rng(check_seed(random_state)).permutation(len(groups))
    return tuple(
        tuple(sorted(name for i in order[fold::n_folds] for name in groups[i]))
        for fold in range(n_folds)
    )


def linked_scenes(folder: PhotoFolder) -> list[tuple[str, str]]:
    """Return pairs of scenes that show the same: whoever has seen the one has seen the other.

    Such are the scene of a query and that of a photo which the ground truth calls its positive or
    junk, and scenes that hold the same photo, byte for byte.
    """
    labels = folder.labels
    links = {
        (truth.scene, labels[photo])
        for truth in folder.queries.values()
        for photo in (*truth.positives, *truth.junk)
        if photo in labels and truth.scene
    }
    first: dict[str, str] = {}
    for photo, scene in sorted(labels.items()):
        links.add((first.setdefault(hash_file(folder.root / photo), scene), scene))
    return sorted((a, b) for a, b in links if a != b)


def _groups(names: list[str], together: Iterable[Collection[str]]) -> list[list[str]]:
    """Return the scenes in groups, ordered by each group's first name."""
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for group in together:
        known = sorted({find(name) for name in group if name in leader})
        leader.update(dict.fromkeys(known, known[0]) if known else {})
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def held_out_scenes(weights: Weights) -> frozenset[str] | None:
    """Return the scenes that weights were not trained on, None where their recipe does not say.

    weights : whose recipe may hold "held_out_scenes", a list of names. Where the weights that they
        were trained from (the recipe's "before") say the same, those must have held them out too.
    Raises WeightsError where that is no list of names, or what came before saw one of the scenes.
    """
    recipes = list(_recipes(weights.recipe))
    own = _names(weights, weights.recipe, HELD_OUT)
    if own is None:
        return None
    for before in recipes[1:]:
        theirs = _names(weights, before, HELD_OUT)
        if theirs is not None and (seen := own - theirs):
            raise WeightsError(
                f"weights {weights.name!r}: {HELD_OUT} of the recipe has {min(seen)!r} "
                f"({len(seen)} in all), but the weights that they were trained from did not hold "
                "it out; train both steps on the same fold"
            )
    return own


def trained_photos(weights: Weights) -> frozenset[str] | None:
    """Return the photos that weights were trained on, None where their recipe does not say.

    weights : whose recipe may hold "trained_photos", a list of paths relative to the folder of
        photos, '/' between parts. What the recipe's "before" lists is added.
    Raises WeightsError where that is no list of names.
    """
    if _names(weights, weights.recipe, TRAINED_ON) is None:
        return None
    listed = (_names(weights, recipe, TRAINED_ON) for recipe in _recipes(weights.recipe))
    return frozenset[str]().union(*(names for names in listed if names is not None))


def _recipes(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a recipe, that of the weights it started from, and so on."""
    while isinstance(recipe, Mapping):
        yield recipe
        recipe = recipe.get("before")  # type: ignore[assignment]  # None ends the loop


def _names(weights: Weights, recipe: Mapping[str, Any], key: str) -> frozenset[str] | None:
    value = recipe.get(key)
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise WeightsError(
            f"weights {weights.name!r}: {key} of the recipe must be a list of names; got "
            f"{type(value).__name__}"
        )
    for name in value:
        if not isinstance(name, str) or not name:
            raise WeightsError(
                f"weights {weights.name!r}: {key} of the recipe must be a list of names; one of "
                f"them is {name!r}"
            )
    if len(set(value)) < len(value):
        twice = min(name for name in set(value) if value.count(name) > 1)
        raise WeightsError(
            f"weights {weights.name!r}: {key} of the recipe must name each once; {twice!r} is "
            "there more often"
        )
    return frozenset(value)
