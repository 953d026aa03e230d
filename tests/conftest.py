"""Small slices and untrained weights for tests to break, and what a refusal has to look like."""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def slice_root(tmp_path, monkeypatch):
    """Two training subjects of three slices, 64 x 64 pixels, and one subject in each other split.

    Each slice shows a block, rows 20-43 and columns 24-39, with a brightness of its own.
    """
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "cache"))
    root = tmp_path / "slices"
    for split, subjects in (("train", (2, 10)), ("validate", (3,)), ("test", (4,))):
        folder = root / "keras_png_slices_data" / f"keras_png_slices_{split}"
        folder.mkdir(parents=True)
        for subject, index in itertools.product(subjects, (0, 2, 10)):
            pixels = np.zeros((64, 64), "uint8")
            pixels[20:44, 24:40] = 150 + 3 * subject + index
            Image.fromarray(pixels).save(folder / f"case_{subject:03d}_slice_{index}.nii.png")
    return root


@pytest.fixture
def train_folder(slice_root):
    return slice_root / "keras_png_slices_data" / "keras_png_slices_train"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A folder of untrained weights: slices of 16 x 16 pixels, 4 x 4 codes out of 12."""
    from oasis_helpers import pretrained
    from oasis_helpers.data import write_json
    from oasis_helpers.pixelcnn import GatedPixelCNN
    from oasis_helpers.recipes import improved_vqvae

    folder = tmp_path_factory.mktemp("untrained")
    vqvae = improved_vqvae(1.0, 16, patch=(2, 2), num_embeddings=12, widths=(4, 4), blocks=1)
    prior = GatedPixelCNN(12, (4, 4), filters=4, blocks=1, num_heads=1)
    pretrained.save_model(vqvae, folder / "vqvae.keras")
    pretrained.save_model(prior, folder / "prior.keras")
    scores = {
        "data": "oasis1",
        "frame": {"size": 16, "crop": None, "side": 64},
        "recipe": {"data": "oasis1"},
        "weights": pretrained.stages_digest(folder),
        "test": {"bits_per_slice": round(vqvae.bits_per_slice, 1)},
        "test_fingerprint": "of other slices",
    }
    write_json(folder / "scores.json", scores)
    write_json(folder / "history.json", {"recipe": {"data": "oasis1"}})
    return folder


@pytest.fixture(scope="session")
def vqvae(untrained):
    """An untrained VQ-VAE for slices of 16 x 16 pixels: 4 x 4 codes out of 12."""
    from oasis_helpers import pretrained

    return pretrained.load_model(untrained / "vqvae.keras")


@pytest.fixture(scope="session")
def prior(untrained):
    """An untrained gated prior over 4 x 4 codes out of 12."""
    from oasis_helpers import pretrained

    return pretrained.load_model(untrained / "prior.keras")


@pytest.fixture
def weights(untrained, tmp_path, monkeypatch):
    """The folder of all weights, with copies of `untrained` named cohort, oasis1 and tiny."""
    from oasis_helpers import pretrained

    folder = tmp_path / "weights"
    for name in ("cohort", "oasis1", "tiny"):
        shutil.copytree(untrained, folder / name)
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    return folder


@pytest.fixture
def refused(tmp_path):
    """Checks that a call ends with a sentence that holds some words, and changes no file."""

    def check(call, *words, error=ValueError):
        before = hashes_of_files(tmp_path)
        with pytest.raises(error) as caught:
            call()
        message = str(caught.value).strip()
        for word in words:
            assert word in message
        assert message.endswith((".", ")"))
        after = hashes_of_files(tmp_path)
        assert {path: after.get(path) for path in before} == before, "a file was changed"
        left_over = [path for path in after if re.match(r"\.\d+-", path.name)]
        assert not left_over, "a half-written file was left"

    return check


def hashes_of_files(folder):
    """{path: hash of the content, or where a link leads} of everything below a folder."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            files[path] = os.readlink(path)
        elif path.is_file():
            files[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


@pytest.fixture
def full_disk():
    """A context in which no file of this process can grow beyond 520 bytes."""
    resource = pytest.importorskip("resource", reason="Windows sets no such limit")

    @contextlib.contextmanager
    def limit():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (520, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limit


@pytest.fixture
def open_folder():
    """A folder that other users may enter, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def as_another_user():
    """A context in which this process has no rights of its own: root may read and write all."""
    if not hasattr(os, "seteuid"):
        pytest.skip("Windows has no user that this process can become")

    @contextlib.contextmanager
    def become():
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)

    return become
