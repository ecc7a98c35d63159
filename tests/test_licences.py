"""The package says under which licences its parts stand, and carries their texts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

from delfsearch.extraction.registry import REGISTRY, SHIPPED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_licence_of_the_expression_has_its_text_in_the_package():
    names = PROJECT["license"].split(" AND ")
    assert names[0] == "Apache-2.0" and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", name) for name in names)
    files = [path.name for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)]
    for name in names:
        text = "LICENSE" if name == "Apache-2.0" else name
        assert sum(file.startswith(text) for file in files) == 1, name


def test_weights_in_the_package_are_in_the_expression_with_what_they_began_as():
    for name in SHIPPED:
        assert f"LicenseRef-{name}" in PROJECT["license"].split(" AND ")
        text = (ROOT / "licenses" / f"LicenseRef-{name}.txt").read_text(encoding="utf-8")
        assert name in text and "research only" in text
    (entry,) = REGISTRY.values()
    assert entry.licence.startswith("MIT") and "MIT" in PROJECT["license"].split(" AND ")
    notice = (ROOT / "licenses" / f"MIT-{entry.package}.txt").read_text(encoding="utf-8")
    assert f"{entry.package} {entry.version}" in " ".join(notice.split())
    assert "Copyright (c)" in notice and "Permission is hereby granted" in notice
