"""A fresh detective finds what is there to be found, and nothing where there is nothing."""

from functools import partial

import pytest
import torch

from common.data.dataset import DataFile, read_split
from report import detective


@pytest.fixture(scope="module")
def phantoms(phantom_dir):
    """Two disjoint sets of 500 phantoms."""
    images, _ = read_split(DataFile("phantom", phantom_dir), "train")
    return images[:500], images[500:1000]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer rows and steps than in a report: these faults are found soon."""
    monkeypatch.setattr(detective, "ROWS", [(28, None, 100), (14, None, 100), (7, None, 100)])


def accuracy(rows):
    return {row["pixels"]: row["accuracy"] for row in rows}


def test_real_images_cannot_be_told_from_other_real_images(phantoms):
    rows = detective.detective(*phantoms)
    assert [row["pixels"] for row in rows] == [28, 14, 7]
    for row in rows:
        assert abs(row["accuracy"] - 0.5) < 0.1  # 200 test images: a standard error of 0.035
        assert abs(row["auc"] - 0.5) < 0.1
        assert row["low"] < row["accuracy"] < row["high"]
        assert row["trained_on"] == 400


def test_faint_noise_is_found(phantoms, monkeypatch):
    monkeypatch.setattr(detective, "ROWS", [(28, None, 300)])
    real, other = phantoms
    noise = 2 * torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    noisy = (other + noise).round().clamp(0, 255).to(torch.uint8)
    assert detective.detective(real, noisy)[0]["accuracy"] > 0.8


def test_one_bright_pixel_is_found_at_28_pixels_and_not_at_7(phantoms):
    real, other = phantoms
    planted = other.clone()
    planted[:, :, 9, 17] = (planted[:, :, 9, 17].int() + 25).clamp(max=255).to(torch.uint8)
    found = accuracy(detective.detective(real, planted))
    assert found[28] > 0.9
    assert found[7] < 0.65


def test_few_training_images_have_rows_of_their_own(phantoms, monkeypatch):
    monkeypatch.setattr(detective, "ROWS", [(28, few, 2) for few in (None, 50, 200, 1000)])
    rows = detective.detective(*phantoms)
    assert [row["trained_on"] for row in rows] == [400, 50, 200]  # there are no 1,000


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_state_alone(
    phantoms, monkeypatch, request, threads
):
    monkeypatch.setattr(detective, "ROWS", [(28, None, 5), (7, 50, 5)])
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    once = [row["auc"] for row in detective.detective(*phantoms, seed=3)]
    torch.set_num_threads(threads)
    state = torch.get_rng_state()
    assert [row["auc"] for row in detective.detective(*phantoms, seed=3)] == once
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_an_error_ends_the_networks_that_are_trained_beside_it(phantoms, monkeypatch, request):
    steps, backward = [], torch.Tensor.backward
    monkeypatch.setattr(detective, "ROWS", [(28, None, 1), (7, None, 3000)])
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (steps.append(1), backward(loss)))
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)

    def fail(network, real, synthetic):
        assert real.shape[-1] == 7, "of 28 pixels"
        return {}

    monkeypatch.setattr(detective, "test", fail)
    with pytest.raises(AssertionError, match="of 28 pixels"):
        detective.detective(*phantoms)
    assert len(steps) < 3000


def test_colour_images_work_and_too_few_are_refused(monkeypatch):
    monkeypatch.setattr(detective, "ROWS", [(28, None, 1)])
    images = torch.randint(256, (2, 100, 3, 28, 28)).to(torch.uint8)
    assert len(detective.detective(*images)) == 1
    with pytest.raises(ValueError, match="at least 20 images"):
        detective.detective(images[0][:10], images[1])


def test_the_gradient_points_at_the_pixel_that_decides():
    class OnePixel(torch.nn.Module):
        def forward(self, images):
            return 3 * images[:, :, 4, 20]

    gradient = detective.input_gradient(OnePixel(), torch.zeros(5, 1, 28, 28))
    assert gradient.argmax() == 4 * 28 + 20
    assert gradient.sum() == gradient.max() == 3
