"""Write the golden tensor bundles of this folder, with TensorFlow.

    pip install tensorflow-cpu
    PYTHONPATH=tests python tests/data/tensor_bundles/write.py

single    one shard, all dtypes, long names, two partitioned variables (TF1 Saver)
sharded   the same in two shards, one for each of two devices (TF1 Saver)
objects   an object-based checkpoint (TF2 Checkpoint)
saved     a SavedModel with a strided convolution and a pooling of one cell (TF2)
"""

from __future__ import annotations

import shutil

import numpy as np
import tensorflow as tf
from tensor_bundles import GOLDEN, golden_tensors, partitioned

v1 = tf.compat.v1


def write_v1(prefix: str, *, sharded: bool) -> None:
    with tf.Graph().as_default():
        for i, (name, value) in enumerate(golden_tensors().items()):
            with tf.device(f"/cpu:{i % 2 if sharded else 0}"):
                dtype = tf.bfloat16 if name == "bfloat16" else value.dtype
                v1.get_variable(name, initializer=tf.cast(tf.constant(value), dtype))
        for axis, (name, value) in enumerate(partitioned().items()):
            v1.get_variable(
                name,
                shape=value.shape,
                dtype=value.dtype,
                initializer=lambda shape, dtype, partition_info, value=value: tf.constant(
                    value[tuple(slice(o, o + n) for o, n in zip(partition_info.var_offset, shape))],
                    dtype,
                ),
                partitioner=v1.fixed_size_partitioner(3, axis=axis),
            )
        config = v1.ConfigProto(device_count={"CPU": 2})
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            saver = v1.train.Saver(sharded=sharded, write_version=v1.train.SaverDef.V2)
            saver.save(session, str(GOLDEN / prefix), write_meta_graph=False)


class Leaf(tf.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.full((1, 1, 2, 2), value, np.float32))
        self.bias = tf.Variable(np.array([value, -value], np.float32))


class Model(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = tf.Module()
        self.backbone.first = Leaf(1.0)
        self.backbone.second = Leaf(2.0)
        self.steps = tf.Variable(7, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 2], tf.float32)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.conv2d(x, self.backbone.first.kernel, 2, "VALID", name="conv")
        ones = tf.ones(2)
        x = v1.nn.fused_batch_norm(x, ones, ones, 0 * ones, ones, epsilon=0.003, is_training=False)[
            0
        ]
        return tf.nn.max_pool2d(x, 1, 2, "VALID")


def main() -> None:
    write_v1("single", sharded=False)
    write_v1("sharded", sharded=True)
    (GOLDEN / "checkpoint").unlink(missing_ok=True)
    tf.train.Checkpoint(model=Model()).write(str(GOLDEN / "objects"))
    shutil.rmtree(GOLDEN / "saved", ignore_errors=True)
    tf.saved_model.save(Model(), str(GOLDEN / "saved"))
    (GOLDEN / "saved/fingerprint.pb").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
