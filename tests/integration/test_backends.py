"""The package does the same on every Keras backend that is installed, and in half precision."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from oasis_helpers.layers import EMAVectorQuantizer, VectorQuantizer

HERE = Path(__file__).parent
REPOSITORY = str(HERE.parents[1])
BACKENDS = ("tensorflow", "jax", "torch")

pytestmark = pytest.mark.long  # each backend starts and compiles in a process of its own


def results(folder: Path, policies: dict[str, list[str]], **environment) -> dict[str, dict]:
    """{backend: what backend.py found}, all at the same time, each in its own process."""
    running = {
        backend: subprocess.Popen(
            [sys.executable, HERE / "backend.py", folder / f"{backend}.npz", *policies[backend]],
            env={**os.environ, **environment, "KERAS_BACKEND": backend, "PYTHONPATH": REPOSITORY},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in BACKENDS
        if importlib.util.find_spec(backend)
    }
    try:
        printed = {backend: each.communicate(timeout=3000)[1] for backend, each in running.items()}
    finally:
        for process in running.values():
            process.kill()
    for backend, process in running.items():
        assert process.returncode == 0, f"{backend}:\n{printed[backend][-3000:]}"
    return {backend: dict(np.load(folder / f"{backend}.npz")) for backend in running}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    policies = {"tensorflow": ["mixed_float16"], "jax": [], "torch": []}  # compiling takes long
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in half the time
    return results(tmp_path_factory.mktemp("backends"), policies, **quick)


@pytest.fixture(params=BACKENDS)
def one(request, found):
    if request.param not in found:
        pytest.skip(f"{request.param} is not installed")
    return found[request.param]


@pytest.fixture(params=BACKENDS[1:])
def pair(request, found):
    """What TensorFlow and another backend found."""
    if request.param not in found:
        pytest.skip(f"{request.param} is not installed")
    return found["tensorflow"], found[request.param]


def test_the_variable_chooses_the_backend(one):
    assert str(one["backend"]) in one["imported"]


def test_jax_alone_will_do(found):
    assert "tensorflow" not in found["jax"]["imported"]


def test_the_same_weights_give_the_same_values(pair):
    first, second = pair
    for name in ("codes", "samples"):
        np.testing.assert_array_equal(first[name], second[name])
    for name in ("decoded", "bits per code"):
        np.testing.assert_allclose(first[name], second[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_the_same_steps_give_the_same_losses(pair, stage):
    name = f"losses, {stage} stage"
    np.testing.assert_allclose(pair[0][name], pair[1][name], atol=1e-4, rtol=0)
    assert pair[0][name][-1] < pair[0][name][0]


def test_both_stages_learn(one):
    assert one["float32 mse"][-1] < one["float32 mse"][0]
    assert one["float32 loss"][-1] < one["float32 loss"][0]
    assert one["float32 restarts"] >= 8, "the codebook didn't start from data"
    assert 1.5 < one["float32 perplexity"][-1] <= 8


def check_use(one: dict, policy: str) -> None:
    """Training stays finite, saving loses nothing, and outputs have single precision."""

    def of(name):
        return one[f"{policy} {name}"]

    assert np.isfinite(of("mse")).all() and np.isfinite(of("loss")).all()
    # The same weights, but a loaded model is compiled again and may add up in another order.
    tolerance = {"float32": 1e-5, "mixed_float16": 5e-3, "mixed_bfloat16": 5e-2}[policy]
    for name in ("decoded", "log_prob"):
        np.testing.assert_allclose(of(f"{name} before"), of(f"{name} after"), atol=tolerance)
    assert of("decoded after").dtype == of("log_prob after").dtype == np.float32
    assert set(of("quantiser's types")) == {"float32"}


def test_saving_likelihood_and_sampling(one):
    check_use(one, "float32")
    np.testing.assert_array_equal(one["float32 samples"], one["float32 samples by full passes"])


def test_half_precision(found):
    check_use(found["tensorflow"], "mixed_float16")


@pytest.mark.long
def test_half_precision_and_the_discriminator_on_every_backend(tmp_path):
    both = ["mixed_float16", "mixed_bfloat16"]
    for one in results(tmp_path, dict.fromkeys(BACKENDS, both)).values():
        for policy in both:
            check_use(one, policy)
        assert np.isfinite(one["decoder discriminator_loss"]).all()


# -------------------------------------------------------- why some things stay in float32


def test_distances_in_half_precision_pick_the_wrong_entries():
    """Far from the origin the squares are large, and float16 has no digits left to differ in."""
    rng = np.random.default_rng(0)
    entries = np.float32(30 + 0.3 * rng.normal(size=(64, 16)))
    vectors = np.float32(entries[rng.integers(64, size=500)] + rng.normal(0, 0.02, (500, 16)))
    expected = ((vectors[:, None] - entries) ** 2).sum(-1).argmin(-1)

    def right(**options):
        layer = VectorQuantizer(64, 16, **options)
        layer.build((None, 16))
        layer.codebook.assign(entries)
        return np.mean(ops.convert_to_numpy(layer.nearest(vectors)) == expected)

    assert right() == 1
    assert right(dtype="float16") < 0.5


def test_running_sums_in_half_precision_overflow():
    """The 50,000 positions of a batch add up to more than the largest float16, 65,504."""
    vectors = 3 + np.random.default_rng(0).normal(0, 0.1, (50_000, 2)).astype("float32")

    def entry(**options):
        layer = EMAVectorQuantizer(1, 2, decay=0.5, start_from_data=False, **options)
        layer(vectors, training=True)
        return ops.convert_to_numpy(layer.codebook)

    np.testing.assert_allclose(entry(), vectors.mean(0)[None], atol=1e-4)
    assert not np.isfinite(entry(dtype="float16")).any()
