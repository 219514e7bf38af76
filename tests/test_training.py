"""Training as its user sees it: it resumes where it stopped, and loses nothing."""

import csv
import os
import re
import resource
import signal
import termios
import time
from pathlib import Path

import pytest
import torch
from conftest import signal_in_step, write_phantoms

import dcgan
from common import checkpoint, distributed, files, sampling

CHECKPOINT = Path("models/phantom/checkpoint.pt")
# What may differ between two equal runs: what the user called them, and the clock.
MAY_DIFFER = {"settings", "machine", "seconds", "images_per_second", "maintenance_seconds"}
MAY_DIFFER |= {"saved_at"}


def contents(value, name="checkpoint"):
    """All that a checkpoint holds, {where: tensor or plain value}, but for what may differ."""
    if not isinstance(value, dict | list | tuple):
        return {name: value}
    found = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key not in MAY_DIFFER:
            found |= contents(inner, f"{name}.{key}")
    return found


def assert_same_run(one, other):
    """Two runs, by their names, have learned the same, bit for bit, and would go on alike."""
    one, other = (
        contents(torch.load(f"models/{name}/checkpoint.pt", weights_only=True))
        for name in (one, other)
    )
    assert one.keys() == other.keys()
    for where, ours in one.items():
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, other[where]), where
        else:
            assert ours == other[where], where


def steps_done():
    return torch.load(CHECKPOINT, weights_only=True)["step"] if CHECKPOINT.exists() else 0


def wait_for_a_step(process):
    """Return when a checkpoint says that training has begun."""
    deadline = time.monotonic() + 120
    while steps_done() == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_leaves_a_checkpoint_a_log_and_a_generator_an_epoch(run, small):
    result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == 0
    assert "Phantom (computer-drawn, not patients)" in result.text
    assert "epoch 2/2" in result.text and "\r" not in result.text  # no terminal: plain lines
    assert "generate_report.py --RUN_NAME=phantom" in result.text
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
        assert float(row["loss"]) > 0
        assert 0 < float(row["d_real"]) < 1 and 0 < float(row["d_fake"]) < 1
        assert 0 <= float(row["coverage"]) <= 1 and float(row["frechet"]) > 0
        assert float(row["seconds"]) > 0 and float(row["images_per_second"]) > 0
    last = torch.load("models/phantom/generator_epoch_0002.pt", weights_only=True)
    saved = torch.load(CHECKPOINT, weights_only=True)
    assert last["epoch"] == saved["epoch"] == 2
    for key, tensor in saved["generator_ema"].items():
        assert torch.equal(last["generator_ema"][key], tensor)


def test_seconds_are_those_of_steps_and_all_else_is_maintenance(run, small, monkeypatch):
    """Steps take 1 s on this clock, an evaluation 100, a checkpoint 10, and all else no time."""
    clock = [1000.0]

    def slow(module, name, seconds):
        function = getattr(module, name)

        def call(*arguments, **named):
            clock[0] += seconds
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    slow(distributed, "average_gradients", 0.5)  # twice a step
    slow(sampling, "sample", 100)
    slow(checkpoint, "save_run", 10)
    with signal_in_step(5, signal.SIGUSR1):  # a checkpoint in the middle of the second epoch
        result = run("train_model.py", *small, "--EPOCHS=3")
    with open("models/phantom/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows] == [3, 3, 3]
    assert [float(row["images_per_second"]) for row in rows] == [64, 64, 64]
    # What is written after a row counts in the next one.
    assert [float(row["maintenance_seconds"]) for row in rows] == [100, 120, 110]
    left = re.findall(r"epoch \d/3, .*, (\S+) left", result.text)
    assert left == ["0:03:26", "0:02:03", "0:00:00"]  # both together


def test_the_seed_decides_the_run(run, tmp_path, monkeypatch, phantom_dir):
    monkeypatch.chdir(tmp_path)
    write_phantoms(phantom_dir, 200)  # all of them in all runs: no part chosen by the seed
    for name, seed in (("phantom", 1), ("same", 1), ("other", 2)):
        options = ["--DATASET=phantom", "--EPOCHS=1", f"--RUN_NAME={name}", f"--SEED={seed}"]
        run("train_model.py", *options)
    assert_same_run("phantom", "same")
    snapshots = [f"models/{name}/generator_epoch_0001.pt" for name in ("phantom", "other")]
    weights = [checkpoint.load_generator(path).project.weight for path in snapshots]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_resumed_after_its_last_epoch_equals_a_longer_one(run, small, dtype):
    small.append(f"--DTYPE={dtype}")
    run("train_model.py", *small, "--EPOCHS=1")
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    assert run("train_model.py", *small, "--EPOCHS=2", "--RUN_NAME=straight").status == 0
    assert_same_run("phantom", "straight")
    assert len(Path("models/phantom/log.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("step", "number", "status"),
    [(2, signal.SIGINT, 130), (3, signal.SIGTERM, 143), (4, signal.SIGINT, 130)],
    ids=["in an epoch", "in its last step", "in the first step of the next"],
)
def test_a_signal_saves_the_step_and_the_run_resumes_bit_for_bit(
    run, small, train, step, number, status
):
    with signal_in_step(step, number):
        result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == status
    assert "To resume" in result.text and "Traceback" not in result.text
    assert steps_done() == step
    assert run("train_model.py", *small, "--EPOCHS=2").status == 0
    train("--EPOCHS=2", name="straight")
    assert_same_run("phantom", "straight")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_process_loses_nothing_and_keeps_others_off(
    run, start, small, train, number, status
):
    # A checkpoint after each step: most of the time is spent writing, and the kill falls there.
    process = start("train_model.py", *small, "--EPOCHS=30", "--CHECKPOINT_MINUTES=0")
    wait_for_a_step(process)
    second = run("train_model.py", *small)
    assert second.status == 1 and "another process is training" in second.text
    process.send_signal(number)
    text, _ = process.communicate()
    assert process.returncode == status, text
    assert "Traceback" not in text
    assert 0 < steps_done() < 90

    begun = steps_done() // 3 + 1
    resumed = run("train_model.py", *small, f"--EPOCHS={begun + 1}")
    assert resumed.status == 0 and f"from epoch {begun}\n" in resumed.text
    train(f"--EPOCHS={begun + 1}", name="straight")
    assert_same_run("phantom", "straight")


def test_a_finished_run_says_so(run, train):
    small = train("--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    result = run("train_model.py", *small, "--EPOCHS=1")
    assert result.status == 0
    assert "finished" in result.text and "raise EPOCHS" in result.text
    assert "RUN_NAME" in result.text
    assert CHECKPOINT.read_bytes() == before


def test_starting_over_archives_the_old_run_and_its_pictures(run, train):
    small = train("--EPOCHS=1")
    Path("images/phantom").mkdir(parents=True)
    Path("images/phantom/training.gif").write_bytes(b"of the first run")
    before = CHECKPOINT.read_bytes()
    for _ in range(2):
        over = run("train_model.py", *small, "--EPOCHS=1", "--SEED=7", "--RESUME=never")
        assert over.status == 0
    assert "phantom-old-2" in over.text
    assert Path("models/phantom-old-1/checkpoint.pt").read_bytes() == before
    assert Path("images/phantom-old-1/training.gif").read_bytes() == b"of the first run"
    assert_same_run("phantom", "phantom-old-2")
    assert run("generate_images.py", "--RUN_NAME=phantom-old-1", "--N_IMAGES=1").status == 0


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_again(run, small):
    leftover = Path("models/phantom/.checkpoint.pt.0123abcd.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a checkpoint")
    assert run("train_model.py", *small, "--EPOCHS=1").status == 0
    assert not leftover.exists()


def test_a_full_disk_leaves_the_old_checkpoint(run, train):
    small = train("--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    snapshot = Path("models/phantom/generator_epoch_0001.pt").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow larger than this: a generator still fits, a checkpoint does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((snapshot + len(before)) // 2, limits[1]))
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


def test_losses_that_are_not_finite_stop_the_run(run, train, monkeypatch):
    small = train("--EPOCHS=1")
    before = CHECKPOINT.read_bytes()
    forward = dcgan.Discriminator.forward
    monkeypatch.setattr(dcgan.Discriminator, "forward", lambda *a: forward(*a) * float("nan"))
    result = run("train_model.py", *small, "--EPOCHS=2")
    assert result.status == 1
    assert "no longer finite" in result.text and "LEARNING_RATE" in result.text
    assert CHECKPOINT.read_bytes() == before


def test_a_collapse_is_told_in_words(run, small, monkeypatch):
    forward = dcgan.Generator.forward

    def collapses(generator, latents, *labels):  # in the sixth epoch, but not while it trains
        if Path("models/phantom/generator_epoch_0005.pt").exists() and not generator.training:
            latents = torch.zeros_like(latents)  # one image for all
        return forward(generator, latents, *labels)

    monkeypatch.setattr(dcgan.Generator, "forward", collapses)
    # 500 steps in five epochs: from here on there was time to learn.
    result = run("train_model.py", *small, "--BATCH_SIZE=2", "--EPOCHS=6")
    assert result.status == 0
    healthy, collapsed = result.text.split("epoch 6/6, ")
    assert "epoch 5/6, " in healthy and "look alike" not in healthy
    assert collapsed.count("nearly all samples look alike") == 2  # when it happens, and at the end
    assert "LEARNING_RATE" in collapsed


def test_snapshots_can_be_rarer_and_the_last_is_always_kept(run, small):
    small.append("--METRIC_IMAGES=0")
    result = run("train_model.py", *small, "--EPOCHS=5", "--SNAPSHOT_EPOCHS=2")
    kept = sorted(path.stem for path in Path("models/phantom").glob("generator_epoch_*"))
    assert [name[-1] for name in kept] == ["2", "4", "5"]
    assert result.status == 0 and "coverage" not in result.text  # no metrics were wanted
    assert "coverage" not in Path("models/phantom/log.csv").read_text()


def test_a_terminal_shows_a_progress_bar(start, small):
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (25, 200))
    process = start("train_model.py", *small, "--EPOCHS=90", stderr=terminal)
    shown = ""
    while "D(G(z))" not in shown and process.poll() is None:
        shown += os.read(reader, 1000).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "\r" in shown and "/90: " in shown and "images/s, loss " in shown


def test_the_lock_ends_with_the_run(tmp_path):
    folder = tmp_path / "models" / "run"
    with files.lock(folder), pytest.raises(SystemExit, match="another process"):
        files.lock(folder)
    with files.lock(folder):
        pass
