"""The conditional mode: labels are learned, obeyed, and kept through a stop."""

import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import signal_in_step
from test_training import assert_same_run

import train_model
from common import sampling
from common.data import dataset
from common.data.labels import (
    count_labels,
    draw_labels,
    encode_labels,
    has_labels,
    label_names,
    single_labels,
)
from common.schema import Model
from dcgan import Discriminator, Generator


def test_without_labels_the_networks_are_the_plain_ones():
    generator, discriminator = Generator(), Discriminator().eval()  # no random shifts
    parameters = dict(generator.named_parameters()) | dict(discriminator.named_parameters())
    assert not any("embed" in name for name in parameters)
    assert generator.project.in_features == 100
    latents, images = torch.randn(16, 100), torch.rand(16, 1, 28, 28)
    empty = torch.zeros(16, 0)  # the label vectors of a plain run
    assert torch.equal(discriminator(images, empty), discriminator(images))
    assert torch.equal(generator(latents, empty), generator(latents))


def test_a_conditional_generator_without_labels_says_what_it_wants():
    generator, latents = Generator(labels=3).eval(), torch.randn(2, 100)
    for draw in (generator, partial(sampling.draw, generator)):
        with pytest.raises(ValueError, match=r"labels \(N, 3\) of 0 and 1 are missing"):
            draw(latents)


def test_the_discriminator_adds_a_projection_on_the_labels_to_its_logit():
    discriminator = Discriminator(labels=3).eval()
    images = torch.rand(8, 1, 28, 28)
    labels = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]] * 2).float()
    features = discriminator.features(images)
    plain = discriminator.head(features)[:, 0]
    columns = discriminator.embed.weight  # one vector for each label
    for i, label in enumerate(labels):
        expected = plain[i] + sum(columns[:, k] @ features[i] for k in range(3) if label[k])
        torch.testing.assert_close(discriminator(images, labels)[i, 0], expected)


class PaintsItsLabel(torch.nn.Module):
    """A generator that draws images as bright as their label, 0 or 1."""

    def __init__(self):
        super().__init__()
        self.brightness = torch.nn.Parameter(torch.ones(1))

    def forward(self, latents, labels):
        return (self.brightness * labels[:, :1, None, None]).expand(-1, 1, 28, 28)


class ComparesLabels(torch.nn.Module):
    """A discriminator that keeps for each image whether it is as bright as its label."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.fits = []

    def forward(self, images, labels):
        brightness = images.mean(dim=(1, 2, 3))
        self.fits.append((brightness.round() == labels[:, 0]).tolist())
        return self.weight * brightness


def test_each_image_is_judged_with_its_own_label_and_fakes_have_those_of_real_ones():
    generator, discriminator = PaintsItsLabel(), ComparesLabels()
    model = Model(
        generator=generator,
        discriminator=discriminator,
        generator_ema=generator,
        optimizer_g=torch.optim.SGD(generator.parameters(), lr=0.0),
        optimizer_d=torch.optim.SGD(discriminator.parameters(), lr=0.0),
    )
    labels = torch.tensor([[1.0, 0.0]] * 48 + [[0.0, 1.0]] * 16)
    real = labels[:, :1, None, None].expand(-1, 1, 28, 28)
    _, d_real, d_fake = train_model.train_step(real, labels, model, "float32")
    assert discriminator.fits == [[True] * 64] * 2  # real; fake
    assert d_real == d_fake, "labels are as frequent among the fakes"


def test_findings_are_several_columns_and_classes_are_one_of_them():
    findings = torch.tensor([[0] * 14, [1] * 14, [0, 1, 1] + [0] * 11])
    assert torch.equal(encode_labels(dataset.INFO["chestmnist"], findings), findings.float())
    classes = encode_labels(dataset.INFO["pneumoniamnist"], torch.tensor([[0], [1], [1]]))
    assert classes.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert label_names(dataset.INFO["pneumoniamnist"]) == ["normal", "pneumonia"]
    assert label_names(dataset.INFO["phantom"]) == ["cardiomegaly", "effusion"]
    assert len(label_names(dataset.INFO["chestmnist"])) == 14
    assert encode_labels(dataset.INFO["bloodmnist"], torch.tensor([[7]])).argmax() == 7


def test_labels_are_drawn_as_they_occur_together():
    labels = torch.tensor([[1.0, 1.0]] * 75 + [[0.0, 0.0]] * 25)  # never one without the other
    drawn = draw_labels(count_labels(labels), 2000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert 0.71 < drawn[:, 0].mean() < 0.79


def test_each_label_that_was_seen_has_a_vector_of_its_own():
    findings = torch.zeros(10, 14)
    findings[:4, [1, 2]] = 1
    findings[4:6, 2] = 1
    alone = single_labels(dataset.INFO["chestmnist"], count_labels(findings))
    assert list(alone) == ["cardiomegaly", "effusion", "no finding"]
    having = {label: has_labels(findings, vector).sum() for label, vector in alone.items()}
    assert having == {"cardiomegaly": 4, "effusion": 6, "no finding": 4}
    classes = encode_labels(dataset.INFO["pneumoniamnist"], torch.tensor([[0], [1], [1]]))
    alone = single_labels(dataset.INFO["pneumoniamnist"], count_labels(classes))
    assert {label: vector.tolist() for label, vector in alone.items()} == {
        "normal": [1, 0],
        "pneumonia": [0, 1],
    }


def test_a_conditional_run_says_so_and_keeps_its_labels(run, small, phantom_dir):
    result = run("train_model.py", *small, "--CONDITIONAL=True", "--EPOCHS=1")
    assert result.status == 0
    assert "labels     cardiomegaly, effusion" in result.text
    _, labels, _ = dataset.load("phantom", "train", phantom_dir, 0.02)
    for label, vector in (("effusion", [0, 1]), ("no finding", [0, 0])):
        count = (labels == torch.tensor(vector)).all(dim=1).sum()
        for epoch in ("last", "1"):  # checkpoint.pt and generator_epoch_0001.pt
            options = [f"--LABELS={label}", f"--EPOCH={epoch}", f"--OUT={label}, {epoch}"]
            drawn = run("generate_images.py", "--N_IMAGES=1", *options)
            assert f"labels     {label}, exactly as in {count} training images" in drawn.text
    changed = run("train_model.py", *small, "--EPOCHS=2")
    assert changed.status == 1 and "CONDITIONAL was True and is now False" in changed.text


def test_a_conditional_run_resumes_bit_for_bit(run, small, train):
    conditional = [*small, "--CONDITIONAL=True", "--EPOCHS=2"]
    with signal_in_step(4, signal.SIGINT):
        assert run("train_model.py", *conditional).status == 130
    assert run("train_model.py", *conditional).status == 0
    train("--CONDITIONAL=True", "--EPOCHS=2", name="straight")
    assert_same_run("phantom", "straight")


def test_other_labels_do_not_alter_a_run(run, train, phantom_dir):
    conditional = [*train("--CONDITIONAL=True", "--EPOCHS=1"), "--CONDITIONAL=True", "--EPOCHS=2"]
    with np.load(phantom_dir / "phantom.npz") as arrays:
        other = {key: arrays[key] for key in arrays.files}
    other["train_labels"] = 1 - other["train_labels"]
    Path("other").mkdir()
    np.savez("other/phantom.npz", **other)
    result = run("train_model.py", *conditional, "--DATA_DIR=other")
    assert result.status == 1 and "not hold the images" in result.text


def test_labels_that_a_data_set_cannot_have_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((70, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.full((70, 1), 2, np.uint8)  # PneumoniaMNIST has 0 and 1
    Path("data").mkdir()
    np.savez("data/pneumoniamnist.npz", **arrays)
    arguments = ["--DATASET=pneumoniamnist", "--EPOCHS=1", "--METRIC_IMAGES=0"]
    result = run("train_model.py", *arguments, "--CONDITIONAL=True")
    assert result.status == 1 and "1 columns of 2 to 2, not 1 of 0 to 1" in result.text
    assert not Path("models/pneumoniamnist").exists()
    assert run("train_model.py", *arguments).status == 0  # the plain mode does not look at them
