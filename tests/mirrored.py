"""Two devices of one machine under `tf.distribute`, for tests/test_scaling.py."""

import keras
import numpy as np
import tensorflow as tf
from workers import rings

from oasis_helpers.vqvae import improved_vqvae

images = rings()
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)


def trained(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = improved_vqvae(0.1, 16, num_embeddings=16, widths=(8, 8), blocks=1)
        model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    history = model.fit(images, images, 16, 3, shuffle=False, verbose=0).history
    return [history["loss"], history["mse"]], model.quantizer.codebook.value


alone, _ = trained(tf.distribute.get_strategy())
together, codebook = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
first, second = (copy.numpy() for copy in codebook.values)
np.testing.assert_array_equal(first, second)
np.testing.assert_allclose(together, alone, rtol=1e-3)
