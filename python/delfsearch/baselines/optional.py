"""Importing what only some baselines need, with an error that names the extra."""

from __future__ import annotations

import importlib
from typing import Any


def import_optional(module: str, *, extra: str, purpose: str) -> Any:
    """Return a module; raises ImportError that says which extra installs it and for what."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {module}: pip install 'delfsearch[{extra}]' ({error})"
        ) from None
