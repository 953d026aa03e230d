"""Two devices of one machine under `tf.distribute`, for tests/integration/test_workers.py."""

import keras
import numpy as np
import tensorflow as tf
from workers import rings

from oasis_helpers.layers import EMAVectorQuantizer
from oasis_helpers.recipes import patch_networks
from oasis_helpers.vqvae import VQVAE
from tools.mirrored import mirrored

images = rings()
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)


def trained(strategy, restarts: bool):
    """The curves, and the quantiser's values on every device, {name: [one array a device]}."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        encoder, decoder = patch_networks(16, widths=(8, 8), blocks=1)
        options = {"start_from_data": restarts, "restart_below": 0.1 if restarts else 0}
        model = VQVAE(encoder, EMAVectorQuantizer(16, 16, **options), decoder, 0.1, 3.0)
        model = mirrored(model) if strategy.num_replicas_in_sync > 1 else model
        model.compile(keras.optimizers.Adam(1e-3))
    history = model.fit(images, images, 16, 3, shuffle=False, verbose=0).history
    values = {
        variable.name: [
            value.numpy() for value in strategy.experimental_local_results(variable.value)
        ]
        for variable in model.quantizer.weights
    }
    return history, values


one_device = tf.distribute.get_strategy()
two_devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

# Without random restarts, two devices learn what one learns.
curves, values = trained(two_devices, restarts=False)
expected_curves, expected_values = trained(one_device, restarts=False)
for name, expected in expected_curves.items():
    np.testing.assert_allclose(curves[name], expected, atol=1e-4, err_msg=name)
for name, (expected,) in expected_values.items():
    np.testing.assert_allclose(values[name], [expected, expected], atol=1e-4, err_msg=name)

# With them, each device samples vectors of its own, and both take those of the first one.
_, values = trained(two_devices, restarts=True)
assert values["restarts"][0] >= 16, "the codebook did not start from data"
for name, (first, second) in values.items():
    np.testing.assert_array_equal(first, second, name)
