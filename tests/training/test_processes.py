"""Several processes through Hugging Face accelerate, on this machine's processor."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.small import OPTIMIZATION, RUN, VIEWS, Apart
from training.test_training_resume import tiny_job

from delfsearch.errors import DatasetError
from delfsearch.extraction.weights import load_weights
from delfsearch.training import (
    AttentionTrainer,
    CheckpointError,
    RunOptions,
    loop,
    read_curves,
)
from delfsearch.training.processes import TIMEOUT, Processes, make_processes
from delfsearch.training.recipe import train_recipe

CHILD = """
import sys
from training.small import OPTIMIZATION, RUN, VIEWS
from delfsearch.training import AttentionTrainer, photos_from_image_folder

weights, photos, output = sys.argv[1:]
AttentionTrainer(
    weights, output=output, views=VIEWS, optimization=OPTIMIZATION, precision="fp32",
    cached_crops=2, run=RUN,
).fit(photos_from_image_folder(photos))
"""


CONTRASTIVE_CHILD = """
import os
import sys
from pathlib import Path
from training.test_contrastive import OPTIONS
from delfsearch.training import ContrastiveTrainer, RunOptions, photos_from_image_folder

weights, photos, output, stop = sys.argv[1:]
run = RunOptions(n_jobs=1, device="cpu", checkpoint_every=1, keep_photos="none")

def progress(what, done, total):
    if what == "steps" and done == int(stop):
        os._exit(9)

trainer = ContrastiveTrainer(weights, output=output, **{**OPTIONS, "run": run}).fit(
    photos_from_image_folder(photos), progress=progress
)
assert (Path(output) / "weights.safetensors").is_file()
assert (Path(output) / "left_out.csv").is_file()
print(trainer.weights_.sha256, trainer.left_out_, trainer.curves_["loss"].tolist())
"""


LOOP_CHILD = """
import os
import sys
from pathlib import Path
import torch.distributed
from training.test_training_resume import tiny_job
from delfsearch.training import RunOptions, loop
from delfsearch.training.processes import make_processes

begin = torch.distributed.init_process_group

def told(*args, **options):
    print("timeout", options["timeout"].total_seconds())
    return begin(*args, **options)

torch.distributed.init_process_group = told
loop.run(
    tiny_job("sgd", "linear"),
    Path(sys.argv[1]) / os.environ["RANK"],
    make_processes("auto", "cpu"),
    RunOptions(device="cpu", n_jobs=1, checkpoint_every=3),
    n_threads=1,
)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_two(code: str, *arguments: object) -> list[subprocess.Popen[str]]:
    shared = {
        **os.environ,
        "PYTHONPATH": os.fspath(Path(__file__).resolve().parent.parent),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_two_processes_learn_what_one_does(weights_path, photos, tmp_path):
    AttentionTrainer(
        weights_path,
        output=tmp_path / "one",
        views=VIEWS,
        optimization=OPTIMIZATION,
        precision="fp32",
        cached_crops=2,
        run=RUN,
    ).fit(photos)
    children = start_two(CHILD, weights_path, photos.root, tmp_path / "two")
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    one, two = (read_curves(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(
        torch.from_numpy(two["loss"]), torch.from_numpy(one["loss"]), rtol=1e-4, atol=1e-5
    )
    assert two["accuracy"].tolist() == pytest.approx(one["accuracy"].tolist())
    heads = [
        load_weights(tmp_path / name / "weights.safetensors").attention for name in ("one", "two")
    ]
    for name, tensor in heads[0].items():
        torch.testing.assert_close(heads[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_two_processes_end_alike_and_go_on_where_they_stopped(weights_path, photos, tmp_path):
    """With a queue of negatives, and with photos that only one of the two has tried to read."""
    shutil.copytree(photos.root, tmp_path / "photos")
    (tmp_path / "photos" / "002" / "3.jpg").write_bytes(b"no photo")
    outputs = [tmp_path / "whole", tmp_path / "cut"]
    stopped = start_two(CONTRASTIVE_CHILD, weights_path, tmp_path / "photos", outputs[1], 3)
    assert stopped[0].wait(timeout=300) == 9
    stopped[1].kill()
    stopped[1].communicate()
    assert [p.name for p in outputs[1].glob("checkpoint-*")] == ["checkpoint-00000003"]
    ends = []
    for output in outputs:
        children = start_two(CONTRASTIVE_CHILD, weights_path, tmp_path / "photos", output, 0)
        told = [child.communicate(timeout=300) for child in children]
        assert [child.returncode for child in children] == [0, 0], told
        ends += [out for out, _ in told]
        recipe = load_weights(output / "weights.safetensors").recipe
        assert [maker["processes"] for maker in recipe["made_with"]] == [2]
    assert len(set(ends)) == 1 and "002/3.jpg" in ends[0], ends


def test_processes_that_share_no_folder_do_not_go_on_from_different_checkpoints(tmp_path):
    """Two processes, each with a folder of its own; and they wait for each other for long."""
    for goes_on in (False, True):
        children = start_two(LOOP_CHILD, tmp_path)
        told = [child.communicate(timeout=300) for child in children]
        assert [child.returncode for child in children] == [int(goes_on)] * 2, told
        for rank, (out, errors) in enumerate(told):
            assert f"timeout {TIMEOUT.total_seconds()}" in out
            found = ("step 9, ", "no checkpoint")[rank]
            message = f"do not find the same in {tmp_path / str(rank)} (process {rank}: {found}"
            assert (message in errors) == goes_on, errors
    assert TIMEOUT.total_seconds() >= 24 * 3600


def test_another_checkpoint_elsewhere_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"the 2 processes .*an output folder that all"):
        loop.run(
            tiny_job("sgd", "linear"),
            tmp_path,
            Apart(),
            RunOptions(device="cpu", n_jobs=1),
            n_threads=1,
        )
    assert not list(tmp_path.iterdir())


def test_a_device_that_several_processes_cannot_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device must be 'auto'.*got 'cuda:1'"):
        make_processes("always", "cuda:1")
    for accelerate in ("always", "never"):
        with pytest.raises(
            ValueError, match=r"device='cuda:2' is not there: torch sees cpu, cuda:0"
        ):
            make_processes(accelerate, "cuda:2")


def test_what_works_in_one_process_says_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"the recipe works in one process; 2 were started"):
        train_recipe("nowhere", "nowhere")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(DatasetError):
        train_recipe("nowhere", "nowhere")


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("accelerate", "accelerate.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    processes = make_processes("auto", "cpu")
    assert type(processes) is Processes and processes.is_main and processes.count == 1
    values = torch.arange(3.0)
    assert torch.equal(processes.mean(values), values)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImportError, match=r"pip install delfsearch\[training\]"):
        make_processes("auto", "cpu")
    assert type(make_processes("never", "cpu")) is Processes


def test_who_uses_accelerate_is_one_of_three_words():
    with pytest.raises(ValueError, match="accelerate must be one of"):
        make_processes("often", "cpu")
