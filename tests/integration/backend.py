"""What one Keras backend makes of the package, for test_backends.py: a process of its own.

KERAS_BACKEND=jax python tests/integration/backend.py FILE.npz
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from workers import rings

from oasis_helpers import load_pretrained, pretrained, sample_codes
from oasis_helpers.adversarial import AdversarialDecoder, patch_discriminator
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN
from oasis_helpers.recipes import improved_vqvae, reference_vqvae

IMPORTED = set(sys.modules)  # before Keras reaches for TensorFlow itself, in `fit`
LIKELIHOOD = keras.losses.SparseCategoricalCrossentropy


def first_stage(kind: str):
    if kind == "reference":
        return reference_vqvae(0.1, 16, 8)
    return improved_vqvae(0.1, 16, num_embeddings=8, widths=(8, 8), blocks=1)


def second_stage(kind: str):
    if kind == "reference":
        return MaskedPixelCNN(8, (2, 2), filters=8, blocks=1)
    return GatedPixelCNN(8, (2, 2), filters=8, blocks=1, num_heads=2, dropout=0.0)


def shipped() -> dict:
    """Values of the shipped weights on slices that any machine makes alike."""
    models = load_pretrained("cohort")
    y, x = np.mgrid[:80, :80] / 80 - 0.5
    shapes = [np.hypot(x / a, y / b) < 0.4 for a, b in ((0.8, 1), (1, 0.8), (0.6, 0.9), (1, 1))]
    images = np.float32([0.3 * shape * (1 + np.cos(25 * x * y)) for shape in shapes])[..., None]
    codes, indices = models.vqvae.encode(images), np.array([0, 10, 20, 31])
    return {
        "codes": codes,
        "decoded": models.vqvae.decode(codes),
        "bits per code": models.prior.log_prob(codes, indices) / np.log(2) / codes[0].size,
        "samples": sample_codes(models.prior, 3, seed=4),
    }


def same_steps() -> dict:
    """Losses of a few steps of gradient descent from the same weights, of the reference.

    Not of Adam, because it takes other steps under TensorFlow: Keras squares a gradient through
    `ops.take` there row by row, before the rows of one entry are added up.
    """
    images = rings()
    codes = np.random.default_rng(1).integers(0, 8, (len(images), 2, 2)).astype("int32")
    cases = {
        "first": (first_stage("reference"), images, images),
        "second": (second_stage("reference"), (codes, np.zeros(len(codes), "int32")), codes),
    }
    losses = {}
    for stage, (model, inputs, targets) in cases.items():
        rng = np.random.default_rng(2)
        model.set_weights([rng.normal(0, 0.1, value.shape) for value in model.get_weights()])
        loss = {"loss": LIKELIHOOD(from_logits=True)} if stage == "second" else {}
        model.compile(keras.optimizers.SGD(0.02), **loss)
        history = model.fit(inputs, targets, 16, 3, verbose=0, shuffle=False).history
        losses[f"losses, {stage} stage"] = history["loss"]
    return losses


def both_stages(epochs: int) -> dict:
    """Trains, saves and loads both of our stages; what came out."""
    keras.utils.set_random_seed(0)
    images, indices = rings(), np.arange(64) % 32
    vqvae, prior = first_stage("ours"), second_stage("ours")
    vqvae.compile(keras.optimizers.Adam(3e-3))
    first = vqvae.fit(images, images, 16, epochs, verbose=0).history
    codes = vqvae.encode(images)
    optimizer = keras.optimizers.AdamW(3e-3, clipnorm=1.0, use_ema=True, ema_momentum=0.9)
    prior.compile(optimizer, LIKELIHOOD(from_logits=True), metrics=["accuracy"])
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    inputs, unseen = (codes, indices), ((codes[:16], indices[:16]), codes[:16])
    second = prior.fit(
        inputs, codes, 16, epochs, verbose=0, callbacks=[swap], validation_data=unseen
    ).history
    found = {
        "mse": first["mse"],
        "perplexity": first["perplexity"],
        "restarts": float(vqvae.quantizer.restarts),
        "loss": second["loss"],
        "samples": sample_codes(prior, 5),
        "samples by full passes": sample_codes(prior, 5, cached=False),
        "quantiser's types": [variable.dtype for variable in vqvae.quantizer.weights],
    }
    with tempfile.TemporaryDirectory() as folder:
        for number, model in enumerate((vqvae, prior)):
            pretrained.save_model(model, Path(folder) / f"{number}.keras")
        again = [
            keras.saving.load_model(Path(folder) / f"{n}.keras", compile=False) for n in (0, 1)
        ]
    for when, (one, other) in {"before": (vqvae, prior), "after": again}.items():
        found[f"decoded {when}"] = one.decode(one.encode(images))
        found[f"log_prob {when}"] = other.log_prob(codes, indices)
    return found


def fine_tuned() -> dict:
    vqvae, images = first_stage("ours"), rings()
    model = AdversarialDecoder(vqvae, patch_discriminator(16, vqvae.region, filters=8))
    model.compile(keras.optimizers.Adam(1e-3))
    return model.fit(vqvae.encode(images), images, 16, 1, verbose=0).history


def main(file: str, *policies: str) -> None:
    found = {"backend": keras.backend.backend(), "imported": sorted(IMPORTED)}
    found |= shipped() | same_steps()
    if "mixed_bfloat16" in policies:  # the long form
        found |= {f"decoder {name}": values for name, values in fine_tuned().items()}
    for policy, epochs in {"float32": 12, **dict.fromkeys(policies, 1)}.items():
        keras.config.set_dtype_policy(policy)
        found |= {f"{policy} {name}": value for name, value in both_stages(epochs).items()}
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
