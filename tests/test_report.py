"""The report as its user sees it: files in a folder, pictures that tell the truth."""

import os
import shutil
import signal
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import rewrite, signal_in_step
from PIL import Image

from common import checkpoint, sampling
from report import plotting, sections


def pictures(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*"))


# What most of these tests are not about, and what takes most of the time.
SHORT = [
    f"--{part}=False"
    for part in (
        "BLIND_TEST",
        "NUMBERS",
        "DETECTIVE",
        "DIVERSITY",
        "COPIES",
        "LATENT_SPACE",
        "FAILURES",
        "PLAY",
    )
]
PICTURES = {"loss.pdf", "loss.png", "real_vs_synthetic.png", "report.html", "training.gif"}
PICTURES |= {"training_progress.png", "synthetic/contact_sheet.png", "synthetic/synthetic.npz"}
CURVES = ("metrics", "spectrum", "grey_levels", "distances")
MORE = {f"{name}.{kind}" for name in CURVES for kind in ("pdf", "png")}
MORE |= {f"detective_{what}.png" for what in ("surest", "best", "accused", "gradient")}
MORE |= {"blind_test.png", "diversity.png", "most_alike_synthetic.png", "most_alike_real.png"}
MORE |= {"mean_and_std.png", "copies.png", "copies_held_out.png", "walks.png"}
MORE |= {"play.html", "interpolation.gif", "failures.png", "failures_held_out.png"}


def assert_whole_report(folder, epochs, n_synthetic, channels=1, more=frozenset()):
    expected = PICTURES | more | {f"epochs/epoch_{epoch:04d}.png" for epoch in epochs}
    assert set(pictures(folder)) == expected
    for name in pictures(folder):
        if name.endswith("png"):
            assert np.ptp(imageio.imread(Path(folder) / name)) == 255, name  # black to white
    with np.load(Path(folder) / "synthetic" / "synthetic.npz") as arrays:
        images = arrays["images"]
    assert images.dtype == np.uint8
    assert images.shape == ((n_synthetic, 28, 28) if channels == 1 else (n_synthetic, 28, 28, 3))
    with Image.open(Path(folder) / "training.gif") as gif:
        assert gif.n_frames == len(epochs)
        assert gif.info["loop"] == 0  # for ever
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
            if channels == 1:
                greys = np.unique(np.asarray(gif.convert("RGB")))
                assert greys.min() == 0 and greys.max() == 255 and 10 < len(greys) <= 64
    assert durations == [200] * (len(epochs) - 1) + [3000]  # milliseconds
    return images


def test_a_phantom_run_is_reported(run, reported, monkeypatch):
    images = assert_whole_report(reported / "images/phantom", [1, 2], 1000, more=MORE)
    monkeypatch.chdir(reported)
    again = run("generate_report.py", "--IMAGES_DIR=again")
    assert again.status == 0, again.text
    for name in ("real_vs_synthetic.png", "training.gif", "loss.png", "synthetic.npz"):
        assert str(Path("again/phantom")) in again.text and name in again.text
    for name in pictures("images/phantom"):
        assert Path("again/phantom", name).read_bytes() == Path("images/phantom", name).read_bytes()

    run("generate_report.py", "--SEED=1", "--N_SYNTHETIC=1200", "--IMAGES_DIR=other", *SHORT)
    other = assert_whole_report("other/phantom", [1, 2], 1200)
    assert not np.array_equal(images, other[:1000])


def test_real_pneumoniamnist_is_trained_on_and_reported(run, real_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [f"--DATA_DIR={real_dir}", "--DATASET=pneumoniamnist"]
    result = run("train_model.py", *data, "--EPOCHS=2", "--TRAIN_FRACTION=0.2")
    assert result.status == 0 and "PneumoniaMNIST" in result.text and "942 of" in result.text
    result = run("generate_report.py", *SHORT)  # finds the data where the training found it
    assert result.status == 0, result.text
    images = assert_whole_report("images/pneumoniamnist", [1, 2], 1000)
    assert images.std(axis=0).mean() > 5  # no two hundred steps, but no collapse either


def test_colour_images_are_trained_on_and_reported(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (70, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 8, (70, 1), dtype=np.uint8)
    Path("data").mkdir()
    np.savez("data/bloodmnist.npz", **arrays)
    training = ["--DATASET=bloodmnist", "--EPOCHS=2", "--METRIC_IMAGES=0"]
    assert run("train_model.py", *training).status == 0
    assert run("generate_report.py", *SHORT).status == 0
    assert_whole_report("images/bloodmnist", [1, 2], 1000, channels=3)


def test_the_run_trained_last_is_reported_unless_another_is_named(run, train):
    small = train("--EPOCHS=1", name="first")
    run("train_model.py", *small, "--EPOCHS=1", "--RUN_NAME=second")
    run("generate_report.py", *SHORT)
    assert not Path("images/first").exists()
    assert_whole_report("images/second", [1], 1000)
    run("generate_report.py", "--RUN_NAME=first", *SHORT)
    assert_whole_report("images/first", [1], 1000)


def test_the_synthetic_images_come_from_the_epoch_that_is_asked_for(run, train):
    train("--EPOCHS=3")
    saved = torch.load("models/phantom/checkpoint.pt", weights_only=True)
    saved["history"][1]["coverage"] = 0.9  # as if the second epoch had been the best
    saved["history"][0]["coverage"] = saved["history"][2]["coverage"] = 0.1
    rewrite("models/phantom/checkpoint.pt", saved)
    images = {}
    for epoch in ("last", "best", "1", "2", "3"):
        run(
            "generate_report.py", f"--EPOCH={epoch}", "--N_SYNTHETIC=70", "--TRAINING=False", *SHORT
        )
        with np.load("images/phantom/synthetic/synthetic.npz") as arrays:
            images[epoch] = arrays["images"]
    assert np.array_equal(images["best"], images["2"])
    assert np.array_equal(images["last"], images["3"])
    assert not np.array_equal(images["1"], images["2"])
    for epoch in ("4", "first"):
        result = run("generate_report.py", f"--EPOCH={epoch}")
        assert result.status == 1 and f"EPOCH={epoch}: legal are" in result.text
        assert "saved: 1, 2, 3" in result.text


@pytest.mark.parametrize("step", [1, 4])  # stopped in the first and in the second epoch
def test_an_unfinished_run_is_reported(run, small, step):
    with signal_in_step(step, signal.SIGINT):
        assert run("train_model.py", *small, "--EPOCHS=9").status == 130
    result = run("generate_report.py", "--N_SYNTHETIC=10", *SHORT)
    assert result.status == 0
    if step == 1:
        assert "no epoch is finished yet" in result.text
        assert "real_vs_synthetic.png" in pictures("images/phantom")
    else:
        assert_whole_report("images/phantom", [1], 10)


def test_pictures_of_another_run_are_archived_and_not_mixed_in(run, train):
    train("--EPOCHS=2")
    run("generate_report.py", *SHORT)
    shutil.rmtree("models/phantom")
    train("--EPOCHS=1")
    result = run("generate_report.py", *SHORT)
    assert "phantom-old-1" in result.text
    assert_whole_report("images/phantom", [1], 1000)
    assert_whole_report("images/phantom-old-1", [1, 2], 1000)


def test_pictures_stay_when_a_snapshot_is_gone(run, train):
    train("--EPOCHS=2")
    run("generate_report.py", *SHORT)
    Path("models/phantom/generator_epoch_0001.pt").unlink()
    assert run("generate_report.py", *SHORT).status == 0
    assert "epochs/epoch_0001.png" in pictures("images/phantom")
    assert not list(Path("images").glob("*-old-*"))


def test_a_run_is_never_archived_with_its_pictures(run, train):
    train("--EPOCHS=2")
    run("generate_report.py", "--IMAGES_DIR=models", *SHORT)
    Path("models/phantom/epochs/epoch_0009.png").touch()
    assert run("generate_report.py", "--IMAGES_DIR=models", *SHORT).status == 0
    assert Path("models/phantom/checkpoint.pt").exists()


def times_shown(image, picture):
    """How often an image (1, 28, 28) stands in a picture (H, W), each pixel a square of 2x2."""
    wanted = image[0].numpy().repeat(2, axis=0).repeat(2, axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(picture, wanted.shape)
    corners = np.argwhere(windows[:, :, 0, 0] == wanted[0, 0])
    return sum(np.array_equal(windows[y, x], wanted) for y, x in corners)


def test_a_picture_shows_the_images_pixel_by_pixel_and_never_stretches_their_greys():
    dull = torch.randint(100, 120, (4, 1, 28, 28), dtype=torch.uint8)
    cells = [("real", plotting.tile(dull, 2)), ("synthetic", plotting.tile(dull.flip(0), 2))]
    picture = plotting.compose("PneumoniaMNIST, epoch 3", cells, 2, scale=2)
    for image in dull:
        assert times_shown(image, picture[:, :, 0]) == 2


def test_the_grid_of_an_epoch_shows_what_its_generator_draws(run, train):
    train("--EPOCHS=1")
    run("generate_report.py", "--SCALE=2", *SHORT)
    grid = imageio.imread("images/phantom/epochs/epoch_0001.png")
    latents = torch.load("models/phantom/checkpoint.pt", weights_only=True)["fixed_latents"]
    generator = checkpoint.load_generator("models/phantom/generator_epoch_0001.pt")
    for image in sampling.draw(generator, latents)[::9]:
        assert times_shown(image, grid) == 1


def test_a_long_heading_is_not_cut_off():
    tile = plotting.tile(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), 1)
    for letters in (20, 60, 200):
        picture = plotting.compose("W" * letters, [("", tile)], 1, scale=3)
        dark = (picture.max(axis=2) < 200)[:30].any(axis=0).nonzero()[0]
        assert len(dark) > 5 * letters and dark[-1] < picture.shape[1] - 10


@pytest.mark.parametrize("letters", [20, 60, 200])
def test_a_long_title_of_curves_is_not_cut_off(letters):
    with plotting.style(plotting.STYLE):
        figure, axes = plotting.one_plot("word " * (letters // 5))
        figure.draw_without_rendering()
        edges = axes._left_title.get_window_extent()
    assert edges.x0 > 0 and edges.x1 < figure.bbox.width and edges.y1 < figure.bbox.height


@pytest.mark.parametrize("curves", [1, 3, 4, 7])
def test_a_legend_and_the_title_above_it_do_not_meet(curves):
    with plotting.style(plotting.STYLE):
        figure, axes = plotting.one_plot("a title of\ntwo lines")
        for number in range(curves):
            plotting.plot(axes, [{"epoch": 1, "x": 1}], "x", f"curve {number}", "C0")
        plotting.legend(axes)
        figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes._left_title.get_window_extent().y0 < legend.y1 + 60


def test_a_loss_below_zero_is_within_the_axes():
    row = {"d_real": 0.6, "d_fake": 0.4}
    history = [row | {"epoch": n, "loss": 0.1 - n} for n in range(1, 4)]
    upper, _ = sections.draw_loss(history, "phantom").axes
    assert upper.get_ylim()[0] <= -2.9


def test_a_legend_of_five_curves_leaves_the_curves_their_width():
    with plotting.style(plotting.STYLE):
        figure, axes = plotting.over_epochs("a title")
        for low in range(5):
            plotting.plot(axes[1], [{"epoch": 1, "x": 1}], "x", f"0.{low}0 to 0.{low}5", "C0")
        plotting.legend(axes[1])
        figure.draw_without_rendering()
    assert axes[1].get_position().width > 0.7


@pytest.mark.skipif(not hasattr(os, "nice"), reason="Windows has other priorities")
def test_reports_of_one_process_lower_its_priority_once(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.nice(0)
    for _ in range(2):
        assert run("generate_report.py").status == 1  # no run is here
    assert os.nice(0) == max(before, 3)
