import io

import pytest

from delfsearch.cli.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 ms"),
        (-1, "0 ms"),
        (0.0004, "0 ms"),
        (0.34, "340 ms"),
        (0.9996, "1.0 s"),
        (4.16, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_terminal_gets_one_line_with_rate_and_time_left():
    clock, stream = Clock(), Terminal()
    progress = Progress(100, "photos", stream=stream, clock=clock)
    for done in range(1, 51):
        clock.now += 0.5
        progress.update(done)
    progress.finish()
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert last.rstrip() == "50/100 photos, 2.0 a second, 25 s left"
    assert stream.getvalue().count("\n") == 1


def test_slow_items_are_given_in_time_each():
    progress = Progress(10, "photos", every_s=0)
    progress.update(1)
    assert progress.line(2, 8.0) == "2/10 photos, 4.0 s each, 32 s left"


def test_items_of_an_earlier_run_do_not_count_into_the_rate():
    progress = Progress(1000, "photos", every_s=0)
    progress.update(901)
    assert progress.line(910, 10.0) == "910/1000 photos, 1.0 a second, 1 min 30 s left"


def test_a_log_gets_a_line_every_so_often_and_the_last():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(40, "photos", every_s=10, stream=stream, clock=clock)
    for done in range(1, 41):
        clock.now += 1
        progress.update(done)
    progress.finish()
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "10/40 photos",
        "20/40 photos",
        "30/40 photos",
        "40/40 photos",
    ]


def test_quiet_terminal():
    stream = Terminal()
    progress = Progress(1, "photos", every_s=0, stream=stream)
    progress.update(1)
    progress.finish()
    assert stream.getvalue() == ""


def test_a_long_run_off_a_terminal_is_told_of_every_half_minute_unasked():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(40, "photos", stream=stream, clock=clock)
    for done in range(1, 41):
        clock.now += 1.0
        progress.update(done)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["30/40 photos", "40/40 photos"]
    stream = io.StringIO()
    short = Progress(5, "photos", stream=stream, clock=clock)
    for done in range(1, 6):
        short.update(done)
    assert stream.getvalue() == ""
