"""Runs outlive the program: old checkpoints, other widths, optimisers and losses."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NARROW, REPO, networks, rewrite, signal_in_step
from test_report import SHORT
from test_training import assert_same_run

from common import checkpoint, sampling
from dcgan import Generator

CHECKPOINT = Path("models/phantom/checkpoint.pt")
SNAPSHOT = Path("models/phantom/generator_epoch_0001.pt")


# What checkpoints looked like in the first half of the program's life.

OLD_KEYS = {
    "label_counts": "labels",
    "data_sha256": "fingerprint",
    "images_seen": "position",
    "running_sums": "sums",
}
OLD_GENERATOR = {
    "at_4.0": "draw.0",
    "to_7.0": "draw.2",
    "to_7.1": "draw.3",
    "to_14.0": "draw.5",
    "to_14.1": "draw.6",
    "to_28.0": "draw.8",
    "to_28.1": "draw.9",
    "to_image.0": "draw.11",
}
OLD_DISCRIMINATOR = {
    "to_14.1": "judge.1",
    "to_7.0": "judge.3",
    "to_7.1": "judge.4",
    "to_4.0": "judge.6",
    "to_4.1": "judge.7",
    "head": "judge.10",
}
OLD_LAYERS = {
    "generator": OLD_GENERATOR,
    "generator_ema": OLD_GENERATOR,
    "discriminator": OLD_DISCRIMINATOR,
}
NEW_KEYS = {"model_args", "recipe", "machine"}
OLD_NETWORKS = {"generator": {"bilinear": False}, "discriminator": {"texture": False}}


def in_the_old_layout(content):
    """The content of a checkpoint or snapshot as an old program would have written it."""
    old = {OLD_KEYS.get(key, key): x for key, x in content.items() if key not in NEW_KEYS}
    old["settings"] = {
        "PRECISION" if name == "DTYPE" else name: value
        for name, value in old["settings"].items()
        if name not in ("LR_DECAY_START", "SIZE")
    }
    for network in OLD_LAYERS.keys() & old.keys():
        old[network] = {
            old_layer(OLD_LAYERS[network], key): tensor for key, tensor in old[network].items()
        }
    if "history" in old:
        row = {"precision": 0.9, "recall": 0.9, "coverage": 0.9, "frechet": 1.0}
        old |= {"floor": row | {"n": 100}, "gaussian": row}
    return old


def old_layer(layers, key):
    layer, parameter = key.rsplit(".", 1)
    return f"{layers.get(layer, layer)}.{parameter}"


def export(run, *arguments):
    """The images and labels that generate_images.py draws."""
    shutil.rmtree("images", ignore_errors=True)
    assert run("generate_images.py", "--N_IMAGES=70", *arguments).status == 0
    with np.load("images/phantom/export/phantom.npz") as file:
        return file["train_images"], file["train_labels"]


@pytest.mark.parametrize("conditional", [False, True])
def test_a_run_of_an_old_program_resumes_reports_and_exports(run, small, conditional):
    small += [f"--CONDITIONAL={conditional}", "--EPOCHS=2"]
    small += ["--LR_DECAY_START=2"]  # of today's program: an old run keeps its constant rate
    constant_rate = "--LR_DECAY_START=1000000000"
    with networks(**OLD_NETWORKS):
        assert run("train_model.py", *small, constant_rate, "--RUN_NAME=straight").status == 0
        with signal_in_step(4, signal.SIGINT):  # in the middle of the second epoch
            assert run("train_model.py", *small, constant_rate).status == 130
    before = [*export(run), *export(run, "--EPOCH=1")]

    for path in (CHECKPOINT, SNAPSHOT):
        rewrite(path, in_the_old_layout(torch.load(path, weights_only=True)))
    after = [*export(run), *export(run, "--EPOCH=1")]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))

    assert run("generate_report.py", *SHORT).status == 0
    page = Path("images/phantom/report.html").read_text()
    assert "This run is unfinished: 1 of 2 epochs are done" in page
    assert "not recorded in this checkpoint" in page  # the machine
    assert Path("images/phantom/epochs/epoch_0001.png").exists()

    with signal_in_step(1, signal.SIGINT):  # resumed once, and once more
        assert run("train_model.py", *small).status == 130
    assert run("train_model.py", *small).status == 0
    assert_same_run("phantom", "straight")


def without_sizes(content):
    """The content of a checkpoint or snapshot as a program that knew 28 pixels only wrote it."""
    content["settings"].pop("SIZE")
    for arguments in content["model_args"].values():
        arguments.pop("size")
    return content


def test_a_run_from_before_there_were_sizes_resumes_and_exports(run, train):
    small = train("--EPOCHS=1")
    before = export(run)
    for path in (CHECKPOINT, SNAPSHOT):
        rewrite(path, without_sizes(torch.load(path, weights_only=True)))
    assert all(np.array_equal(*pair) for pair in zip(before, export(run), strict=True))
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    train("--EPOCHS=2", name="straight")
    for name in ("phantom", "straight"):  # the resumed run keeps its arguments, without a size
        path = Path("models", name, "checkpoint.pt")
        content = torch.load(path, weights_only=True)
        for arguments in content["model_args"].values():
            arguments.pop("size", None)
        rewrite(path, content)
    assert_same_run("phantom", "straight")


# What a user edits in the scripts.


@pytest.fixture
def edit(tmp_path):
    """Write train_model.py into the working folder with a regular expression replaced."""

    def write(pattern, new, count=1):
        source = (REPO / "train_model.py").read_text()
        source, found = re.subn(pattern, new, source)
        assert found == count
        Path("train_model.py").write_text(source)
        return str(tmp_path / "train_model.py")

    return write


def test_a_run_of_other_widths_loads_everywhere_and_resumes(run, small):
    with networks(**NARROW):
        assert run("train_model.py", *small, "--EPOCHS=2", "--RUN_NAME=straight").status == 0
        assert run("train_model.py", *small, "--EPOCHS=1").status == 0

    # From here on the networks have the widths again that dcgan.py comes with.
    generator = checkpoint.load_generator(SNAPSHOT)
    assert sampling.draw(generator, torch.randn(3, 100)).shape == (3, 1, 28, 28)
    assert generator.project.weight.numel() < Generator().project.weight.numel()
    assert run("generate_report.py", *SHORT).status == 0
    assert run("generate_images.py", "--N_IMAGES=10").status == 0
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    assert_same_run("phantom", "straight")


ADAM = r"torch\.optim\.Adam\((\w+)\.parameters\(\), \*\*adam\)"
OTHER_OPTIMISERS = {
    "SGD": r"torch.optim.SGD(\1.parameters(), lr=1e-3, momentum=0.9)",
    "RMSprop": r"torch.optim.RMSprop(\1.parameters(), lr=1e-4)",
    "AdamW": r"torch.optim.AdamW(\1.parameters(), lr=1e-4)",
}


@pytest.mark.parametrize("optimiser", OTHER_OPTIMISERS.values(), ids=OTHER_OPTIMISERS)
def test_another_optimiser_resumes_bit_for_bit(run, small, edit, optimiser):
    script = edit(ADAM, optimiser, count=2)
    small += ["--EPOCHS=2", "--METRIC_IMAGES=0"]
    with signal_in_step(2, signal.SIGINT):
        assert run(script, *small).status == 130
    assert run(script, *small).status == 0
    assert run(script, *small, "--RUN_NAME=straight").status == 0
    assert_same_run("phantom", "straight")


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_an_optimiser_that_changed_is_refused_by_name(run, train, edit, network):
    small = train("--EPOCHS=1")
    script = edit(ADAM.replace(r"(\w+)", f"({network})"), OTHER_OPTIMISERS["AdamW"])
    result = run(script, *small, "--EPOCHS=2")
    assert result.status == 1
    assert f"another optimizer_{network[0]} than train_model.py has now" in result.text


@pytest.mark.parametrize("loss", ["generator_loss", "discriminator_loss"])
def test_a_loss_that_changed_is_refused_by_name(run, train, edit, loss):
    small = train("--EPOCHS=1")
    script = edit(rf"(def {loss}\(.*\):\n)", r"\1    fake_logits = 2 * fake_logits\n")
    result = run(script, *small, "--EPOCHS=2")
    assert result.status == 1
    assert f"another {loss} than train_model.py has now" in result.text


def test_a_loss_whose_comments_changed_is_the_same(run, train, edit):
    small = train("--EPOCHS=1")
    script = edit(r"(def \w+_loss\(.*\):\n)", r"\1    # A comment that was not there.\n", count=2)
    assert run(script, *small, "--EPOCHS=2").status == 0
    train("--EPOCHS=2", name="straight")
    assert_same_run("phantom", "straight")
