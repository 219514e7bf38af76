"""One split as one tensor: the phantom, MedMNIST's layout, and a part of the training images."""

import hashlib

import numpy as np
import pytest
import torch

from common.data import dataset, phantom


def write(folder, name, images, labels):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
    np.savez(folder / f"{name}.npz", **arrays)


def test_the_labels_of_a_multi_label_set_are_kept(tmp_path):
    images = np.zeros((5, 28, 28), np.uint8)
    findings = np.random.default_rng(0).integers(0, 2, (5, 14)).astype(np.uint8)
    findings[3] = 0  # no finding
    write(tmp_path, "chestmnist", images, findings)
    loaded, labels, source = dataset.load("chestmnist", folder=tmp_path)
    assert loaded.shape == (5, 1, 28, 28) and loaded.dtype == torch.uint8
    assert labels.shape == (5, 14) and np.array_equal(labels, findings)
    assert "not the official file" in source


def test_colour_images_come_with_their_channels_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    write(tmp_path, "bloodmnist", images, np.zeros((5, 1), np.uint8))
    loaded, _, _ = dataset.load("bloodmnist", folder=tmp_path)
    assert np.array_equal(loaded.permute(0, 2, 3, 1), images)


def test_the_file_with_the_official_checksum_is_called_official(tmp_path, monkeypatch):
    write(tmp_path, "chestmnist", np.zeros((5, 28, 28), np.uint8), np.zeros((5, 14), np.uint8))
    md5 = hashlib.md5((tmp_path / "chestmnist.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(dataset.INFO["chestmnist"], "MD5", md5)
    assert "the official file (MD5 agrees)" in dataset.load("chestmnist", folder=tmp_path)[2]


def test_a_fraction_is_a_seeded_random_part_with_its_labels(tmp_path):
    images = np.zeros((200, 28, 28), np.uint8)
    images[:, 0, 0] = np.arange(200)
    write(tmp_path, "pneumoniamnist", images, np.arange(200, dtype=np.uint8)[:, None])

    def part(seed):
        loaded, labels, _ = dataset.load("pneumoniamnist", "train", tmp_path, 0.1, seed)
        assert torch.equal(loaded[:, 0, 0, 0], labels[:, 0])
        return labels[:, 0].tolist()

    assert len(set(part(0))) == 20
    assert part(0) == part(0) != part(1)
    assert part(0) != sorted(part(0))[:20] and max(part(0)) > 100  # not just the first ones


def test_real_pneumoniamnist_is_read(real_dir):
    images, labels, _ = dataset.load("pneumoniamnist", "test", real_dir)
    assert images.shape == (624, 1, 28, 28) and labels.shape == (624, 1)
    assert labels.sum() == 390  # with pneumonia, as MedMNIST documents


def test_the_phantom_is_drawn_once_and_read_back_like_any_other_set(phantom_dir):
    before = (phantom_dir / "phantom.npz").read_bytes()
    for split, n in {"train": 10_000, "val": 1_000, "test": 2_000}.items():
        images, labels, source = dataset.load("phantom", split, phantom_dir)
        assert images.shape == (n, 1, 28, 28) and images.dtype == torch.uint8
        assert labels.shape == (n, 2)
        assert "not patients" in source
    assert (phantom_dir / "phantom.npz").read_bytes() == before
    assert len(images.unique(dim=0)) == n  # no two phantoms are the same


def test_the_phantom_is_seeded():
    one, again, other = (phantom.make_split(40, seed) for seed in (1, 1, 2))
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize("label", [0, 1])
def test_the_phantoms_labels_show_in_its_images(phantom_dir, label):
    def flat(split):
        images, labels, _ = dataset.load("phantom", split, phantom_dir)
        images = images.flatten(1).double()
        images = images - images.mean(dim=1, keepdim=True)
        return images / images.std(dim=1, keepdim=True), labels[:, label].double()

    images, truth = flat("train")
    ridge = 10 * len(images) * torch.eye(784, dtype=torch.double) / 784
    weights = torch.linalg.solve(images.T @ images + ridge, images.T @ (truth - truth.mean()))
    images, truth = flat("test")
    scores = images @ weights
    positive, negative = scores[truth == 1], scores[truth == 0]
    area = (positive[:, None] > negative[None, :]).double().mean()
    assert area > 0.9  # under the ROC curve; chance is 0.5


def test_the_phantoms_look_like_chest_films(phantom_dir):
    images, _, _ = dataset.load("phantom", "test", phantom_dir)
    mean = images.double().mean(dim=0)[0]
    right_lung, spine, left_lung = mean[10:18, 5:10], mean[10:18, 13:15], mean[8:14, 19:23]
    assert right_lung.mean() + 20 < spine.mean() > left_lung.mean() + 20  # air dark, bone bright
    assert mean[25:].mean() > right_lung.mean() + 20  # below the diaphragm
    heart = mean[14:20]
    assert heart[:, 16:20].mean() > heart[:, 8:12].mean() + 10  # on the image's right, as it is
