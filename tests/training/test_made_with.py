"""Recipes list the versions and machines that a run was computed with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training.small import OPTIMIZATION, RUN, VIEWS, stop_after

import delfsearch
from delfsearch.extraction.weights import load_weights
from delfsearch.training import AttentionTrainer


def test_a_recipe_says_what_it_was_made_with(weights_path, photos, tmp_path, monkeypatch):
    trainer = AttentionTrainer(
        weights_path,
        output=tmp_path,
        gammas=(1.0,),
        views=VIEWS,
        optimization=OPTIMIZATION,
        precision="fp32",
        run=dataclasses.replace(RUN, checkpoint_every=1),
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(photos, progress=stop_after(1))
    here = {
        "delfsearch": delfsearch.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "processes": 1,
    }
    # It goes on on another machine, and a third has nothing left to do.
    for capability in ("of another machine", "of a third"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        trainer.fit(photos)
        recipe = load_weights(tmp_path / "weights.safetensors").recipe
        there = {**here, "cpu_capability": "of another machine"}
        assert recipe["made_with"] == [here, there]
        assert recipe["delfsearch"] == delfsearch.__version__
