"""The trunk as others run it, for benchmarks/extraction.py: photos' levels in, features out.

Each network is a call rgb (h, w, 3) uint8 -> (h', w', 1024) float tensor. All compute the same
function of the same weights; OpenVINO and onnxruntime get it through our ONNX export.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _int8 import Int8Trunk

from delfsearch.extraction.network import FoldedTrunk, ResNet50Conv4
from delfsearch.extraction.onnx_export import export_onnx
from delfsearch.extraction.runtime import Runtime, processor_has_bf16
from delfsearch.extraction.strips import features_in_strips
from delfsearch.extraction.weights import Weights

Network = Callable[[np.ndarray], torch.Tensor]


class Absent(Exception):
    """Why a network cannot be measured here."""


def eager(weights: Weights) -> Network:
    """What a straightforward implementation runs: float32, NCHW, nothing folded or fused."""
    model, mean, std = _reference(weights)

    def run(rgb: np.ndarray) -> torch.Tensor:
        x = ((torch.from_numpy(rgb).permute(2, 0, 1).float() - mean) / std)[None].contiguous()
        with torch.inference_mode():
            return model(x)[0].permute(1, 2, 0)

    return run


def compiled(weights: Weights) -> Network:
    """torch.compile in bfloat16, channels_last, weights frozen in, a graph for each size."""
    import torch._dynamo
    import torch._inductor.config

    model, mean, std = _reference(weights)
    model = model.to(torch.bfloat16, memory_format=torch.channels_last)
    fast = torch.compile(model, dynamic=False)

    def run(rgb: np.ndarray) -> torch.Tensor:
        torch._inductor.config.freezing = True  # both hold for the calling thread alone
        torch._dynamo.config.recompile_limit = 64
        x = ((torch.from_numpy(rgb).permute(2, 0, 1).float() - mean) / std)[None]
        with torch.no_grad():
            return fast(x.to(torch.bfloat16, memory_format=torch.channels_last))[0].permute(1, 2, 0)

    return run


def openvino(weights: Weights, threads: int) -> Network:
    """OpenVINO on the CPU in bfloat16, one stream."""
    _need("openvino")
    _need("onnx")
    import openvino as ov

    core = ov.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(weights, path, score="l2")
        model = core.compile_model(
            core.read_model(path),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
    request = model.create_infer_request()

    def run(rgb: np.ndarray) -> torch.Tensor:
        request.infer([rgb[None]])
        # A copy: the next call writes to the same memory.
        return torch.from_numpy(request.get_output_tensor(0).data[0].copy()).permute(1, 2, 0)

    return run


def onnxruntime(weights: Weights, threads: int) -> Network:
    """The onnxruntime on the CPU in float32."""
    _need("onnxruntime")
    _need("onnx")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(weights, path, score="l2")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(rgb: np.ndarray) -> torch.Tensor:
        (features,) = session.run(["features"], {"image": rgb[None]})
        return torch.from_numpy(features)[0].permute(1, 2, 0)

    return run


def ours(runtime: Runtime) -> Network:
    """What DelfExtractor runs."""

    def run(rgb: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return runtime.dense(rgb)

    return run


def int8_trial(weights: Weights) -> Network:
    """Ours with three quarters of the arithmetic in int8, see _int8.py; one thread.

    A photo's levels must come smallest first: the scales come from those up to 256 pixels.
    """
    if not processor_has_bf16():
        raise Absent("not measured: needs a processor with AVX512_BF16 and AVX512_VNNI")
    trunk = Int8Trunk(
        weights.tensors,
        weights.layout,
        bn_eps=weights.bn_eps,
        input_std=weights.input_std,
        dtype=torch.bfloat16,
    )
    mean = torch.tensor(weights.input_mean)
    current: FoldedTrunk = trunk

    def run(rgb: np.ndarray) -> torch.Tensor:
        nonlocal current
        image = torch.from_numpy(rgb)
        with torch.inference_mode():
            if max(rgb.shape) <= 256:
                current = trunk.calibrated(image, mean)
            return features_in_strips(current, image, mean)[0].permute(1, 2, 0)

    return run


class PeerRuntime(Runtime):
    """Our runtime with another's network: what is around it stays the same."""

    network: Network | None = None

    def dense(self, rgb: np.ndarray) -> torch.Tensor:
        return super().dense(rgb) if self.network is None else self.network(rgb)


def _reference(weights: Weights) -> tuple[Any, torch.Tensor, torch.Tensor]:
    model = ResNet50Conv4(weights.layout, weights.bn_eps).eval()
    model.load_state_dict({**model.state_dict(), **weights.tensors})
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.input_mean, weights.input_std))
    return model, mean, std


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Absent(f"not measured: pip install {package}")
