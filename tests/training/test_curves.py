from __future__ import annotations

import logging
import resource
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delfsearch import plotting
from delfsearch.training import CheckpointError, curves, read_curves
from delfsearch.training.curves import COLUMNS, JOINT_COLUMNS, CurveWriter


def rows(first, last):
    return [
        (step, 1 + step // 4, float(np.float32(1 / step)), step / 10, 0.1 / step, step * 0.5)
        for step in range(first, last + 1)
    ]


def write(folder, first, last, done=0, **options):
    writer = CurveWriter(folder, COLUMNS, done=done, **options)
    writer.add(rows(first, last))
    writer.close()


def test_every_digit_is_kept(tmp_path):
    write(tmp_path, 1, 9)
    found = read_curves(tmp_path)
    assert tuple(found) == COLUMNS
    assert found["step"].dtype == np.int64 and found["step"].tolist() == list(range(1, 10))
    for i, name in enumerate(COLUMNS):
        assert found[name].tolist() == [row[i] for row in rows(1, 9)]


def test_a_run_that_goes_on_replaces_the_steps_it_does_again(tmp_path):
    write(tmp_path, 1, 9)
    write(tmp_path, 7, 12, done=6)
    assert read_curves(tmp_path)["step"].tolist() == list(range(1, 13))
    write(tmp_path, 1, 3)  # from the start
    assert read_curves(tmp_path / "curves.csv")["step"].tolist() == [1, 2, 3]


def test_half_a_row_of_a_killed_run_does_no_harm(tmp_path):
    write(tmp_path, 1, 5)
    path = tmp_path / "curves.csv"
    path.write_text(path.read_text() + "6,2,0.1")
    assert read_curves(tmp_path)["step"].tolist() == [1, 2, 3, 4, 5]
    write(tmp_path, 5, 6, done=4)
    assert read_curves(tmp_path)["step"].tolist() == [1, 2, 3, 4, 5, 6]


@given(done=st.integers(0, 12), lost=st.integers(0, 400), tail=st.sampled_from(["", "\0\0", "1"]))
@settings(deadline=None, max_examples=40)
def test_a_torn_file_keeps_the_whole_rows_up_to_the_checkpoint(tmp_path_factory, done, lost, tail):
    """Cut off at any byte, with what a crash may leave after it."""
    folder = tmp_path_factory.mktemp("torn")
    write(folder, 1, 12)
    path = folder / "curves.csv"
    text = path.read_bytes()
    header = text.index(b"\n") + 1
    left = text[: max(header, len(text) - lost)]
    path.write_bytes(left + tail.encode())
    n_kept = min(done, left.count(b"\n") - 1)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("delfsearch").addHandler(handler)
    try:
        write(folder, done + 1, 14, done=done)
    finally:
        logging.getLogger("delfsearch").removeHandler(handler)
    expected = [*rows(1, n_kept), *rows(done + 1, 14)]
    lines = path.read_bytes().decode().split("\r\n")
    assert lines == [",".join(COLUMNS), *(",".join(map(repr, row)) for row in expected), ""]
    assert read_curves(folder)["step"].tolist() == [row[0] for row in expected]
    warned = [f"lacks {done - n_kept} of the {done} steps"] if n_kept < done else []
    assert len(records) == len(warned)
    assert all(words in r.getMessage() for words, r in zip(warned, records))


def test_curves_that_are_gone_are_missed(tmp_path, caplog):
    write(tmp_path, 7, 9, done=6)
    assert read_curves(tmp_path)["step"].tolist() == [7, 8, 9]
    assert "curves.csv lacks 6 of the 6 steps" in caplog.text


def test_a_full_disk_is_said(tmp_path):
    writer = CurveWriter(tmp_path, COLUMNS, done=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the system itself refuses
    try:
        with pytest.raises(
            CheckpointError, match=r"curves\.csv .*free some space and run again: it goes on"
        ):
            writer.add(rows(1, 9))
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write(tmp_path, 1, 9)
    assert len(read_curves(tmp_path)["step"]) == 9
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="training curves cannot be written"):
        CurveWriter(tmp_path / "file", COLUMNS, done=0)


def test_other_tables_are_refused(tmp_path):
    (tmp_path / "curves.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="training curves"):
        read_curves(tmp_path)


def test_tensorboard_gets_every_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 1, 6, tensorboard=True)
    write(tmp_path, 5, 8, done=4, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "accuracy", "learning_rate", "seconds"}
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == {row[0]: row[2] for row in rows(1, 8)}


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install delfsearch\[tensorboard\]"):
        CurveWriter(tmp_path, COLUMNS, done=0, tensorboard=True)


def test_curves_are_drawn(tmp_path):
    write(tmp_path, 1, 200)
    figure = plotting.plot_training_curves(read_curves(tmp_path), title="$run")
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "loss" and accuracy.get_ylabel() == "accuracy"
    steps, values = loss.lines[0].get_data()
    assert list(steps) == list(range(1, 201)) and values[3] == np.float32(0.25)
    course = loss.lines[1].get_ydata()
    expected = [values[max(0, i - 5) : i + 6].mean() for i in range(200)]
    assert np.allclose(course, expected)
    figure.savefig(tmp_path / "curves.png")


def test_joint_curves_have_two_lines():
    columns = {name: np.arange(1.0, 5.0) for name in JOINT_COLUMNS}
    figure = plotting.plot_training_curves(columns)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["descriptor", "attention"]


def test_curves_without_steps_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        plotting.plot_training_curves({name: np.zeros(0) for name in curves.COLUMNS})
