"""The trunk in training: a frozen part that is folded and runs without gradient, then the rest.

With frozen batch normalisation its statistics are those of the weights, and it is folded into the
convolutions within the graph: gradients reach kernels, scales and shifts through the folding, while
activations pass memory once instead of twice, and the strides may lie where they save most work
(economical_units). With trained batch normalisation a batch is normalised by its own statistics,
and the running ones, which count later, follow them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delfsearch._validation import check_choice
from delfsearch.extraction.network import (
    FoldedTrunk,
    ResNet50Conv4,
    _Bottleneck,
    _conv1_padding,
    _pad_conv1,
    _pool,
    economical_units,
    units,
)
from delfsearch.extraction.weights import Weights

TRAINABLE = ("all", "layer2+", "layer3")
BATCH_NORM = ("frozen", "trained")
# Blocks (layer1 is the first) that do not change; "all" trains conv1 too.
_N_FROZEN = {"all": 0, "layer2+": 1, "layer3": 2}


class TrainableTrunk(nn.Module):
    """(n, h, w, 3) uint8 RGB -> (n, 1024, h', w') conv4_x features.

    trainable : "all", "layer2+" (layer2 and layer3) or "layer3". batch_norm : "frozen" or
        "trained". frozen_dtype : of the frozen part, which runs on `device`.
    Its parameters and buffers are those that training changes, under torchvision's names.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        trainable: str,
        batch_norm: str,
        frozen_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        check_choice(trainable, "trainable", TRAINABLE)
        self.layout = weights.layout
        self.batch_norm = check_choice(batch_norm, "batch_norm", BATCH_NORM)
        n_frozen = _N_FROZEN[trainable]
        net = ResNet50Conv4(weights.layout, weights.bn_eps)
        # num_batches_tracked, which nothing here counts, is the one that weights lack.
        net.load_state_dict({**net.state_dict(), **weights.tensors})
        names = ["layer1", "layer2", "layer3"][n_frozen:]
        if not n_frozen:
            names = ["conv1", "bn1", *names]
        for name in names:
            self.add_module(name, getattr(net, name))
        self.to(torch.device(device))
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._frozen: FoldedTrunk | None = None
        if n_frozen:
            self._frozen = FoldedTrunk(
                weights.tensors,
                weights.layout,
                bn_eps=weights.bn_eps,
                input_std=weights.input_std,
                dtype=frozen_dtype,
                device=device,
                n_blocks=n_frozen,
            )
        self._mean = torch.tensor(weights.input_mean, device=device)[:, None, None]
        self._deviation = torch.tensor(weights.input_std, device=device)[:, None, None]
        moved = self.batch_norm == "frozen"
        rows = economical_units(weights.layout) if moved else units(weights.layout)
        self._units = [unit for unit in rows if unit.block >= n_frozen]
        if n_frozen and not moved and economical_units(weights.layout) != rows:
            # The frozen part has already taken the stride that its last block is followed by.
            self._units[0] = self._units[0]._replace(stride_1x1=1)
        self._subsamples = weights.layout == "delg" and not moved

    def forward(self, photos: Tensor) -> Tensor:
        """Return the features of a batch of photos."""
        x = photos.permute(0, 3, 1, 2).float() - self._mean
        if self._frozen is not None:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                x = self._frozen(x)
        else:
            x = (x / self._deviation).contiguous(memory_format=torch.channels_last)
            x = _pad_conv1(x, self.layout)
            conv, bn = self.get_submodule("conv1"), self.get_submodule("bn1")
            x = self._conv_bn(x, conv, bn, 2, _conv1_padding(self.layout)).relu_()
            x = _pool(x, self.layout)
        for unit in self._units:
            module: _Bottleneck = self.get_submodule(unit.prefix)  # type: ignore[assignment]
            stride = unit.stride_1x1 * unit.stride_3x3
            y = self._conv_bn(x, module.conv1, module.bn1, unit.stride_1x1, 0).relu_()
            y = self._conv_bn(y, module.conv2, module.bn2, unit.stride_3x3, 1).relu_()
            y = self._conv_bn(y, module.conv3, module.bn3, 1, 0)
            if isinstance(module.downsample, nn.Sequential):
                conv, bn = module.downsample
                x = self._conv_bn(x, conv, bn, stride, 0)
            elif stride > 1:
                x = x[:, :, ::stride, ::stride]
            x = y.add_(x).relu_()
        return x[:, :, ::2, ::2] if self._subsamples else x

    def _conv_bn(self, x: Tensor, conv: nn.Module, bn: nn.Module, stride: int, pad: int) -> Tensor:
        kernel: Tensor = conv.weight  # type: ignore[assignment]
        if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None or bn.running_var is None:
            raise TypeError("a convolution of the trunk must be followed by batch normalisation")
        if self.batch_norm == "trained" and self.training:
            y = F.conv2d(x, kernel, None, stride, pad)
            return F.batch_norm(
                y, bn.running_mean, bn.running_var, bn.weight, bn.bias, True, 0.1, bn.eps
            )
        gain = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        kernel = kernel * gain[:, None, None, None]
        return F.conv2d(x, kernel, bn.bias - bn.running_mean * gain, stride, pad)
