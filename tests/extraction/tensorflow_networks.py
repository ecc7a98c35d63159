"""The official networks' variables and forward passes, in TensorFlow's own operations.

Written from the papers' and TF-slim's description, apart from the library: oracles for its readers.
Variables come as {name: array} under the official names, made from our arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCKS = ((64, 3), (128, 4), (256, 6))
Arrays = dict[str, np.ndarray]


def head_variables(seed: int = 3) -> Arrays:
    """Return an attention head with batch normalisation, under names of its own."""
    rng = np.random.default_rng(seed)
    return {
        "conv1": (rng.normal(size=(1, 1, 1024, 512)) / 32).astype(np.float32),
        "bias1": rng.normal(size=512).astype(np.float32),
        "gamma": rng.uniform(0.5, 1.5, 512).astype(np.float32),
        "beta": rng.normal(size=512).astype(np.float32),
        "moving_mean": rng.normal(size=512).astype(np.float32),
        "moving_variance": rng.uniform(0.01, 2, 512).astype(np.float32),
        "conv2": (rng.normal(size=(1, 1, 512, 1)) / 23).astype(np.float32),
        "bias2": np.array([2.0], np.float32),
    }


def _parts(ours: Arrays, conv: str, bn: str) -> Arrays:
    return {
        "weights": np.ascontiguousarray(ours[f"{conv}.weight"].transpose(2, 3, 1, 0)),
        "gamma": ours[f"{bn}.weight"],
        "beta": ours[f"{bn}.bias"],
        "moving_mean": ours[f"{bn}.running_mean"],
        "moving_variance": ours[f"{bn}.running_var"],
    }


def slim_variables(ours: Arrays, head: Arrays | None) -> Arrays:
    """Return TF-slim's variables of a trunk under our names, and of an attention head."""
    result: Arrays = {}

    def put(scope: str, conv: str, bn: str) -> None:
        for part, array in _parts(ours, conv, bn).items():
            name = "weights" if part == "weights" else f"BatchNorm/{part}"
            result[f"resnet_v1_50/{scope}/{name}"] = array

    put("conv1", "conv1", "bn1")
    for block, (_, n_units) in enumerate(BLOCKS, start=1):
        for unit in range(n_units):
            ours_unit = f"layer{block}.{unit}"
            scope = f"block{block}/unit_{unit + 1}/bottleneck_v1"
            for i in (1, 2, 3):
                put(f"{scope}/conv{i}", f"{ours_unit}.conv{i}", f"{ours_unit}.bn{i}")
            if unit == 0:
                down = f"{ours_unit}.downsample"
                put(f"{scope}/shortcut", f"{down}.0", f"{down}.1")
    if head is not None:
        scope = "attention_block/attention/compute"
        result[f"{scope}/conv1/weights"] = head["conv1"]
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            result[f"{scope}/conv1/BatchNorm/{part}"] = head[part]
        result[f"{scope}/conv2/weights"] = head["conv2"]
        result[f"{scope}/conv2/biases"] = head["bias2"]
    return result


def slim_forward(tf: Any, variables: Any, images: Any, last_stride: int) -> tuple[Any, Any]:
    """Return features (1, h', w', 1024) and attention (1, h', w') of normalised images.

    variables : mapping from official names to variables or tensors. Operations get the names that
    TF-slim gives them.
    """

    def normalize(x: Any, scope: str) -> Any:
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        parts = [variables[f"{scope}/BatchNorm/{name}"] for name in names]
        return tf.compat.v1.nn.fused_batch_norm(x, *parts, epsilon=1e-5, is_training=False)[0]

    def convolve(x: Any, scope: str, stride: int = 1) -> Any:
        with tf.name_scope(f"{scope}/"):
            kernel = variables[f"{scope}/weights"]
            padding, side = "SAME", int(kernel.shape[0])
            if stride > 1 and side > 1:  # TF-slim's conv2d_same
                before = (side - 1) // 2
                pads = [before, side - 1 - before]
                x, padding = tf.pad(x, [[0, 0], pads, pads, [0, 0]]), "VALID"
            return normalize(tf.nn.conv2d(x, kernel, stride, padding, name="Conv2D"), scope)

    x = tf.nn.relu(convolve(images, "resnet_v1_50/conv1", 2))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for block, (_, n_units) in enumerate(BLOCKS, start=1):
        for unit in range(1, n_units + 1):
            scope = f"resnet_v1_50/block{block}/unit_{unit}/bottleneck_v1"
            stride = 1
            if unit == n_units:
                stride = last_stride if block == 3 else 2
            if unit == 1:
                shortcut = convolve(x, f"{scope}/shortcut", stride)
            else:
                shortcut = tf.nn.max_pool2d(x, 1, stride, "VALID")
            y = tf.nn.relu(convolve(x, f"{scope}/conv1"))
            y = tf.nn.relu(convolve(y, f"{scope}/conv2", stride))
            x = tf.nn.relu(shortcut + convolve(y, f"{scope}/conv3"))
    scope = "attention_block/attention/compute"
    hidden = tf.nn.relu(convolve(x, f"{scope}/conv1"))
    logits = tf.nn.conv2d(hidden, variables[f"{scope}/conv2/weights"], 1, "SAME")
    return x, tf.nn.softplus(logits + variables[f"{scope}/conv2/biases"])[..., 0]


def tf2_model(tf: Any, ours: Arrays, head: Arrays, *, block3_strides: bool, seed: int = 5) -> Any:
    """Return a tf.Module with the attributes, and the forward pass, of the TF2 code of DELF.

    Convolutions have biases here; they are random, and our arrays must have them in their means.
    """
    rng = np.random.default_rng(seed)

    def convolution(kernel: np.ndarray) -> tuple[Any, np.ndarray]:
        layer = tf.Module()
        bias = rng.normal(size=kernel.shape[-1]).astype(np.float32) / 8
        layer.kernel, layer.bias = tf.Variable(kernel), tf.Variable(bias)
        return layer, bias

    def normalization(gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        layer = tf.Module()
        layer.gamma, layer.beta = tf.Variable(gamma), tf.Variable(beta)
        layer.moving_mean, layer.moving_variance = tf.Variable(mean), tf.Variable(variance)
        return layer

    def pair(conv: str, bn: str) -> tuple[Any, Any]:
        parts = _parts(ours, conv, bn)
        layer, bias = convolution(parts["weights"])
        mean = parts["moving_mean"] + bias
        return layer, normalization(parts["gamma"], parts["beta"], mean, parts["moving_variance"])

    model = tf.Module()
    model.backbone, model.attention = tf.Module(), tf.Module()
    net = model.backbone
    net.conv1, net.bn_conv1 = pair("conv1", "bn1")
    for block, (_, n_units) in enumerate(BLOCKS, start=1):
        for unit in range(n_units):
            name, layer = f"layer{block}.{unit}", tf.Module()
            setattr(net, f"l{block + 1}{'abcdef'[unit]}", layer)
            for i, letter in enumerate("abc", start=1):
                convolved, normalized = pair(f"{name}.conv{i}", f"{name}.bn{i}")
                setattr(layer, f"conv2{letter}", convolved)
                setattr(layer, f"bn2{letter}", normalized)
            if unit == 0:
                layer.conv_shortcut, layer.bn_shortcut = pair(
                    f"{name}.downsample.0", f"{name}.downsample.1"
                )
    model.attention.conv1, model.attention.conv2 = tf.Module(), tf.Module()
    model.attention.conv1.kernel = tf.Variable(head["conv1"])
    model.attention.conv1.bias = tf.Variable(head["bias1"])
    model.attention.conv2.kernel = tf.Variable(head["conv2"])
    model.attention.conv2.bias = tf.Variable(head["bias2"])
    model.attention.bn_conv1 = normalization(
        head["gamma"], head["beta"], head["moving_mean"], head["moving_variance"]
    )

    def convolve(x: Any, layer: Any, stride: int = 1) -> Any:
        return tf.nn.conv2d(x, layer.kernel, stride, "SAME") + layer.bias

    def normalize(x: Any, layer: Any) -> Any:
        parts = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        return tf.compat.v1.nn.fused_batch_norm(x, *parts, epsilon=1e-3, is_training=False)[0]

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def extract(image: Any) -> tuple[Any, Any]:
        x = ((tf.cast(image, tf.float32) - 128.0) / 128.0)[None]
        x = tf.nn.relu(normalize(convolve(x, net.conv1, 2), net.bn_conv1))
        x = tf.nn.max_pool2d(x, 3, 2, "VALID")
        for block, (_, n_units) in enumerate(BLOCKS, start=1):
            for unit in range(n_units):
                layer = getattr(net, f"l{block + 1}{'abcdef'[unit]}")
                stride = 2 if unit == 0 and block > 1 else 1
                y = tf.nn.relu(normalize(convolve(x, layer.conv2a, stride), layer.bn2a))
                y = tf.nn.relu(normalize(convolve(y, layer.conv2b), layer.bn2b))
                y = normalize(convolve(y, layer.conv2c), layer.bn2c)
                if unit == 0:
                    x = normalize(convolve(x, layer.conv_shortcut, stride), layer.bn_shortcut)
                x = tf.nn.relu(y + x)
        if block3_strides:
            x = tf.nn.max_pool2d(x, 1, 2, "VALID")
        hidden = convolve(x, model.attention.conv1)
        hidden = tf.nn.relu(normalize(hidden, model.attention.bn_conv1))
        return x[0], tf.nn.softplus(convolve(hidden, model.attention.conv2))[0, ..., 0]

    model.extract = extract
    return model
