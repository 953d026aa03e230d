"""The measured comparisons run on a few slices, and resume where they were interrupted."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest

from experiments import (
    ablation,
    decoders,
    image_sizes,
    memorisation,
    priors,
    rates,
    realism,
    sampling,
    small_data,
    speed,
    temperature,
    time_to_target,
    tokenizers,
    variants,
)
from experiments.compiled_sampler import CompiledSampler
from experiments.quantizers import (
    FiniteScalarQuantizer,
    ResidualQuantizer,
    RotationQuantizer,
)
from oasis_helpers import load_pretrained, metrics, pretrained, sample_codes, training
from oasis_helpers.data import SPLITS
from oasis_helpers.distributed import SIZES, stream_slices
from oasis_helpers.pixelcnn import NO_CONDITION, GatedPixelCNN
from oasis_helpers.recipes import RECIPES, Recipe, Schedule, patch_networks
from oasis_helpers.vqvae import VQVAE


@pytest.fixture
def few(monkeypatch, cohort_root, load_few):
    """Two subjects of every split, in place of all."""

    def load(root, split):
        return load_few(root, split, subjects=2)

    for module in (ablation, rates, time_to_target, tokenizers):
        monkeypatch.setattr(module, "load_slices", load)
    monkeypatch.setattr(pretrained, "load_slices", load_few)
    monkeypatch.setattr(variants, "step_seconds", lambda *arguments: 0.5)
    return {split: load(cohort_root, split) for split in SPLITS}


@pytest.mark.long
def test_ablation_resumes(few, cohort_root, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    monkeypatch.setattr(ablation, "VARIANTS", [ablation.VARIANTS[0], ablation.VARIANTS[-1]])
    results = list(ablation.measure(cohort_root, file, steps=2))
    assert [result["steps"] for result in results] == [2] * 2
    assert results == list(json.loads(file.read_text())["variants"].values())
    assert results[0]["scores"]["slices"] == 64, "scored on other slices than the validation split"
    monkeypatch.setattr(ablation, "train_variant", None)  # nothing may be trained again
    assert list(ablation.measure(cohort_root, file, steps=2)) == results


@pytest.mark.long
@pytest.mark.parametrize(
    "quantizer",
    [RotationQuantizer(12, 3), FiniteScalarQuantizer((3, 2, 2)), ResidualQuantizer((4, 3), 3)],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_every_quantiser_trains(quantizer):
    keras.utils.set_random_seed(0)
    encoder, decoder = patch_networks(16, 3, patch=(2, 2), widths=(8, 8), blocks=1)
    model = VQVAE(encoder, quantizer, decoder, 0.05)
    model.compile(keras.optimizers.Adam(1e-2))
    images = np.random.default_rng(0).random((64, 16, 16, 1), "float32")
    loss = model.fit(images, images, 32, 5, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    assert model.decode(model.encode(images)).shape == images.shape


@pytest.mark.long
def test_rates_of_ours_and_of_codecs(few, cohort_root, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "VARIANTS", [rates.VARIANTS[0], rates.VARIANTS[-1]])
    by_family = {}
    for result in rates.measure(cohort_root, tmp_path / "results.json", steps=2):
        by_family.setdefault(result["family"], []).append(result)
    assert set(by_family) == {"improved, 10 x 10", "improved, 20 x 20", *rates.CODECS}
    assert by_family["improved, 10 x 10"][0]["bits"] == 500
    assert by_family["improved, 20 x 20"][0]["bits"] == 3600
    for family in rates.CODECS:
        bits, scores = zip(*((r["bits"], r["ssim"]) for r in by_family[family]))
        assert list(bits) == sorted(bits) and list(scores) == sorted(scores)


@pytest.mark.long
def test_time_to_target(few, cohort_root, monkeypatch):
    monkeypatch.setattr(time_to_target, "EPOCHS", {"reference": 1, "improved": 1})
    result = time_to_target.measure(cohort_root)
    assert len(result["reference"]) == 1 and len(result["improved"]) >= 1
    assert result["speed_up"] is None or result["speed_up"] > 0


@pytest.mark.long
def test_decoders_are_fine_tuned_from_one_start(few, cohort_root, tmp_path):
    measured = decoders.measure(cohort_root, tmp_path / "results.json", "cohort-faithful", steps=2)
    results = list(measured)
    assert [result["name"] for result in results] == list(decoders.VARIANTS)
    assert {result["scores"]["bits_per_slice"] for result in results} == {1001.0}
    scores = {tuple(result["scores"]["ssim"]) for result in results}
    assert len(scores) == 3, "two ways of training gave the same decoder"
    assert min(result["scores"]["ssim"][0] for result in results) > 0.8, "trained from scratch"


@pytest.mark.long
def test_temperatures(few, cohort_root, monkeypatch):
    monkeypatch.setattr(temperature, "TEMPERATURES", (0.3, 1.0))
    tables = temperature.measure(cohort_root, "cohort", stacks=6)["temperatures"]
    low, usual = tables["0.3"], tables["1.0"]
    assert low["slices"] == usual["slices"] == 192
    assert low["pairwise_ssim"][0] > usual["pairwise_ssim"][0]


@pytest.mark.long
def test_copies_are_planted_and_found(few, cohort_root, monkeypatch):
    monkeypatch.setattr(memorisation, "PER_INDEX", 4)
    result = memorisation.measure(cohort_root, "cohort")
    assert result["samples"] == 128 and set(result["without copies"]) == {"samples", "unseen"}
    again = result["copies"]["decoded again"]
    assert {test: row["found"] for test, row in again.items()} == {"pixels": 1.0, "codes": 1.0}
    area, low, high = result["membership"]
    assert low <= area <= high


@pytest.mark.long
def test_classifiers_of_generated_slices(few, cohort_root, monkeypatch):
    monkeypatch.setattr(realism, "EPOCHS", 1)
    result = realism.measure(cohort_root, "cohort")
    assert list(result["auc"]) == list(realism.PAIRS)
    kinds = result["one head"]
    assert list(kinds) == ["real", "reconstructed", "samples", "heads"]
    for mean, low, high in [*result["auc"].values(), *(kind["auc"] for kind in kinds.values())]:
        assert 0 <= low <= mean <= high <= 1
    assert all(0 < kind[score][0] < 1 for kind in kinds.values() for score in ("one", "two"))


@pytest.mark.long
def test_the_reference_prior_gets_the_same_codes(few, cohort_root):
    result = priors.measure(cohort_root, "cohort", seconds=1)
    assert result["seconds"] == 1 and result["epochs"] == 1
    assert result["reference"]["baselines"] == result["improved"]["baselines"]
    shipped = load_pretrained("cohort").scores["prior_test"]["bits_per_code"]
    assert result["improved"]["bits_per_code"][0] == pytest.approx(shipped[0], abs=0.3)
    assert 0 < result["bits_saved"] < 1


@pytest.mark.long
def test_our_prior_gets_the_codes_of_other_tokenizers(few, cohort_root, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "VARIANTS", tokenizers.VARIANTS[:1])
    tokenized, train_prior = [], training.train_prior

    def spy(recipe, vqvae, *slices, **options):
        tokenized.append(vqvae)
        return train_prior(recipe, vqvae, *slices, **options)

    monkeypatch.setattr(training, "train_prior", spy)
    quick = dataclasses.replace(
        RECIPES["oasis1-10x10"],
        prior={"filters": 8, "blocks": 1},
        prior_schedule=Schedule(2, 32, 1e-3),
        views=1,
    )
    arguments = cohort_root, tmp_path / "results.json", "cohort", 256, quick
    results = list(tokenizers.measure(*arguments))
    assert [result["name"] for result in results] == ["reference recipe", "cohort"]
    [vqvae] = tokenized
    assert results[0]["scores"] == metrics.reconstruction_table(vqvae, few["test"])
    # The first is of a whole frame, the second of a cropped one.
    assert results[0]["brain_positions"] < results[1]["brain_positions"]
    shipped = load_pretrained("cohort").scores["prior_test"]["bits_per_code"]
    assert results[1]["prior"]["bits_per_code"][0] == pytest.approx(shipped[0], abs=0.3)
    monkeypatch.setattr(tokenizers, "train_variant", None)  # nothing may be trained again
    assert list(tokenizers.measure(*arguments)) == results


@pytest.mark.long
def test_both_stages_from_the_disk_to_a_sample(cohort_root, monkeypatch):
    networks = SIZES["256"].vqvae | {"region": (0, 0, 64, 64), "widths": (8, 8, 8), "blocks": 1}
    small = Recipe(
        "cohort",
        64,
        vqvae=networks,
        prior={"filters": 8, "blocks": 1, "num_heads": 2},
        vqvae_schedule=Schedule(2, 4, 1e-3),
        prior_schedule=Schedule(2, 4, 1e-3),
    )
    monkeypatch.setattr(image_sizes, "SIZES", {"small": small})

    def first_slices(*arguments):
        stream = stream_slices(*arguments)
        parts = {name: getattr(stream, name)[:8] for name in ("paths", "subjects", "slices")}
        return dataclasses.replace(stream, **parts)

    monkeypatch.setattr(image_sizes, "stream_slices", first_slices)
    result = image_sizes.cost("small", cohort_root, steps=3)
    assert (result["positions"], result["bits"]) == (16, 112)
    assert min(result["fit_step"], result["prior_step"], result["sample"]) > 0
    assert result["peak_gb"] is None or result["peak_gb"] > 0


@pytest.mark.long
def test_samplers_are_timed_and_agree():
    result = sampling.measure(maps=3, sides=(3,))
    [grid] = result["grids"]
    assert result["maps"] == 3 and grid["positions"] == 9 and grid["compiling"] > 0
    assert grid["cached"] > 0 and grid["compiled"] > 0 and grid["compiled_same_codes"] > 0.8


@pytest.mark.long
def test_speed_of_one_recipe(monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 2)
    quick = {
        name: (build, 2, kind, o, 2) for name, (build, _, kind, o, _) in speed.VARIANTS.items()
    }
    monkeypatch.setattr(speed, "VARIANTS", quick)
    times = speed.stage_times("reference", steps=2, maps=2)
    assert list(times) == list(pretrained.results("speed")["recipes"]["reference"])
    assert min(times.values()) > 0
    assert times["images_per_second"] == pytest.approx(2 / times["fit_step"])


# --------------------------------------------------------------------------- compiled sampling


def untrained_prior(grid, **options):
    """Random weights so large that every earlier code and the slice index change the samples."""
    prior = GatedPixelCNN(12, grid, filters=16, blocks=3, num_heads=2, **options)
    rng = np.random.default_rng(3)
    for weight in prior.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return prior


def test_compiled_sampler_samples_what_the_cache_samples():
    """Seven maps: an odd number, so that one thread's half is filled up."""
    prior = untrained_prior((5, 7), condition_dropout=0.1)
    codes = np.random.default_rng(0).integers(12, size=(7, 5, 7)).astype("int32")
    known = codes.copy()
    known[:, 2:], known[3], known[:, 4, 4] = -1, -1, 5
    sampler = CompiledSampler(prior, 7)
    for options in (
        {},
        {"slice_index": [0, 31, 3, 9, NO_CONDITION, 16, 8], "temperature": 0.7, "seed": 4},
        {"slice_index": 5, "known": known, "seed": 2**40},
        {"slice_index": 5, "known": codes},
    ):
        sampled = sampler(**options)
        assert sampled.shape == (7, 5, 7) and sampled.dtype == np.int32
        np.testing.assert_array_equal(sampled, sample_codes(prior, 7, **options))
    one, other = (sampler(index) for index in (0, 31))
    assert np.mean(one != other) > 0.1, "the slice index makes no difference"


@pytest.mark.long
def test_compiled_sampler_of_the_shipped_prior():
    prior, indices = load_pretrained("cohort").prior, np.arange(8) * 4
    sampled = CompiledSampler(prior, 8)(indices, seed=1)
    assert np.mean(sampled == sample_codes(prior, 8, indices, seed=1)) >= 0.999


@pytest.mark.long
@pytest.mark.parametrize("n", [0, 1])
def test_few_maps_are_compiled_too(n):
    prior = untrained_prior((2, 3))
    np.testing.assert_array_equal(CompiledSampler(prior, n)(3), sample_codes(prior, n, 3))


@pytest.mark.long
def test_small_data(cohort_root, tmp_path, monkeypatch):
    monkeypatch.setattr(small_data, "SEEDS", (0, 1))
    monkeypatch.setattr(training, "WEIGHT_AVERAGING", 0.1)  # so that few steps make a difference
    monkeypatch.setattr(small_data, "FILTERS", 8)
    schedule = Schedule(3, 64, 2e-3)
    train_and_score = functools.partial(small_data.train_and_score, schedule=schedule)
    monkeypatch.setattr(small_data, "train_and_score", train_and_score)
    small = RECIPES["cohort"].prior | {"blocks": 1}
    recipe = dataclasses.replace(RECIPES["cohort"], prior=small, views=3)
    monkeypatch.setattr(small_data, "RECIPES", {"cohort": recipe})
    names = [small_data.BASE, "weight decay 1.6", "column by column"]
    monkeypatch.setattr(small_data, "VARIANTS", {n: small_data.VARIANTS[n] for n in names})
    results = list(small_data.measure(cohort_root, tmp_path / "r.json", "cohort", 4))
    assert [result["name"] for result in results] == names
    bits = [result["bits_per_code"] for result in results] + [results[0]["distilled"]]
    for *seeds, mean in (values for one in bits for values in one.values()):
        assert len(seeds) == 2 and seeds[0] != seeds[1]
        assert mean < np.mean(seeds), "the mean of probabilities is never worse (Jensen)"
    assert len({one["given"][0] for one in bits}) == 4
