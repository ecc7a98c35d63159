"""An inverted file at 1 million to 1 billion descriptors: building, memory, latency, recall.

Descriptors are made on the fly by a mixture fitted on real ones (_synthetic.py); real photos lie
among them. The photos of a small size are the first ones of a larger one, so that the same query
photos, with known answers, are asked at all sizes.

    python benchmarks/billion.py FOLDER --descriptors FILE.npy --sizes 1M 10M 100M 1B

Everything lies in FOLDER: where a run was stopped, at whatever moment, the same command goes on.
Each step is a process of its own, so that its peak memory is its own. What is done leaves a JSON;
growth.json, growth.md and growth.svg put them together. Latency: a query photo of 500 descriptors,
one thread, warm, CPU seconds and the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from _billion_steps import OF_SIZE, STEPS, Run, name_of, parse_size
from _growth import write_growth


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of all that is made; goes on where it stopped")
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--descriptors", type=Path, help="a .npy (n, d), lengths 1; see quantizers")
    parser.add_argument("--photos", default=os.environ.get("DELFSEARCH_PHOTOS"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/delfsearch/benchmarks")
    parser.add_argument("--scales", default="0.25-1", help="of the extraction")
    parser.add_argument("--real-photos", type=int, default=200, help="in the database")
    parser.add_argument("--queries", type=int, default=120)
    parser.add_argument("--queries-without", type=int, default=40, help="with no true photo")
    parser.add_argument("--planted", type=float, nargs="+", default=[0.04, 0.1, 0.2])
    parser.add_argument("--n-lists", type=int, default=8000)
    parser.add_argument("--train-rows", type=int, default=2_000_000)
    parser.add_argument("--code", default="10x5")
    parser.add_argument("--leaf-size", type=int, default=2048)
    parser.add_argument("--postings", choices=("photos", "features"), default="photos")
    parser.add_argument("--keep-exact-up-to", type=parse_size, default=10**8)
    parser.add_argument("--n-probe", type=int, nargs="+", default=[5])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 64])
    parser.add_argument("--max-leaves", type=int, nargs="*", default=[], help="settings besides")
    parser.add_argument("--eps", type=float, nargs="*", default=[], help="settings besides")
    parser.add_argument(
        "--share", type=float, nargs="*", default=[], help="of the photos that filters let pass"
    )
    parser.add_argument("--exact-rows", type=int, default=1000, help="that exact search is asked")
    parser.add_argument("--exact-up-to", type=parse_size, default=10**8)
    parser.add_argument("--faiss-up-to", type=parse_size, default=10**7)
    parser.add_argument("--n-jobs", type=int, default=os.cpu_count() or 1, help="of building")
    parser.add_argument("--part-rows", type=parse_size, default=1 << 22, help="held, of a build")
    parser.add_argument("--report-every", type=float, default=10.0, help="seconds")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="folders whose sizes are shown as well"
    )
    parser.add_argument("--discard", action="store_true", help="an index once it is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STEPS, help="one step, in this process")
    parser.add_argument("--child-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.sizes = sorted(set(arguments.sizes))
    return arguments


_FIXED = ("n_lists", "train_rows", "code", "leaf_size", "postings", "seed", "planted", "queries",
          "queries_without", "real_photos", "exact_rows")  # fmt: skip


def check_same(run: Run) -> None:
    """A folder holds one set of parameters: what is half done cannot go on with others."""
    path = run.folder / "parameters.json"
    mine = {name: getattr(run.arguments, name) for name in _FIXED}
    if not path.exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial_parameters.json")
        partial.write_text(json.dumps(mine, indent=1))
        partial.rename(path)
    theirs = json.loads(path.read_text())
    for name, value in mine.items():
        if theirs.get(name) != value:
            option = "--" + name.replace("_", "-")
            raise SystemExit(
                f"{run.folder} was begun with {option} {theirs.get(name)}; got {value}: go on with "
                "that, or take another folder"
            )
    prepared = run.folder / "prepare.json"
    if prepared.exists():
        smallest = json.loads(prepared.read_text())["smallest"]
        if min(run.arguments.sizes) < smallest:
            raise SystemExit(
                f"queries in {run.folder} ask for photos of the first {name_of(smallest)} "
                "descriptors: take no smaller size, or another folder"
            )


def _end_with(parent: int) -> None:
    """No step outlives what started it: the next run would work on the same files."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _measured_in(run: Run) -> list[tuple[int, Path]]:
    """Sizes and their folders: of this run, and of others beside it for sizes that it has not."""
    folders = {}
    for folder in (*run.arguments.beside, run.folder):
        for measured in folder.glob("*/search.json"):
            folders[json.loads(measured.read_text())["n"]] = measured.parent
    return sorted(folders.items())


def main() -> None:
    argv = sys.argv[1:]
    arguments = parse(argv)
    run = Run(arguments)
    check_same(run)
    if arguments.child_of:
        threading.Thread(target=_end_with, args=(arguments.child_of,), daemon=True).start()
    if arguments.only:
        step, size = arguments.only, arguments.sizes[0]
        if step in OF_SIZE:
            getattr(run, step)(size)
        else:
            getattr(run, step)()
        return

    def do(step: str, size: int = 0) -> None:
        if run.is_done(step, size):
            return
        print(f"== {step} {name_of(size) if size else ''}", flush=True)
        options = ["--only", step, "--child-of", str(os.getpid())]
        options += ["--sizes", str(size)] if size else []
        code = subprocess.run([sys.executable, __file__, *argv, *options]).returncode
        if code:
            raise SystemExit(f"{step} ended with {code}; the same command goes on from here")

    do("prepare")
    do("model")
    for size in arguments.sizes:
        index = run.of_size(size) / "index"
        # Discarded lists are built anew for what is left to be measured.
        if not all(run.is_done(step, size) for step in ("search", "recall", "faiss")):
            if run.is_done("build", size) and not (index / "lists").exists():
                run.result("build", size).unlink()
            do("build", size)
            do("search", size)
            do("exact", size)
            do("recall", size)
            do("faiss", size)
        if arguments.discard:
            shutil.rmtree(index, ignore_errors=True)
        write_growth(run.folder, _measured_in(run))
    write_growth(run.folder, _measured_in(run))
    print((run.folder / "growth.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
