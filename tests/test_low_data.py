"""Few labels: the benchmark fills its tables, by areas and intervals that mean what they say."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

TINY = ["--SIZES=10,all", "--DRAWS=2", "--DRAWS_ABOVE=2", "--EPOCHS=1", "--BOOTSTRAP=100"]
TINY += ["--TUNE_AT=20", "--TUNE_DRAWS=1"]


@pytest.fixture
def low_data(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return importlib.import_module("low_data")


def test_the_benchmark_fills_its_tables(run, tmp_path, monkeypatch):
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
    for row in ("pixels", "principal components", "random D"):
        assert done.text.count(f"\n| {row}, linear |") == 2
    assert done.text.count("\n| trained D, linear |") == 1  # the difference to itself is none
    for wrong in ("--SIZES=9,all", "--SIZES=many"):
        refused = run("benchmarks/low_data.py", *TINY, wrong)
        assert refused.status == 1 and "legal are" in refused.text


def test_the_auc_of_samples_is_that_of_scikit_learn(low_data):
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    scores, truth = random.integers(0, 9, 50) / 9, random.integers(0, 2, 50)  # with ties
    weights = np.stack([np.ones(50), random.integers(0, 3, 50)])
    wanted = [roc_auc_score(truth, scores, sample_weight=weight) for weight in weights]
    assert low_data.auc(scores, truth, weights) == pytest.approx(wanted)


def test_a_difference_that_is_none_has_an_interval_around_zero(low_data):
    random = np.random.default_rng(0)
    truth = np.arange(200) % 2
    shape, weights = (5, 200), low_data.bootstrap_weights(200, 500)  # draws, images
    noisy, other, better = (truth + random.normal(size=shape) / x for x in (1, 1, 4))
    noisy, other, better = (
        np.array([low_data.auc(draw, truth, weights) for draw in x]) for x in (noisy, other, better)
    )
    mean, low, high = low_data.difference(other, noisy)
    assert low < 0 < high and low < mean < high
    mean, low, high = low_data.difference(better, noisy)
    assert 0.1 < low < mean < high < 0.4


def test_the_labelled_images_have_the_frequencies_of_all(low_data):
    import torch

    labels = torch.tensor([0] * 30 + [1] * 70)
    chosen = low_data.choose(labels, 10, seed=0)
    assert labels[chosen].tolist() == [0] * 3 + [1] * 7
    assert len(chosen.unique()) == 10
