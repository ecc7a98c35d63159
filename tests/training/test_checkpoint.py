from __future__ import annotations

import errno
import json
import resource
import shutil

import pytest
import torch

from delfsearch.training import CheckpointError, checkpoint
from delfsearch.training.checkpoint import (
    Checkpoint,
    latest_path,
    read_checkpoint,
    write_checkpoint,
)

SETTINGS = {"mode": "descriptor", "views": {"crop_side": 224, "gammas": (0.5, 1.0)}, "seed": 0}


def a_checkpoint(step: int, size: int = 5) -> Checkpoint:
    tensors = {
        "model|weight": torch.arange(size, dtype=torch.float32) * step,
        "optimizer|weight|step": torch.tensor(float(step)),
        "model|kernel": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    return Checkpoint(step, tensors, {"settings": SETTINGS, "seconds": 0.1 + step})


def test_what_was_written_is_read(tmp_path):
    written = a_checkpoint(7)
    place = write_checkpoint(tmp_path, written)
    assert place == latest_path(tmp_path) == tmp_path / "checkpoint-00000007"
    found = read_checkpoint(tmp_path, SETTINGS)
    assert found is not None and found.step == 7 and found.state["seconds"] == 7.1
    assert found.tensors.keys() == written.tensors.keys()
    for name, tensor in written.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


def test_no_checkpoint_is_none(tmp_path):
    assert read_checkpoint(tmp_path, SETTINGS) is None
    assert read_checkpoint(tmp_path / "absent", SETTINGS) is None


def test_the_one_before_goes_once_the_new_one_is_whole(tmp_path):
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, a_checkpoint(step))
        assert [p.name for p in tmp_path.iterdir()] == [f"checkpoint-{step:08d}"]


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_moment_leaves_the_one_before(tmp_path, monkeypatch, after, code):
    """Each step on the way to the disk fails in turn."""
    write_checkpoint(tmp_path, a_checkpoint(3))
    steps = []

    def failing(function):
        def step(*args, **kwargs):
            steps.append(function.__name__)
            if len(steps) > after:
                raise OSError(code, "it failed")
            return function(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", failing(checkpoint._write))
        patch.setattr(checkpoint, "sync_folder", failing(checkpoint.sync_folder))
        patch.setattr(checkpoint.os, "fsync", failing(checkpoint.os.fsync))
        patch.setattr(checkpoint.os, "rename", failing(checkpoint.os.rename))
        try:
            write_checkpoint(tmp_path, a_checkpoint(4))
        except CheckpointError as error:
            message = str(error)
            assert "checkpoint-00000004" in message
            if code == errno.ENOSPC:
                assert "no space" in message and "MB are free" in message
    found = read_checkpoint(tmp_path, SETTINGS)
    assert found is not None and found.step in (3, 4)
    assert len(steps) > after or found.step == 4
    assert torch.equal(
        found.tensors["model|weight"], a_checkpoint(found.step).tensors["model|weight"]
    )
    assert not list(tmp_path.glob("*.part"))
    write_checkpoint(tmp_path, a_checkpoint(5))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000005"]


def test_a_file_that_the_system_cuts_off_leaves_the_one_before(tmp_path):
    """The system itself refuses to write on, in the middle of the file."""
    write_checkpoint(tmp_path, a_checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"no space: 1 MB.*|checkpoint-00000001 is still"):
            write_checkpoint(tmp_path, a_checkpoint(2, size=200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = read_checkpoint(tmp_path, SETTINGS)
    assert found is not None and found.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_the_first_failure_says_that_there_is_none(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(CheckpointError, match="none was written before"):
        write_checkpoint(tmp_path, a_checkpoint(1))


def test_leftovers_of_a_killed_writer_are_no_checkpoint(tmp_path):
    write_checkpoint(tmp_path, a_checkpoint(1))
    shutil.copytree(tmp_path / "checkpoint-00000001", tmp_path / "checkpoint-00000002.part")
    (tmp_path / "checkpoint-00000002.part" / "state.json").write_text("{")
    found = read_checkpoint(tmp_path, SETTINGS)
    assert found is not None and found.step == 1
    # That of another step goes too: a run that goes on at another cadence writes none of its name.
    write_checkpoint(tmp_path, a_checkpoint(3))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000003"]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({**SETTINGS, "seed": 1}, r"seed=0; got 1"),
        ({**SETTINGS, "views": {"crop_side": 200, "gammas": [0.5, 1.0]}}, r"views\.crop_side=224"),
        (
            {**SETTINGS, "views": {"crop_side": 224, "gammas": [0.5]}},
            r"views\.gammas=\[0\.5, 1\.0\]",
        ),
        ({**SETTINGS, "more": 2}, r"more=None; got 2"),
        ({"mode": "descriptor", "views": SETTINGS["views"]}, r"seed=0; got None"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, changed, name):
    write_checkpoint(tmp_path, a_checkpoint(1))
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path, changed)


def test_damaged_files_are_named(tmp_path):
    place = write_checkpoint(tmp_path, a_checkpoint(1))
    data = bytearray((place / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (place / "state.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged.*delete"):
        read_checkpoint(tmp_path, SETTINGS)
    state = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(tmp_path, SETTINGS)
    for text in ("{", "[]", "{}"):
        (place / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            read_checkpoint(tmp_path, SETTINGS)
    (place / "state.json").write_text(json.dumps(state))
    (place / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path, SETTINGS)
