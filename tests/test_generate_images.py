"""The export as its user sees it: labels are obeyed, others can load it, nothing is half done."""

import contextlib
import csv
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import medmnist
import numpy as np
import pytest
import torch
from conftest import NARROW, REPO, networks, run_script, write_phantoms
from PIL import Image

from common.data import dataset

EXPORT = Path("images/phantom/export")


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def arrays(path):
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory, phantom_dir):
    """A MODELS_DIR with a run that has learned the phantom's signs, roughly."""
    folder = tmp_path_factory.mktemp("conditional")
    arguments = ["--DATASET=phantom", f"--DATA_DIR={phantom_dir}", "--CONDITIONAL=True"]
    arguments += ["--TRAIN_FRACTION=0.3", "--EPOCHS=4", "--BATCH_SIZE=32", "--LEARNING_RATE=1e-3"]
    arguments += ["--METRIC_IMAGES=0"]
    with contextlib.chdir(folder), networks(**NARROW):
        assert run_script("train_model.py", *arguments)[0] == 0
    return folder / "models"


@pytest.fixture
def trained(small, models_dir):
    """The argument that leads to that run."""
    return f"--MODELS_DIR={models_dir}"


def lung_and_spine(images):
    """Mean grey level of the lungs and of the spine above the heart, (N,) each."""
    lungs = images[:, 8:12][:, :, [6, 7, 8, 19, 20, 21]].mean(axis=(1, 2))
    return lungs, images[:, 8:14, 13:15].mean(axis=(1, 2))


def heart_width(images):
    """How far the heart reaches to the image's right of the spine, in pixels, (N,)."""
    lungs, spine = lung_and_spine(images)
    bright = images[:, 14:19, 15:25].mean(axis=1) > ((lungs + spine) / 2)[:, None]
    return bright.cumprod(axis=1).sum(axis=1)


def lung_height(images):
    """How far down the darker, fluid-free lung reaches at the side where it is less, in pixels."""
    below = images[:, 25:27, 6:22].mean(axis=(1, 2))
    sides = []
    for columns in (slice(3, 7), slice(21, 25)):
        side = images[:, 10:26, columns].mean(axis=2)
        dark = side < ((side[:, :4].mean(axis=1) + below) / 2)[:, None]
        sides.append(dark.cumprod(axis=1).sum(axis=1))
    return np.minimum(*sides)


def test_these_measurements_tell_the_signs_of_real_phantoms(phantom_dir):
    images, labels, _ = dataset.load("phantom", "test", phantom_dir)
    images, labels = images[:, 0].numpy().astype(float), labels.numpy() == 1
    heart, lung = heart_width(images), lung_height(images)
    assert heart[labels[:, 0]].mean() - heart[~labels[:, 0]].mean() > 1.5
    assert lung[labels[:, 1]].mean() - lung[~labels[:, 1]].mean() < -1.5
    # And each of them follows its own sign only.
    assert abs(heart[labels[:, 1]].mean() - heart[~labels[:, 1]].mean()) < 0.5


def test_a_synthetic_image_shows_the_sign_it_was_asked_for(run, trained, phantom_dir):
    real, labels, _ = dataset.load("phantom", "test", phantom_dir)
    heart, lung = {}, {}
    for number, label in enumerate(("no finding", "cardiomegaly", "effusion")):
        result = run(
            "generate_images.py", trained, "--N_IMAGES=500", f"--LABELS={label}", f"--OUT={number}"
        )
        assert result.status == 0 and f"labels     {label}, exactly as in" in result.text
        file = arrays(Path(str(number), "phantom.npz"))
        wanted = [int(label == name) for name in ("cardiomegaly", "effusion")]
        assert (file["train_labels"] == wanted).all()
        images = file["train_images"].astype(float)
        alike = real[(labels == torch.tensor(wanted)).all(dim=1)].double()  # no two are the same,
        assert images.std(axis=0).mean() > alike.std(dim=0).mean() / 2  # and nor are these
        heart[label], lung[label] = heart_width(images).mean(), lung_height(images).mean()
    assert heart["cardiomegaly"] > heart["no finding"] + 0.7, heart
    assert lung["effusion"] < lung["no finding"] - 0.7, lung


def test_a_label_never_seen_is_refused_by_name(run, trained, phantom_dir):
    result = run("generate_images.py", trained, "--LABELS=hernia")
    assert result.status == 1 and "no training image of" in result.text
    assert "'hernia'" in result.text
    legal = '"as in the training set", "cardiomegaly", "effusion", "no finding", or several'
    assert legal in result.text
    result = run("generate_images.py", trained, "--LABELS=no finding+effusion")
    assert result.status == 1 and "no image of Phantom" in result.text
    # Known to the data set, but in none of the images that the run was trained on.
    no_effusion = np.array([[0, 0], [1, 0]] * 50, np.uint8)
    write_phantoms(phantom_dir, 100, train_labels=no_effusion)
    run("train_model.py", "--DATASET=phantom", "--EPOCHS=1", "--CONDITIONAL=True")
    result = run("generate_images.py", "--LABELS=cardiomegaly+effusion")
    assert result.status == 1 and "has the label 'effusion'. Legal are" in result.text
    assert not Path("images/phantom").exists()


def test_a_plain_run_has_no_labels_to_ask_for(run, train):
    train("--EPOCHS=1")
    result = run("generate_images.py", "--LABELS=effusion")
    assert result.status == 1 and "was trained without labels" in result.text
    assert not EXPORT.exists()
    assert run("generate_images.py", "--N_IMAGES=70").status == 0
    file = arrays(EXPORT / "phantom.npz")
    assert file["train_images"].shape == (70, 28, 28) and file["train_labels"].shape == (70, 0)


def test_the_labels_are_as_frequent_as_in_the_training_set(run, trained, phantom_dir):
    assert run("generate_images.py", trained, "--N_IMAGES=2000").status == 0
    drawn = arrays(EXPORT / "phantom.npz")["train_labels"]
    assert drawn.shape == (2000, 2) and drawn.dtype == np.uint8
    _, labels, _ = dataset.load("phantom", "train", phantom_dir, 0.3)
    for both in ([0, 0], [0, 1], [1, 0], [1, 1]):
        share = (labels.numpy() == both).all(axis=1).mean()
        assert abs((drawn == both).all(axis=1).mean() - share) < 0.04


def write_medmnist(name, n, labels, *channels):
    random = np.random.default_rng(0)
    content = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = random.integers(0, 256, (n, 28, 28, *channels), np.uint8)
        content[f"{split}_labels"] = labels(random)
    Path("data").mkdir()
    np.savez(f"data/{name}.npz", **content)
    return content


def test_medmnists_class_loads_the_export_in_place_of_the_real_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = write_medmnist("pneumoniamnist", 70, lambda r: r.integers(0, 2, (70, 1), np.uint8))
    training = ["--DATASET=pneumoniamnist", "--CONDITIONAL=True", "--METRIC_IMAGES=0"]
    run("train_model.py", *training, "--EPOCHS=1")
    result = run("generate_images.py", "--VAL_AND_TEST=real")
    assert result.status == 0 and "PneumoniaMNIST(split" in result.text
    root = "images/pneumoniamnist/export"
    loaded = medmnist.PneumoniaMNIST(split="train", root=root, download=False)
    file = arrays(f"{root}/pneumoniamnist.npz")
    assert len(loaded) == 4708  # which its len() compares with the real file's
    assert set(loaded.labels[:, 0]) == {0, 1} and loaded.labels.shape == (4708, 1)
    image, label = loaded[3]
    assert np.array_equal(np.asarray(image), file["train_images"][3]) and label.shape == (1,)
    for split in ("val", "test"):
        copied = medmnist.PneumoniaMNIST(split=split, root=root, download=False)
        assert np.array_equal(copied.imgs, original[f"{split}_images"])
        assert np.array_equal(copied.labels, original[f"{split}_labels"])
    about = Path(root, "ABOUT.txt").read_text()
    assert "val_ and test_ arrays are REAL" in about and "CC BY 4.0" in about
    assert "NOT FOR CLINICAL USE" in about
    assert "An empirical check, not a guarantee" in about and "--RUN_NAME=" in about

    few = run("generate_images.py", "--N_IMAGES=70", "--OUT=few", "--LABELS=pneumo")
    assert few.status == 1 and '"normal", "pneumonia"' in few.text
    few = run("generate_images.py", "--N_IMAGES=70", "--OUT=few", "--LABELS=Pneumonia")
    assert few.status == 0 and "insists on 4,708 images" in few.text
    assert (arrays("few/pneumoniamnist.npz")["train_labels"] == 1).all()
    assert "names       0 normal, 1 pneumonia" in Path("few/ABOUT.txt").read_text()
    assert arrays("few/pneumoniamnist.npz")["test_images"].shape == (0, 28, 28)
    mixed = run("generate_images.py", "--OUT=mixed", "--LABELS=normal+pneumonia")
    assert mixed.status == 1 and "no image of PneumoniaMNIST" in mixed.text


@pytest.mark.parametrize(("name", "columns"), [("chestmnist", 14), ("bloodmnist", 1)])
def test_findings_and_colours_go_through_medmnists_class(run, tmp_path, monkeypatch, name, columns):
    monkeypatch.chdir(tmp_path)
    channels = [3] if name == "bloodmnist" else []
    write_medmnist(name, 70, lambda r: r.integers(0, 2, (70, columns), np.uint8), *channels)
    training = [f"--DATASET={name}", "--CONDITIONAL=True", "--METRIC_IMAGES=0", "--EPOCHS=1"]
    run("train_model.py", *training)
    assert run("generate_images.py", "--N_IMAGES=600").status == 0
    python_class = getattr(medmnist, dataset.title(name))
    loaded = python_class(split="train", root=f"images/{name}/export", download=False)
    assert loaded.imgs.shape == (600, 28, 28, *channels) and loaded.labels.shape == (600, columns)
    assert loaded.labels.max() == 1 and loaded[0][1].shape == (columns,)
    again, labels, _ = dataset.load(name, "train", f"images/{name}/export")  # and so do we
    assert len(again) == 600 and np.array_equal(labels, loaded.labels)


@pytest.mark.parametrize("form", ["npz", "png"])
def test_the_same_seed_gives_the_same_bytes(run, trained, form):
    arguments = ["generate_images.py", trained, "--N_IMAGES=70", f"--FORMAT={form}"]
    run(*arguments, "--OUT=one")
    run(*arguments, "--OUT=two")
    run(*arguments, "--OUT=three", "--SEED=1")
    one, two, three = (contents(name) for name in ("one", "two", "three"))
    assert one == two
    assert len(one) == (2 if form == "npz" else 72)
    image = "phantom.npz" if form == "npz" else "0000000.png"
    assert one[image] != three[image]


def test_pictures_hold_the_same_as_the_arrays(run, trained):
    for form in ("npz", "png"):
        run("generate_images.py", trained, "--N_IMAGES=70", f"--FORMAT={form}", f"--OUT={form}")
    file = arrays("npz/phantom.npz")
    with open("png/labels.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 70
    for row, image, (cardiomegaly, effusion) in zip(
        rows, file["train_images"], file["train_labels"], strict=True
    ):
        with Image.open(Path("png", row["file"])) as picture:
            assert np.array_equal(np.asarray(picture), image)
            assert "not for clinical use" in picture.text["Description"]
        assert (row["cardiomegaly"], row["effusion"]) == (str(cardiomegaly), str(effusion))


def test_the_epoch_that_is_asked_for_draws_the_images(run, trained, models_dir):
    for epoch in ("last", "4", "1"):
        run("generate_images.py", trained, "--N_IMAGES=70", f"--EPOCH={epoch}", f"--OUT={epoch}")
    images = {epoch: arrays(f"{epoch}/phantom.npz")["train_images"] for epoch in ("last", "4", "1")}
    assert np.array_equal(images["last"], images["4"])
    assert not np.array_equal(images["1"], images["4"])
    assert "generator_epoch_0001.pt, SHA-256 " in Path("1/ABOUT.txt").read_text()
    refused = run("generate_images.py", trained, "--EPOCH=5")
    assert refused.status == 1 and "saved: 1, 2, 3, 4" in refused.text


@pytest.mark.parametrize(
    ("number", "status", "form"), [(signal.SIGINT, 130, "npz"), (signal.SIGTERM, 143, "png")]
)
def test_an_interrupted_export_leaves_nothing(run, start, trained, number, status, form):
    process = start("generate_images.py", trained, "--N_IMAGES=1000000", f"--FORMAT={form}")
    deadline = time.monotonic() + 120
    while not any(EXPORT.with_name(".export.tmp").glob("*")):  # until the first files are there
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate()
    assert process.returncode == status and "Traceback" not in text
    assert [path.name for path in EXPORT.parent.iterdir()] == [".export.lock"]


def test_what_a_killed_export_left_is_removed_by_the_next(run, trained):
    left = EXPORT.with_name(".export.tmp")
    left.mkdir(parents=True)
    (left / "0000000.png").write_bytes(b"half")
    assert run("generate_images.py", trained, "--N_IMAGES=70").status == 0
    assert not left.exists() and sorted(contents(EXPORT)) == ["ABOUT.txt", "phantom.npz"]


def test_an_older_export_is_not_overwritten(run, trained):
    run("generate_images.py", trained, "--N_IMAGES=70")
    before = contents(EXPORT)
    result = run("generate_images.py", trained, "--N_IMAGES=80")
    assert result.status == 1 and "exists already. Move it away, or choose" in result.text
    assert contents(EXPORT) == before


def test_a_full_disk_is_told_in_one_line(run, trained):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        result = run("generate_images.py", trained, "--N_IMAGES=1000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.status == 1 and "export cannot be written: File too large" in result.text
    assert "Traceback" not in result.text
    assert not EXPORT.exists() and not EXPORT.with_name(".export.tmp").exists()


PEAKS = """
import resource, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import dcgan
dcgan.Generator.forward = lambda generator, latents, labels: latents[:, :1, None, None].expand(
    -1, 1, 28, 28
)  # quick: what is measured is the writing
arguments = sys.argv[1:]
for n in ("1000", "100000"):
    sys.argv[1:] = [*arguments, f"--N_IMAGES={n}", f"--OUT={n}"]
    runpy.run_path(sys.path[0] + "/generate_images.py", run_name="__main__")
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # kilobytes, so far
"""


def test_a_hundred_thousand_images_take_no_more_memory_than_a_thousand(trained):
    command = [sys.executable, "-c", PEAKS, str(REPO), trained]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = (int(peak) for peak in re.findall(r"peak (\d+)", done.stdout))
    assert arrays("100000/phantom.npz")["train_images"].shape == (100_000, 28, 28)
    assert many - few < 20_000  # the images alone are 78,400 kB
