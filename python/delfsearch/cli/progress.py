"""Progress of long commands on standard error: done, rate, time left.

A terminal gets one line that is redrawn; anything else gets one line every half minute, or as often
as asked for, so that logs stay readable. ASCII only: any terminal can show it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

_REDRAW_SECONDS = 0.2
_LINE_SECONDS = 10.0
_UNASKED_LINE_SECONDS = 30.0


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it: '340 ms', '4.2 s', '3 min 20 s', '2 h 05 min'."""
    if seconds < 0.9995:
        return f"{1000 * max(seconds, 0.0):.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


class Progress:
    """Shows how far a loop over a known number of items has come.

    total : number of items. unit : what is counted, in the plural.
    every_s : off a terminal one line every so many seconds, the last one too; None: every half
        minute, so nothing of what is over sooner; 0 shows nothing at all, anywhere.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        every_s: float | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.unit = unit
        self.stream = sys.stderr if stream is None else stream
        self.redraws = every_s is None and bool(getattr(self.stream, "isatty", bool)())
        self._asked = every_s is not None
        if every_s is None:
            every_s = _REDRAW_SECONDS if self.redraws else _UNASKED_LINE_SECONDS
        self.every_s = every_s
        self._clock = clock
        self._start = clock()
        self._shown_at = self._start
        self._first_done: int | None = None
        self._width = 0

    def update(self, done: int) -> None:
        """Say that ``done`` items are finished; shows it if enough time has passed."""
        now = self._clock()
        if self._first_done is None:
            # Items done before the first call (a resumed run) took no time in this one.
            self._first_done = max(done - 1, 0)
        last = done >= self.total and (self.redraws or self._asked or self._shown_at > self._start)
        if self.every_s <= 0 or (now - self._shown_at < self.every_s and not last):
            return
        self._shown_at = now
        self._show(self.line(done, now - self._start))

    def line(self, done: int, elapsed: float) -> str:
        """Return the text for ``done`` items after ``elapsed`` seconds."""
        new = done - (self._first_done or 0)
        text = f"{done}/{self.total} {self.unit}"
        if new > 0 and elapsed > 0:
            rate = new / elapsed
            left = max(self.total - done, 0) / rate
            shown = f"{rate:.1f} a second" if rate >= 1 else f"{format_seconds(1 / rate)} each"
            text += f", {shown}, {format_seconds(left)} left"
        return text

    def finish(self) -> None:
        """End the redrawn line, if there is one, so that what follows starts on its own line."""
        if self.redraws and self._width:
            self.stream.write("\n")
            self.stream.flush()
            self._width = 0

    def _show(self, text: str) -> None:
        if self.redraws:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


class ShownProgress:
    """A progress callback of ImageSearch that is shown, ended with its line, and timed.

    every_s : as in Progress. after_interrupt : what to do after Ctrl-C, for its message.
    """

    def __init__(self, every_s: float | None, after_interrupt: str) -> None:
        self._every_s = every_s
        self._after_interrupt = after_interrupt
        self._shown: Progress | None = None
        self._started = time.perf_counter()
        self.seconds = 0.0

    def __call__(self, done: int, total: int, seconds: float, path: str) -> None:
        """Say that ``done`` photos are finished."""
        if self._shown is None:
            self._shown = Progress(total, "photos", every_s=self._every_s)
        self._shown.update(done)

    def __enter__(self) -> ShownProgress:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.seconds = time.perf_counter() - self._started
        if self._shown is not None:
            self._shown.finish()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted; what is finished is kept, and {self._after_interrupt}"
            ) from None


class StagedProgress:
    """Progress of work in named stages: a new line for each."""

    def __init__(self, every_s: float | None) -> None:
        self._every_s = every_s
        self._stage: str | None = None
        self._progress: Progress | None = None

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how much of a stage is done; another stage than before begins a new line."""
        if self._stage != stage:
            self.finish()
            self._stage = stage
            self._progress = Progress(total, stage, every_s=self._every_s)
        if self._progress is not None:
            self._progress.update(done)

    def finish(self) -> None:
        """End the line."""
        if self._progress is not None:
            self._progress.finish()
