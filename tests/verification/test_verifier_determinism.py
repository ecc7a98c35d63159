"""Same input, same seed, same bytes: whatever the threads, the company, the instruction set."""

from __future__ import annotations

import hashlib
import json
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


# Of the core alone: importing scikit-learn would take most of the time, once per instruction set.
_PROGRAM = """
import hashlib, json, sys
import numpy as np
from delfsearch import _core
arrays = dict(np.load(sys.argv[1]))
print(_core.simd())
for options in json.loads(sys.argv[2]):
    sha = hashlib.sha256()
    for array in _core.ransac_affine(**arrays, **options)[:4]:
        sha.update(array.tobytes())
    print(sha.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bytes(tmp_path):
    matches = mixed_matches(1, 120)
    verifiers = [
        Verifier(max_error=20.0, min_separation=1.0),
        Verifier(max_error=6.0, min_separation=0.0, max_rotation=45.0),
        Verifier(max_error=12.0, min_separation=9.0),
    ]
    expected = [digest(verifier.verify_all(matches)) for verifier in verifiers]
    names = ("query_xy", "database_xy", "squared_distances", "offsets")
    arrays = {name: getattr(matches, name) for name in names}
    np.savez(tmp_path / "matches.npz", ids=matches.image_ids, **arrays)
    options = json.dumps([verifier._options() for verifier in verifiers])
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "matches.npz"), options]
    used = set()
    for name in ("scalar", "avx2", "avx512", "neon"):
        path = os.pathsep.join(filter(None, sys.path))
        env = {**os.environ, "DELFSEARCH_SIMD": name, "PYTHONPATH": path}
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if run.returncode and "DELFSEARCH_SIMD must be" in run.stderr:
            continue  # not a set of this processor
        assert run.returncode == 0, run.stderr
        simd, *digests = run.stdout.split()
        assert simd == name and digests == expected
        used.add(simd)
    assert "scalar" in used
