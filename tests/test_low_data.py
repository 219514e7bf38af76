"""Few labels: the benchmark fills its tables, and goes on where it stopped."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO

from common.data import dataset
from dcgan import Discriminator, Generator

OUT = Path("images/benchmarks/low_data")
TINY = ["--SIZES=10,all", "--DRAWS=2", "--DRAWS_ABOVE=2", "--EPOCHS=1", "--GAN_STEPS=2"]
TINY += ["--LABEL_STEPS=2", "--SYNTHETIC=64", "--STEPS=4", "--BATCH_SIZE=8", "--BOOTSTRAP=100"]
TINY += ["--CONTRASTIVE_BATCH=16", "--TUNE_AT=20", "--TUNE_DRAWS=1", "--IDEAS_AT=10"]
TINY += ["--CORRUPTED_AT=10"]


@pytest.fixture
def bench(monkeypatch):
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return importlib.import_module


def test_the_benchmark_fills_its_tables_and_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 130), ("val", 20), ("test", 60)):
        arrays[f"{split}_labels"] = (np.arange(n) % 4 > 0).astype(np.uint8)[:, None]
        noise = random.integers(0, 128, (n, 28, 28), np.uint8)
        arrays[f"{split}_images"] = noise + 100 * arrays[f"{split}_labels"][:, :, None]
    Path("data").mkdir()
    np.savez("data/pneumoniamnist.npz", **arrays)

    done = run("benchmarks/low_data.py", *TINY)
    assert done.status == 0, done.text
    # The classes differ in brightness, so logistic regression on pixels finds them.
    assert "| pixels, linear | 1.000 (0.000) | 1.000 (0.000) |" in done.text
    assert "SimCLR: " in done.text and "N = 10: AUC in hundredths" in done.text
    files = sorted((OUT / "scores").glob("*.npy"))
    ten, at_all = 19, 5 + 5 + 1
    assert len(files) == 2 * (ten + at_all)
    scores = np.load(OUT / "scores" / "d-fine-tuned-augmented-10-0.npy")
    assert scores.shape == (1 + 13 * 5, 60) and 0 <= scores.min() < scores.max() <= 1
    alone, of_all = (torch.load(OUT / "models" / f"{kind}-10-0.pt") for kind in ("alone", "all"))
    assert alone["embed.weight"].shape[1] == of_all["embed.weight"].shape[1] == 2

    gone = OUT / "scores" / "d-s-shape-augmented-10-1.npy"
    before = np.load(gone)
    gone.unlink()
    again = run("benchmarks/low_data.py", *TINY)
    assert again.text.count(", draw ") == 1  # the others were there already
    assert np.array_equal(np.load(gone), before)

    other = run("benchmarks/low_data.py", *TINY, "--STEPS=5")
    assert other.status == 1 and "other settings" in other.text
    for wrong in ("--SIZES=9,all", "--SIZES=many", "--ROWS=no such row"):
        refused = run("benchmarks/low_data.py", *TINY, wrong)
        assert refused.status == 1 and "legal are" in refused.text


def test_the_auc_of_samples_is_that_of_scikit_learn(bench):
    from sklearn.metrics import roc_auc_score

    tables = bench("auc_tables")
    random = np.random.default_rng(0)
    scores, truth = random.integers(0, 9, 50) / 9, random.integers(0, 2, 50)  # with ties
    weights = np.stack([np.ones(50), random.integers(0, 3, 50)])
    wanted = [roc_auc_score(truth, scores, sample_weight=weight) for weight in weights]
    assert tables.auc(scores, truth, weights) == pytest.approx(wanted)


def test_a_difference_that_is_none_has_an_interval_around_zero(bench):
    tables = bench("auc_tables")
    random = np.random.default_rng(0)
    truth = np.arange(200) % 2
    shape, weights = (5, 1, 200), tables.bootstrap_weights(200, 500)  # draws, tests, images
    noisy, other, better = (truth + random.normal(size=shape) / x for x in (1, 1, 4))
    noisy, other, better = (tables.sample(x, truth, weights) for x in (noisy, other, better))
    mean, low, high = tables.difference(other, noisy)
    assert low < 0 < high and low < mean < high
    mean, low, high = tables.difference(better, noisy)
    assert 0.1 < low < mean < high < 0.4


def test_a_generator_made_conditional_draws_what_it_drew_before(bench):
    gans = bench("conditional_gans")
    torch.manual_seed(0)
    generator, conditional = Generator(), Generator(labels=2)
    discriminator, projecting = Discriminator(), Discriminator(labels=2)
    gans.inherit(conditional, generator.state_dict())
    gans.inherit(projecting, discriminator.state_dict())
    latents, labels = torch.randn(4, 100), torch.eye(2)[[0, 1, 0, 1]]
    images = generator.eval()(latents)
    assert torch.allclose(conditional.eval()(latents, labels), images, atol=1e-5)
    assert torch.equal(projecting.eval()(images, labels), discriminator.eval()(images))


def test_corruptions_take_more_with_each_severity(bench, phantom_dir):
    corruptions = bench("corruptions")
    images = dataset.load("phantom", "test", phantom_dir)[0][:50]
    for kind in corruptions.STRENGTHS:
        distances = []
        for severity in range(1, 6):
            found = corruptions.corrupt(images, kind, severity)
            assert found.dtype == torch.uint8 and found.shape == images.shape
            assert torch.equal(found, corruptions.corrupt(images, kind, severity))
            distances.append((found.float() - images.float()).abs().mean().item())
        assert distances[0] > 0 and distances == sorted(distances), kind


def test_views_keep_left_and_right(bench):
    classifiers = bench("classifiers")
    ramp = torch.linspace(-1, 1, 28).expand(64, 1, 28, 28)  # dark on the left
    for views in (classifiers.simclr_view(ramp), classifiers.augment(ramp, 2.0)):
        assert views.shape == ramp.shape and views.abs().max() <= 1
        assert (views[..., 20:].mean((1, 2, 3)) > views[..., :8].mean((1, 2, 3))).all()
