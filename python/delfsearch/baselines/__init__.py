"""The systems that the paper compares DELF with, each behind the same two interfaces.

    from delfsearch.baselines import GlobalIndex, load_system

    system = load_system("dir").fit(photos_not_evaluated)
    print(system.ran)                                 # what stood in for what
    vectors = [vector for _, vector in system.stream(paths)]
    scores, ids = GlobalIndex().fit(vectors).query(vectors, k=10)

docs/baselines.md says what each of them is, and what runs where published weights cannot be had.
"""

from delfsearch.baselines.global_index import GlobalIndex
from delfsearch.baselines.systems import SYSTEMS, load_system

__all__ = ["SYSTEMS", "GlobalIndex", "load_system"]
