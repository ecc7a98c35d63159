"""What a run was computed with: versions and machine, for the recipe of the weights.

No setting of the run: it may go on elsewhere, and its recipe then lists both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from delfsearch import __version__
from delfsearch.training.processes import Processes


def made_with(processes: Processes) -> dict[str, Any]:
    """Return, JSON-able, what the last bits of a result depend on beside its settings."""
    device = processes.device
    on_gpu = device.type == "cuda"
    return {
        "delfsearch": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }
