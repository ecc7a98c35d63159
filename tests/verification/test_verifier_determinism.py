"""Same input, same seed, same bytes: whatever the threads, the company, the instruction set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
from planted import mixed_matches

from delfsearch import Matches, Verifier


def digest(found):
    sha = hashlib.sha256()
    for array in (found.n_inliers, found.affines, found.inlier_offsets, found.inlier_rows):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def subset(matches, order):
    rows = [np.arange(matches.offsets[i], matches.offsets[i + 1]) for i in order]
    flat = np.concatenate(rows)
    per_match = {
        name: getattr(matches, name)[flat]
        for name in (
            "query_indices",
            "database_indices",
            "query_xy",
            "database_xy",
            "squared_distances",
        )
    }
    return Matches(
        image_ids=matches.image_ids[order],
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        **per_match,
    )


def test_threads_change_nothing():
    matches = mixed_matches(n_candidates=150)
    reference = digest(Verifier(n_jobs=1).verify_all(matches))
    for n_jobs in (2, 3, 8, -1):
        assert digest(Verifier(n_jobs=n_jobs).verify_all(matches)) == reference


def test_the_other_candidates_change_nothing():
    matches = mixed_matches(n_candidates=60)
    whole = Verifier().verify_all(matches)
    order = np.random.default_rng(0).permutation(60)[:37]
    part = Verifier().verify_all(subset(matches, order))
    np.testing.assert_array_equal(part.n_inliers, whole.n_inliers[order])
    np.testing.assert_array_equal(part.affines, whole.affines[order])


def test_the_seed_matters_and_repeats():
    matches = mixed_matches()
    assert digest(Verifier().verify_all(matches)) == digest(Verifier().verify_all(matches))
    others = {digest(Verifier(random_state=seed).verify_all(matches)) for seed in range(4)}
    assert len(others) > 1


def test_every_instruction_set_gives_the_same_bytes():
    program = (
        "from test_verifier_determinism import digest, mixed_matches, Verifier\n"
        "from delfsearch import _core\n"
        "found = [digest(Verifier(max_error=e, min_separation=s, max_rotation=r)"
        ".verify_all(mixed_matches(1, 120)))"
        " for e, s, r in ((20., 1., 180.), (6., 0., 45.), (12., 9., 180.))]\n"
        "print(_core.simd(), *found)\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    results = {}
    for name in ("scalar", "avx2", "avx512", "neon", ""):
        paths = [here, *sys.path]
        env = {**os.environ, "DELFSEARCH_SIMD": name, "PYTHONPATH": os.pathsep.join(paths)}
        run = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
        )
        if run.returncode and "DELFSEARCH_SIMD must be" in run.stderr:
            continue  # not a set of this processor
        assert run.returncode == 0, run.stderr
        used, *digests = run.stdout.split()
        results[used] = digests
    assert "scalar" in results
    assert len({tuple(digests) for digests in results.values()}) == 1
