"""Training as its user sees it: it goes on where it stopped, and loses nothing."""

import csv
import os
import resource
import signal
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import signal_in_step

import dcgan
from common import files

CHECKPOINT = Path("models/phantom/checkpoint.pt")
CLOCK = {"seconds", "images_per_second"}  # what may differ between two equal runs


def trained(run_folder="models/phantom"):
    """All that a run has learned, as one list of tensors, and its history without the clock."""
    checkpoint = torch.load(Path(run_folder) / "checkpoint.pt", weights_only=True)
    tensors = []
    for part in ("generator", "discriminator", "generator_ema"):
        tensors += checkpoint[part].values()
    for part in ("optimizer_g", "optimizer_d"):
        for state in checkpoint[part]["state"].values():
            tensors += state.values()
    history = [{k: v for k, v in row.items() if k not in CLOCK} for row in checkpoint["history"]]
    return tensors, history


def assert_same_run(one, other):
    assert one[1] == other[1]
    for ours, theirs in zip(one[0], other[0], strict=True):
        assert torch.equal(ours, theirs)


def wait_for_a_step(process):
    """Return when a checkpoint says that training has begun."""
    deadline = time.monotonic() + 120
    while not CHECKPOINT.exists() or torch.load(CHECKPOINT, weights_only=True)["step"] == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_leaves_a_checkpoint_a_log_and_a_generator_an_epoch(run, small):
    result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == 0
    assert "Phantom (computer-drawn, not patients)" in result.text
    assert "epoch 2/2" in result.text and "\r" not in result.text  # no terminal: plain lines
    assert "python generate_report.py" in result.text
    names = {path.name for path in Path("models/phantom").iterdir()}
    assert names == {
        "checkpoint.pt",
        "generator_epoch_0001.pt",
        "generator_epoch_0002.pt",
        "log.csv",
    }
    with open("models/phantom/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    for row in rows:
        assert row["data_set"] == "Phantom (computer-drawn, not patients)"
        assert float(row["loss_discriminator"]) > 0 and float(row["loss_generator"]) > 0
        assert 0 < float(row["d_real"]) < 1 and 0 < float(row["d_fake"]) < 1
        assert 0 <= float(row["coverage"]) <= 1 and float(row["frechet"]) > 0
        assert float(row["seconds"]) > 0 and float(row["images_per_second"]) > 0
    last = torch.load("models/phantom/generator_epoch_0002.pt", weights_only=True)
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    assert last["epoch"] == checkpoint["epoch"] == 2
    for key, tensor in checkpoint["generator_ema"].items():
        assert torch.equal(last["generator_ema"][key], tensor)


def test_the_seed_decides_the_run(run, small):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("train_model.py", *small, "--EPOCHS=1", f"--RUN_NAME={name}", f"--SEED={seed}")
    assert_same_run(trained("models/a"), trained("models/b"))
    assert not torch.equal(trained("models/a")[0][0], trained("models/c")[0][0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_continued_after_its_last_epoch_equals_a_longer_one(run, small, precision):
    small.append(f"--PRECISION={precision}")
    run("train_model.py", *small, "--EPOCHS=1")
    assert run("train_model.py", *small, "--EPOCHS=3").status == 0
    assert run("train_model.py", *small, "--EPOCHS=3", "--RUN_NAME=straight").status == 0
    assert_same_run(trained(), trained("models/straight"))
    assert len(Path("models/phantom/log.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "step", [2, 3, 4]
)  # in the middle, at the end and at the start of an epoch
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_the_run_goes_on_bit_for_bit(
    run, small, monkeypatch, step, number, status
):
    with monkeypatch.context() as patch:
        signal_in_step(step, number, patch)
        result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == status
    assert "To go on" in result.text and "Traceback" not in result.text
    assert torch.load(CHECKPOINT, weights_only=True)["step"] == step
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    run("train_model.py", *small, "--EPOCHS=2", "--RUN_NAME=straight")
    assert_same_run(trained(), trained("models/straight"))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_killed_process_loses_nothing_and_keeps_others_off(run, start, small, number, status):
    # A checkpoint after each step: most of the time is spent writing, and the kill falls there.
    small += ["--EPOCHS=30", "--CHECKPOINT_MINUTES=0"]
    process = start("train_model.py", *small)
    wait_for_a_step(process)
    second = run("train_model.py", *small)
    assert second.status == 1 and "another process is training" in second.text
    process.send_signal(number)
    text, _ = process.communicate()
    assert process.returncode == status, text
    assert "Traceback" not in text
    steps = torch.load(CHECKPOINT, weights_only=True)["step"]
    assert 0 < steps < 90

    epochs = steps // 3 + 2
    small[-2:] = [f"--EPOCHS={epochs}"]
    resumed = run("train_model.py", *small)
    assert resumed.status == 0 and f"from epoch {steps // 3 + 1} on" in resumed.text
    run("train_model.py", *small, "--RUN_NAME=straight")
    assert_same_run(trained(), trained("models/straight"))


def test_a_finished_run_says_so(run, small):
    run("train_model.py", *small, "--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    result = run("train_model.py", *small, "--EPOCHS=1")
    assert result.status == 0
    assert "finished" in result.text and "raise EPOCHS" in result.text
    assert "another RUN_NAME" in result.text
    assert CHECKPOINT.read_bytes() == before


def test_other_settings_do_not_alter_a_run(run, small):
    run("train_model.py", *small, "--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    result = run("train_model.py", *small, "--EPOCHS=2", "--LEARNING_RATE=0.001", "--SEED=5")
    assert result.status == 1
    assert "LEARNING_RATE was 0.0001 and is now 0.001" in result.text
    assert "SEED was 0 and is now 5" in result.text
    assert CHECKPOINT.read_bytes() == before


def test_other_images_do_not_alter_a_run(run, small, phantom_dir):
    run("train_model.py", *small, "--EPOCHS=1")
    with np.load(phantom_dir / "phantom.npz") as arrays:
        other = {key: arrays[key][::-1] for key in arrays.files}
    Path("other").mkdir()
    np.savez("other/phantom.npz", **other)
    result = run("train_model.py", *small, "--EPOCHS=2", "--DATA_DIR=other")
    assert result.status == 1 and "not hold the images" in result.text


def test_starting_over_sets_the_old_run_and_its_pictures_aside(run, small):
    run("train_model.py", *small, "--EPOCHS=1")
    run("generate_report.py")
    before = CHECKPOINT.read_bytes()
    for _ in range(2):
        over = run("train_model.py", *small, "--EPOCHS=1", "--SEED=7", "--RESUME=never")
        assert over.status == 0
    assert "phantom-old-2" in over.text
    assert Path("models/phantom-old-1/checkpoint.pt").read_bytes() == before
    assert Path("images/phantom-old-1/training.gif").exists()
    assert trained()[1] == trained("models/phantom-old-2")[1]
    assert run("generate_report.py", "--RUN_NAME=phantom-old-1").status == 0


def test_files_without_a_checkpoint_are_not_overwritten(run, small):
    run("train_model.py", *small, "--EPOCHS=1")
    CHECKPOINT.unlink()
    result = run("train_model.py", *small, "--EPOCHS=1")
    assert result.status == 1 and "no checkpoint.pt" in result.text


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_again(run, small):
    leftover = Path("models/phantom/.checkpoint.pt.0123abcd.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a checkpoint")
    assert run("train_model.py", *small, "--EPOCHS=1").status == 0
    assert not leftover.exists()


def test_a_full_disk_leaves_the_old_checkpoint(run, small):
    run("train_model.py", *small, "--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow over 5 MB: a snapshot still fits, a checkpoint does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
    try:
        result = run("train_model.py", *small, "--EPOCHS=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status == 1
    assert "checkpoint.pt cannot be written: File too large" in result.text
    assert "untouched" in result.text and "Traceback" not in result.text
    assert CHECKPOINT.read_bytes() == before
    assert not list(Path("models/phantom").glob(".*"))  # no half file lies about
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0


def test_losses_that_are_not_finite_stop_the_run(run, small, monkeypatch):
    run("train_model.py", *small, "--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    forward = dcgan.Discriminator.forward
    monkeypatch.setattr(dcgan.Discriminator, "forward", lambda *a: forward(*a) * float("nan"))
    result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == 1
    assert "no longer finite" in result.text and "LEARNING_RATE" in result.text
    assert CHECKPOINT.read_bytes() == before


def test_a_collapse_is_told_in_words(run, small, monkeypatch):
    forward = dcgan.Generator.forward

    def collapsed(generator, latents, *labels):  # one image for all latents, but one to train
        return forward(generator, latents if generator.training else latents * 0, *labels)

    small += ["--BATCH_SIZE=2", "--EPOCHS=5"]  # 500 steps: from here on coverage could be there
    healthy = run("train_model.py", *small, "--RUN_NAME=healthy")
    monkeypatch.setattr(dcgan.Generator, "forward", collapsed)
    result = run("train_model.py", *small)
    assert result.status == 0
    assert (
        result.text.count("nearly all samples look alike") == 2
    )  # when it happens, and at the end
    assert "LEARNING_RATE" in result.text
    assert "coverage" in healthy.text and "look alike" not in healthy.text


def test_a_run_can_do_without_metrics(run, small):
    result = run("train_model.py", *small, "--EPOCHS=1", "--METRIC_IMAGES=0")
    assert result.status == 0 and "coverage" not in result.text
    assert "coverage" not in Path("models/phantom/log.csv").read_text()
    assert run("generate_report.py").status == 0
    assert not Path("images/phantom/metrics.png").exists()


def test_snapshots_can_be_rarer_and_the_last_is_always_kept(run, small):
    run("train_model.py", *small, "--EPOCHS=5", "--SNAPSHOT_EPOCHS=2")
    kept = sorted(path.stem for path in Path("models/phantom").glob("generator_epoch_*"))
    assert [name[-1] for name in kept] == ["2", "4", "5"]


def test_a_terminal_shows_a_progress_bar(start, small):
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (25, 200))
    process = start("train_model.py", *small, "--EPOCHS=90", stderr=terminal)
    shown = ""
    while "D(G(z))" not in shown and process.poll() is None:
        shown += os.read(reader, 1000).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "\r" in shown and "/90: " in shown and "images/s" in shown and "loss D" in shown


def test_the_lock_ends_with_the_run(tmp_path):
    folder = tmp_path / "models" / "run"
    with files.lock(folder), pytest.raises(SystemExit, match="another process"):
        files.lock(folder)
    with files.lock(folder):
        pass
