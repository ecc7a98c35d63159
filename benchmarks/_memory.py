"""Memory of this process, where there is /proc."""

from __future__ import annotations

import threading
from pathlib import Path


def memory() -> dict[str, int]:
    """Bytes of this process: resident, of these anonymous and mapped, highest so far."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "mapped", "VmHWM": "highest"}
    found = {}
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) * 1024
    smaps = Path("/proc/self/smaps_rollup")
    if smaps.exists():
        for line in smaps.read_text().splitlines():
            if line.startswith("Pss:"):
                found["proportional"] = int(line.split()[1]) * 1024
    return found


class AnonymousPeak:
    """Watches memory that no file stands behind: what a build cannot do without."""

    def __init__(self) -> None:
        self.highest = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.look()

    def look(self) -> None:
        self.highest = max(self.highest, memory().get("anonymous", 0))

    def __enter__(self) -> AnonymousPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._end.set()
        self._thread.join()
