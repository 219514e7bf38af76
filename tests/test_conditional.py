"""The conditional mode: labels are learned, obeyed, and kept through a stop."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import signal_in_step
from test_training import CHECKPOINT, assert_same_run, trained, wait_for_a_step

import train_model
from common import dataset
from dcgan import Discriminator, Generator


@pytest.fixture
def small_conditional(small):
    return [*small, "--CONDITIONAL=True"]


def test_without_labels_the_networks_are_the_plain_ones():
    generator, discriminator = Generator(), Discriminator()
    names = [*generator.state_dict(), *discriminator.state_dict()]
    assert all(name.startswith(("project.", "draw.", "judge.")) for name in names)
    assert generator.project.in_features == 100
    latents, images = torch.randn(16, 100), torch.rand(16, 1, 28, 28)
    assert torch.equal(discriminator(images), discriminator.judge(images).squeeze(1))
    empty = torch.zeros(16, 0)  # the label vectors of a plain run
    assert torch.equal(discriminator(images, empty), discriminator(images))
    assert torch.equal(generator(latents, empty), generator(latents))


def test_the_discriminator_adds_a_projection_on_the_labels_to_its_logit():
    discriminator = Discriminator(labels=3).eval()
    images = torch.rand(8, 1, 28, 28)
    labels = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]] * 2).float()
    features = discriminator.judge[:-1](images)
    plain = discriminator.judge(images).squeeze(1)
    columns = discriminator.embed.weight  # one vector for each label
    for i, label in enumerate(labels):
        expected = plain[i] + sum(columns[:, k] @ features[i] for k in range(3) if label[k])
        torch.testing.assert_close(discriminator(images, labels)[i], expected)


def test_the_loss_asks_whether_image_and_labels_belong_together():
    """The fakes of a step carry the labels of its real images."""
    parts = {"generator": Generator(labels=2), "discriminator": Discriminator(labels=2)}
    for key, network in (("optimizer_g", "generator"), ("optimizer_d", "discriminator")):
        parts[key] = torch.optim.SGD(parts[network].parameters(), lr=0.0)
    real, labels = torch.rand(64, 1, 28, 28) * 2 - 1, torch.randint(2, (64, 2)).float()
    torch.manual_seed(1)
    statistics = train_model.train_step(real, parts, "float32", labels)

    torch.manual_seed(1)
    fake = parts["generator"](torch.randn(64, train_model.LATENT_DIM), labels)
    d_real, d_fake = (parts["discriminator"](x, labels).sigmoid() for x in (real, fake))
    expected = -d_real.log().mean() - (1 - d_fake).log().mean()
    torch.testing.assert_close(statistics[0], expected.detach())


def test_findings_are_several_columns_and_classes_are_one_of_them():
    findings = torch.tensor([[0] * 14, [1] * 14, [0, 1, 1] + [0] * 11])
    assert torch.equal(dataset.encode_labels("chestmnist", findings), findings.float())
    classes = dataset.encode_labels("pneumoniamnist", torch.tensor([[0], [1], [1]]))
    assert classes.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert dataset.label_names("pneumoniamnist") == ["normal", "pneumonia"]
    assert dataset.label_names("phantom") == ["cardiomegaly", "effusion"]
    assert len(dataset.label_names("chestmnist")) == 14
    assert dataset.encode_labels("bloodmnist", torch.tensor([[7]])).argmax() == 7


def test_labels_are_drawn_as_they_occur_together():
    labels = torch.tensor([[1.0, 1.0]] * 75 + [[0.0, 0.0]] * 25)  # never one without the other
    drawn = dataset.draw_labels(
        dataset.count_labels(labels), 2000, torch.Generator().manual_seed(0)
    )
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert 0.71 < drawn[:, 0].mean() < 0.79


def test_each_label_that_was_seen_has_a_vector_of_its_own():
    findings = torch.zeros(10, 14)
    findings[:4, [1, 2]] = 1
    findings[4:6, 2] = 1
    alone = dataset.single_labels("chestmnist", dataset.count_labels(findings))
    assert list(alone) == ["cardiomegaly", "effusion", "no finding"]
    having = {label: dataset.has_labels(findings, vector).sum() for label, vector in alone.items()}
    assert having == {"cardiomegaly": 4, "effusion": 6, "no finding": 4}
    classes = dataset.encode_labels("pneumoniamnist", torch.tensor([[0], [1], [1]]))
    alone = dataset.single_labels("pneumoniamnist", dataset.count_labels(classes))
    assert {label: vector.tolist() for label, vector in alone.items()} == {
        "normal": [1, 0],
        "pneumonia": [0, 1],
    }


def test_a_conditional_run_says_so_and_keeps_its_labels(run, small_conditional, phantom_dir):
    result = run("train_model.py", *small_conditional, "--EPOCHS=1")
    assert result.status == 0
    assert "labels     cardiomegaly, effusion" in result.text
    _, labels, _ = dataset.load("phantom", "train", phantom_dir, 0.02)
    for name in ("checkpoint.pt", "generator_epoch_0001.pt"):
        saved = torch.load(f"models/phantom/{name}", weights_only=True)["labels"]
        assert saved["counts"].sum() == 200
        for row, count in zip(saved["rows"], saved["counts"], strict=True):
            assert (labels == row).all(1).sum() == count
    changed = run("train_model.py", *small_conditional[:-1], "--EPOCHS=2")
    assert changed.status == 1 and "CONDITIONAL was True and is now False" in changed.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_conditional_run_goes_on_bit_for_bit(run, start, small_conditional, monkeypatch, number):
    arguments = [*small_conditional, "--EPOCHS=30"]
    if number == signal.SIGKILL:
        process = start("train_model.py", *arguments, "--CHECKPOINT_MINUTES=0")
        wait_for_a_step(process)
        process.kill()
        process.communicate()
    else:
        with monkeypatch.context() as patch:
            signal_in_step(5, number, patch)
            assert run("train_model.py", *arguments).status == 130
    epochs = torch.load(CHECKPOINT, weights_only=True)["step"] // 3 + 2
    arguments = [*small_conditional, f"--EPOCHS={epochs}"]
    arguments += ["--CHECKPOINT_MINUTES=0"] if number == signal.SIGKILL else []
    assert run("train_model.py", *arguments).status == 0
    assert run("train_model.py", *arguments, "--RUN_NAME=straight").status == 0
    assert_same_run(trained(), trained("models/straight"))


def test_other_labels_do_not_alter_a_run(run, small_conditional, phantom_dir):
    run("train_model.py", *small_conditional, "--EPOCHS=1")
    with np.load(phantom_dir / "phantom.npz") as arrays:
        other = {key: arrays[key] for key in arrays.files}
    other["train_labels"] = 1 - other["train_labels"]
    Path("other").mkdir()
    np.savez("other/phantom.npz", **other)
    result = run("train_model.py", *small_conditional, "--EPOCHS=2", "--DATA_DIR=other")
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
