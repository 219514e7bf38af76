"""A run resumes as itself or not at all: formats, widths, optimisers, losses, constants."""

import csv
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NARROW, REPO, networks, rewrite, signal_in_step
from test_report import SHORT
from test_training import assert_same_run

from common import checkpoint, metrics, sampling
from dcgan import Generator

CHECKPOINT = Path("models/phantom/checkpoint.pt")
SNAPSHOT = Path("models/phantom/generator_epoch_0001.pt")


def another_format(content):
    return content | {"format": 1}


def no_format(content):
    return {key: value for key, value in content.items() if key != "format"}


@pytest.mark.parametrize(("change", "named"), [(another_format, "is 1, not 5"), (no_format, "is")])
@pytest.mark.parametrize("path", [CHECKPOINT, SNAPSHOT], ids=lambda path: path.stem)
def test_a_checkpoint_of_another_format_is_refused_by_its_number(run, train, path, change, named):
    small = train("--EPOCHS=1")
    content = torch.load(path, weights_only=True)
    rewrite(path, change({**content, "a field of the future": 1}))
    commands = [["generate_report.py"], ["generate_images.py", "--EPOCH=1"]]
    if path == CHECKPOINT:
        commands.append(["train_model.py", *small, "--EPOCHS=2"])
    for command in commands:
        result = run(*command)
        assert result.status == 1 and result.text.count("error: ") == 1
        assert f"{path} is not a checkpoint of this program: format {named}" in result.text


CURVES = [*(word for word in SHORT if "NUMBERS" not in word), "--N_SYNTHETIC=100"]


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


def test_each_network_learns_at_the_rate_that_build_gives_it(run, train, edit):
    small = train("--EPOCHS=1")
    script = edit(r"(discriminator\.parameters\(\), \*\*adam)", r'\1 | {"lr": 4e-4}')
    assert run(script, *small, "--RUN_NAME=faster").status == 0
    saved = [torch.load(f"models/{name}/checkpoint.pt") for name in ("phantom", "faster")]
    slow, fast = (each["optimizer_d"]["param_groups"][0]["lr"] for each in saved)
    assert fast == pytest.approx(4 * slow)
    weights = [each["discriminator"]["head.weight"] for each in saved]
    assert not torch.equal(*weights)
    result = run(script, *small, "--EPOCHS=2")
    assert result.status == 1 and "another optimizer_d initial_lr" in result.text


def test_a_penalty_that_falls_from_step_to_step_is_trained_with(run, small, edit):
    script = edit(r"else 16 \* R1", "else 16 * R1 / (step + 1)")
    assert run(script, *small, "--EPOCHS=3", "--METRIC_IMAGES=0", "--BATCH_SIZE=32").status == 0


def test_a_loss_may_be_an_object(run, small, edit):
    loss = "class Loss(torch.nn.Module):\n    def forward(self, real, fake):\n"
    loss += "        return fake.mean() - real.mean()\n\n\n"
    new = loss + "discriminator_loss = Loss()\n\n\ndef loss_of_before"
    script = edit("def discriminator_loss", new)
    assert run(script, *small, "--EPOCHS=1", "--METRIC_IMAGES=0").status == 0
    assert run(script, *small, "--EPOCHS=2", "--METRIC_IMAGES=0").status == 0


def test_what_could_not_be_read_again_does_not_replace_a_good_checkpoint(run, train, monkeypatch):
    small = train("--EPOCHS=1")
    before, evaluate = CHECKPOINT.read_bytes(), metrics.evaluate
    kid = {"kid": np.float64(0.5)}  # weights_only refuses NumPy's numbers
    monkeypatch.setattr(metrics, "evaluate", lambda *a: evaluate(*a) | kid)
    result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == 1 and "history 1 kid" in result.text and "plain values" in result.text
    assert CHECKPOINT.read_bytes() == before


OTHER_OPTIONS = {  # in train_model.py: what changes in both optimisers, and what the refusal names
    "the class": (ADAM, OTHER_OPTIMISERS["AdamW"], 2, "optimizer_g"),
    "beta2": (r"0\.999\)", "0.99)", 1, "optimizer_g betas"),
    "eps": (r'"fused": True', '"fused": True, "eps": 1e-7', 1, "optimizer_g eps"),
    "weight decay": (
        r'"fused": True',
        '"fused": True, "weight_decay": 0.01',
        1,
        "optimizer_g weight_decay",
    ),
    "of one network": (
        ADAM.replace(r"(\w+)", "(discriminator)"),
        r"torch.optim.Adam(\1.parameters(), eps=1e-7, **adam)",
        1,
        "optimizer_d eps",
    ),
}


@pytest.mark.parametrize(("pattern", "new", "n", "name"), OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
def test_an_optimiser_that_changed_is_refused_by_name(run, train, edit, pattern, new, n, name):
    small = train("--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    result = run(edit(pattern, new, count=n), *small, "--EPOCHS=2")
    assert result.status == 1
    assert f"another {name} than train_model.py has now" in result.text
    assert CHECKPOINT.read_bytes() == before


CODE = {
    "discriminator_loss": (r"(def discriminator_loss\(.*\):\n)", r"\1    real_logits *= 2\n"),
    "gradient_penalty": (r"\.mean\(\) / 2\n", ".mean()\n"),
    "matching_loss": (r"clamp\(min=1e-6\)", "clamp(min=1e-3)"),
    "train_step": (r"fake\.backward\(-seen", "fake.backward(-2 * seen"),
    "penalty_weight": ("step % 16 else", "step % 8 else"),
    "set_learning_rate": (r"min\(1\.0, LR", "max(1.0, LR"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_that_changed_is_refused_by_name(run, train, edit, name):
    small = train("--EPOCHS=1")
    result = run(edit(*CODE[name]), *small, "--EPOCHS=2")
    assert result.status == 1
    assert f"another {name} than train_model.py has now" in result.text


CONSTANTS = {  # what the refusal says: how train_model.py is edited
    "N_CRITIC was unset and is now 2": (r"(LATENT_DIM = .*\n)", r"\1N_CRITIC = 2  # [1 to 9]\n", 1),
    "BETA1 was 0.0 and is now unset": ("BETA1", "beta1", 2),  # no constant in lower case
}


@pytest.mark.parametrize("change", CONSTANTS)
def test_a_constant_that_is_new_or_gone_makes_another_run(run, train, edit, change):
    small = train("--EPOCHS=1")
    result = run(edit(*CONSTANTS[change]), *small, "--EPOCHS=2")
    assert result.status == 1 and change in result.text


def test_a_constant_that_may_change_may_also_be_new(run, train, edit):
    small = train("--EPOCHS=1")
    new = r'\1NOTE = "in the afternoon"\nMAY_CHANGE |= {"NOTE"}\n'
    assert run(edit(r"(MAY_CHANGE \|= .*\n)", new), *small, "--EPOCHS=2").status == 0


def test_code_whose_comments_and_docstrings_changed_is_the_same(run, train, edit):
    small = train("--EPOCHS=1")
    new = r'\1    """A docstring."""  # and a comment\n'
    script = edit(r"(def \w+_loss\(.*\):\n)", new, count=2)
    source = Path(script).read_text().replace("Update D, then G, by one step each.", "Update both.")
    Path(script).write_text(source)
    assert run(script, *small, "--EPOCHS=2").status == 0
    train("--EPOCHS=2", name="straight")
    assert_same_run("phantom", "straight")


def test_a_run_that_gains_a_metric_goes_on_resumes_and_is_reported(run, train, monkeypatch):
    small = train("--EPOCHS=1")
    evaluate = metrics.evaluate
    monkeypatch.setattr(metrics, "evaluate", lambda *a: evaluate(*a) | {"kid": 0.5, "a": "note"})
    for epochs in (2, 3):
        assert run("train_model.py", *small, f"--EPOCHS={epochs}").status == 0
    monkeypatch.setattr(metrics, "evaluate", evaluate)  # and it is lost again
    assert run("train_model.py", *small, "--EPOCHS=4").status == 0
    with open("models/phantom/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kid"] for row in rows] == ["", "0.5", "0.5", ""]
    assert [*rows[0]][-2:] == ["kid", "a"]  # new columns come last
    assert all(float(row["coverage"]) >= 0 for row in rows)
    assert run("generate_report.py", *CURVES).status == 0
    assert Path("images/phantom/metrics.png").exists()


def test_a_run_whose_metrics_begin_late_is_reported(run, train):
    train("--EPOCHS=2")
    saved = torch.load(CHECKPOINT, weights_only=True)
    for key in ("precision", "recall", "coverage", "frechet", "seconds", "images_per_second"):
        del saved["history"][0][key]
    rewrite(CHECKPOINT, saved)
    assert run("generate_report.py", *CURVES).status == 0
    assert Path("images/phantom/metrics.png").exists()
