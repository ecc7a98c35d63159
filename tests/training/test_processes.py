"""Several processes through Hugging Face accelerate, on this machine's processor."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training.small import OPTIMIZATION, RUN, VIEWS

from delfsearch.extraction.weights import load_weights
from delfsearch.training import AttentionTrainer, read_curves
from delfsearch.training.processes import Processes, make_processes

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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


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
    command = [sys.executable, "-c", CHILD, str(weights_path), str(photos.root), tmp_path / "two"]
    shared = {
        **os.environ,
        "PYTHONPATH": os.fspath(Path(__file__).resolve().parent.parent),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
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
