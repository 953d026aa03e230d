"""Slices streamed from the disk, shares of batches and of samples, sizes with one rate."""

import numpy as np
import pytest

from oasis_helpers import distributed, load_slices, sample_codes
from oasis_helpers.data import SliceDataError
from oasis_helpers.distributed import sample_shard, stream_slices
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.recipes import improved_vqvae
from oasis_helpers.training import Batches
from tests.examples import with_large_weights
from tools.train_together import Worker, barrier, fingerprint, gather, join_workers


def test_several_workers_need_jax():
    with pytest.raises(ValueError, match="Several workers need JAX, and this is tensorflow"):
        join_workers()


def test_workers_read_together_what_one_reads_alone():
    def order(worker):
        batches, epochs = Batches(lambda indices: (indices,), 21, 4, 3, worker), []
        for epoch in range(2):
            batches.shuffle(epoch)
            epochs.append([batches[number][0] for number in range(len(batches))])
        return np.array(epochs)

    alone, parts = order(Worker()), [order(Worker(rank, 2)) for rank in (0, 1)]
    assert alone.shape == (2, 5, 4) and (alone[0] != alone[1]).any()
    assert len(np.unique(alone[0])) == 20
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), alone)


@pytest.mark.parametrize("size", [5, 0, 22])
def test_batches_that_cannot_be_shared(size):
    with pytest.raises(ValueError, match=rf"A batch of {size} out of 21 for 2 worker\(s\)"):
        Batches(lambda indices: (indices,), 21, size, shard=(0, 2))


def test_all_workers_samples_are_those_of_one():
    prior = with_large_weights(GatedPixelCNN(12, (4, 5), filters=8, blocks=1, num_heads=1))
    whole = sample_codes(prior, 5, slice_index=7, seed=2)
    shards = [sample_shard(prior, 5, Worker(rank, 3), slice_index=7, seed=2) for rank in range(3)]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(shards), whole)


def test_one_worker_gathers_and_waits_alone(tmp_path):
    part = np.arange(3)
    assert gather(part, tmp_path / "codes", Worker()) is part
    barrier(Worker(), "alone")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------- slices


def test_a_stream_reads_what_a_set_holds(cohort_root):
    held = load_slices(cohort_root, "validate", 64, "brain")
    stream = stream_slices(cohort_root, "validate", 64, "brain")
    assert len(stream) == len(held) and stream.crop == held.crop
    indices = np.array([40, 3, 3, 61])
    np.testing.assert_array_equal(stream.read(indices), held.images[indices])
    np.testing.assert_array_equal(stream.subjects, held.subjects)
    np.testing.assert_array_equal(stream.slices, held.slices)


def test_the_fingerprint_of_a_stream_is_one_of_its_pixels_and_frame(slice_root, train_folder):
    def of(*frame):
        return fingerprint(stream_slices(slice_root, "train", *frame))

    before = of()
    assert of() == before != of(64)
    first, second, *_ = sorted(train_folder.iterdir())
    pixels = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(pixels)
    assert of() != before, "two files were exchanged"


def test_a_stream_reports_a_damaged_file_when_it_reads_it(tmp_path):
    folder = tmp_path / "keras_png_slices_data" / "keras_png_slices_train"
    folder.mkdir(parents=True)
    damaged = folder / "case_001_slice_0.nii.png"
    damaged.write_bytes(b"no picture")
    stream = stream_slices(tmp_path, "train")
    with pytest.raises(SliceDataError, match=f"{damaged.name}: not a readable image"):
        stream.read([0])


# ---------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "positions", "bits"),
    [("80", 100, 700), ("128", 120, 840), ("256", 120, 840), ("256, fine", 480, 3360)],
)
def test_sizes_keep_to_their_rate(name, positions, bits):
    recipe = distributed.SIZES[name]
    vqvae = improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    assert vqvae.bits_per_slice == bits and np.prod(vqvae.code_shape) == positions
    images = vqvae.decode(np.zeros((1, *vqvae.code_shape), int))
    assert images.shape == (1, recipe.size, recipe.size, 1)


def test_the_region_of_interest_is_the_same_at_every_size():
    regions = {tuple(np.array(r.vqvae["region"]) / r.size) for r in distributed.SIZES.values()}
    assert len(regions) == 1
