"""Images of 28, 64, 128 and 224 pixels: networks, files, runs, pages and exports."""

import shutil
import signal
from pathlib import Path

import medmnist
import numpy as np
import pytest
import torch
from conftest import REAL_DATA, networks, refusal, signal_in_step
from PIL import Image
from test_training import assert_same_run
from torch import nn

from common import checkpoint, hardware, metrics, spectrum
from common.data import dataset, download, phantom
from dcgan import Discriminator, Generator, initialise, sides
from report import detective, fine_detail, membership

SIZES = dataset.SIZES
SIDES = {
    28: [28, 14, 7, 4],
    64: [64, 32, 16, 8, 4],
    128: [128, 64, 32, 16, 8, 4],
    224: [224, 112, 56, 28, 14, 7, 4],
}
# A page of all sections in seconds.
LITTLE = ["--N_SYNTHETIC=40", "--N_EXAMINED=30", "--N_DETECTIVE=100"]
NARROW = {"generator": {"widths": (16, 8, 8, 4)}, "discriminator": {"widths": (4, 8, 16)}}


def write(path, n, size, labels):
    """Write n phantoms of each split, with labels drawn at random."""
    arrays = {}
    for seed, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"], own = phantom.make_split(n, seed, size)
        wide = np.random.default_rng(seed).integers(0, 2, (n, labels), np.uint8)
        arrays[f"{split}_labels"] = own if labels == 2 else wide
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return arrays


@pytest.fixture(scope="session")
def real_64_dir():
    """A DATA_DIR with real X-rays of 64x64 pixels, or a skip."""
    for folder in REAL_DATA:
        if (folder / "chestmnist_64.npz").exists():
            return folder
    pytest.skip("put chestmnist_64.npz into data/ to run this test: real X-rays of 64x64 pixels")


# The networks.


def test_a_network_of_ones_own_need_not_have_sizes():
    def network(latent_dim, channels, labels, depth=3):
        pass

    given = {"latent_dim": 100, "channels": 1, "labels": 0, "depth": 3}
    assert checkpoint.constructor_args(network, 100, 1, 0, size=64) == given
    assert checkpoint.constructor_args(Generator, size=64)["size"] == 64


@pytest.mark.parametrize("size", SIZES)
def test_maps_double_from_7_or_8_pixels_to_the_size_and_halve_down_to_4(size):
    assert sides(size) == SIDES[size]
    generator, discriminator = Generator(size=size).eval(), Discriminator(size=size).eval()
    seen = []
    for network, names in ((generator, SIDES[size][-3::-1]), (discriminator, SIDES[size][1:])):
        for side in names:
            layer = network.get_submodule(f"to_{side}")
            layer.register_forward_hook(lambda _, inputs, maps: seen.append(maps.shape[-1]))
    with torch.no_grad():
        images = generator(torch.randn(2, 100))
        # Its own, that of texture, and one at 7 pixels, at 8 and 16 or at 7 and 14.
        assert discriminator(images).shape == (2, 3 if size == 28 else 4)
    assert images.shape == (2, 1, size, size)
    assert generator.start == SIDES[size][-2]
    assert seen == SIDES[size][-3::-1] + SIDES[size][1:]
    with torch.no_grad():
        assert discriminator.features(images).shape == (2, 2048)


@pytest.mark.parametrize("size", SIZES)
def test_the_finest_maps_are_as_many_at_each_size(size):
    generator = Generator(size=size)
    stages = [getattr(generator, stage)[0] for stage in generator.stages]
    widths = [layer.out_channels for layer in (*stages, generator.to_image)]
    assert widths[-4:] == [128, 48, 16, 1][-len(widths) :]  # three at 28 pixels
    assert {*widths} <= {256, 128, 48, 16, 1}


@pytest.mark.parametrize("size", SIZES)
def test_from_64_pixels_on_a_convolution_refines_the_maps_at_a_quarter_of_the_size(size):
    better, plain = (Generator(size=size, bilinear=bilinear) for bilinear in (True, False))
    for side in SIDES[size][1:-2]:
        layers = [len(getattr(generator, f"to_{side}")) for generator in (better, plain)]
        assert layers == [8 if size > 28 and side == size // 4 else 5, 3]


def spelled_out():
    """The generator of 28 pixels as a list of its layers, in the order in which they are drawn."""

    def enlarge(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    return {
        "project": nn.Linear(100, 128 * 7 * 7, bias=False),
        "at_start": nn.Sequential(nn.BatchNorm2d(128), nn.ReLU()),
        "to_14": enlarge(128, 48),
        "to_28": enlarge(48, 16),
        "to_image": nn.Conv2d(16, 1, 3, padding=1),
    }


def test_28_pixels_have_the_layers_names_and_draws_of_the_list():
    torch.manual_seed(0)
    generator = Generator()
    torch.manual_seed(0)
    before = nn.ModuleDict(spelled_out()).apply(initialise)
    ours, old = generator.state_dict(), before.state_dict()
    assert [*ours] == [*old]
    assert all(torch.equal(ours[name], old[name]) for name in old)

    latents = torch.randn(3, 100)
    x = before["project"](latents).view(3, 7, 7, -1).permute(0, 3, 1, 2)
    for name in ("at_start", "to_14", "to_28", "to_image"):
        x = before[name](x)
    assert torch.equal(generator(latents), torch.tanh(4 * x))


# The files.


@pytest.mark.parametrize("size", SIZES)
def test_phantoms_of_every_size_show_the_same_anatomy(size):
    images, labels = phantom.make_split(20, 0, size)
    assert images.shape == (20, size, size) and labels.shape == (20, 2)
    assert np.array_equal(labels, phantom.make_split(20, 0)[1])
    small = metrics.shrink(torch.from_numpy(images)[:, None]).double().mean((0, 1))
    rows = small.shape[0] / 28
    lung = small[round(10 * rows) : round(18 * rows), round(5 * rows) : round(10 * rows)]
    below = small[round(25 * rows) :]
    assert below.mean() > lung.mean() + 20  # air is dark, as in test_dataset.py


@pytest.mark.parametrize("size", SIZES)
def test_the_file_of_medmnist_with_this_size_is_downloaded(tmp_path, monkeypatch, size):
    asked = []

    def download_nothing(name, path, url, md5):
        asked.append((path.name, url, md5))
        write(path, 30, size, labels=14)

    monkeypatch.setattr(download, "download", download_nothing)
    images, _, source = dataset.load("chestmnist", folder=tmp_path, size=size)
    info, end = medmnist.INFO["chestmnist"], "" if size == 28 else f"_{size}"
    assert asked == [(f"chestmnist{end}.npz", info[f"url{end}"], info[f"MD5{end}"])]
    assert images.shape == (30, 1, size, size) and f"chestmnist{end}.npz" in source


def test_a_file_of_another_size_is_refused_with_its_right_name(tmp_path):
    write(tmp_path / "chestmnist_64.npz", 20, 28, labels=14)
    message = refusal(lambda: dataset.load("chestmnist", folder=tmp_path, size=64))
    assert "(20, 28, 28), not (N, 64, 64)" in message
    assert "Rename it to chestmnist.npz and give --SIZE=28" in message


@pytest.mark.parametrize("colours", [(), (3,)])
def test_images_that_fill_the_memory_are_mapped_and_the_same(tmp_path, monkeypatch, colours):
    monkeypatch.chdir(tmp_path)
    random, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (70, 64, 64, *colours), np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 2, (70, 1))
    Path("data").mkdir()
    np.savez_compressed("data/pneumoniamnist_64.npz", **arrays)
    images, _, _ = dataset.load("pneumoniamnist", size=64)
    assert not list(Path("data").glob("*.npy"))

    monkeypatch.setattr(hardware, "free_memory", lambda: 2 * images.nbytes - 1)
    mapped, _, _ = dataset.load("pneumoniamnist", size=64)
    assert torch.equal(mapped, images) and dataset.sha256(mapped) == dataset.sha256(images)
    (unpacked,) = Path("data").glob("*.npy")
    assert unpacked.name.startswith("pneumoniamnist_64_train_images_")
    written = unpacked.stat().st_mtime_ns
    dataset.load("pneumoniamnist", size=64)
    assert unpacked.stat().st_mtime_ns == written  # unpacked once

    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez_compressed("data/pneumoniamnist_64.npz", **arrays)
    mapped, _, _ = dataset.load("pneumoniamnist", size=64)
    assert torch.equal(mapped, 255 - images)  # not those of the old file


def test_a_run_on_mapped_images_learns_the_same(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("data/phantom.npz"), 100, 28, labels=2)
    options = ["--DATASET=phantom", "--EPOCHS=1", "--METRIC_IMAGES=0"]
    assert run("train_model.py", *options).status == 0
    monkeypatch.setattr(hardware, "free_memory", lambda: 0)
    result = run("train_model.py", *options, "--RUN_NAME=mapped")
    assert result.status == 0 and "unpacking data/phantom_train_images_" in result.text
    assert_same_run("phantom", "mapped")


# Metrics.


@pytest.mark.parametrize("size", SIZES)
def test_features_and_neighbours_are_those_of_images_averaged_to_28_or_32(size):
    images = torch.from_numpy(phantom.make_split(20, 1, size)[0])[:, None]
    factor = {28: 1, 64: 2, 128: 4, 224: 8}[size]
    small = metrics.shrink(images)
    by_hand = images.double().unfold(2, factor, factor).unfold(3, factor, factor).mean((4, 5))
    assert torch.equal(small.double(), by_hand)
    mean, basis = metrics.fit_features(images)
    assert len(mean) == small[0].numel()
    with_noise = images.clone()
    with_noise[:, :, ::factor, ::factor] ^= 1
    change = metrics.features(with_noise, mean, basis) - metrics.features(images, mean, basis)
    assert change.abs().max() < 1
    distance, index = membership.nearest_image(images[:5], images)
    assert (distance == 0).all() and index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", SIZES)
def test_fine_detail_has_all_levels_from_the_size_down(size):
    images = torch.from_numpy(phantom.make_split(20, 1, size)[0])[:, None]
    levels = fine_detail.distance(images, images)
    assert [*levels] == SIDES[size][:-1] and set(levels.values()) == {0}
    board = 8 * ((torch.arange(size)[:, None] + torch.arange(size)) % 2)
    found = fine_detail.distance(images, (images.int() + board).clamp(0, 255).to(torch.uint8))
    assert found[size] > 5 * found[size // 2]  # only the finest level sees single pixels


def test_the_gaussian_of_64_pixels_has_the_mean_and_the_covariance_of_the_images():
    random = torch.Generator().manual_seed(0)
    images = torch.full((300, 1, 64, 64), 128, dtype=torch.uint8)
    grey = 20 * torch.randn(300, 1, 1, 1, generator=random)
    images[:, :, :32] = (128 + grey).round().to(torch.uint8)
    drawn = metrics.gaussian_reference(images, 2000).double()
    assert drawn.shape == (2000, 1, 64, 64)
    top, rest = drawn[:, 0, :32], drawn[:, 0, 32:]
    assert (rest == 128).all()
    assert (top == top[:, :1, :1]).double().mean() > 0.95  # all of one grey, but for rounding
    assert top.mean() == pytest.approx(images[:, :, :32].double().mean().item(), abs=1.5)
    assert top.std() == pytest.approx(images[:, :, :32].double().std().item(), rel=0.1)


def test_the_fresh_detective_sees_the_finest_pixels_of_large_images(monkeypatch):
    monkeypatch.setattr(detective, "ROWS", [(28, None, 60), (7, None, 10)])
    one, other = (torch.from_numpy(phantom.make_split(150, s, 64)[0])[:, None] for s in (1, 2))
    other[:, :, ::2, ::2] = other[:, :, ::2, ::2] ^ 16  # one pixel in four
    fine, coarse = detective.detective(one, other)
    assert (fine["pixels"], coarse["pixels"]) == (64, 8)
    assert fine["real"].shape[-1] == 64 and coarse["real"].shape[-1] == 8
    assert fine["accuracy"] > 0.9
    assert spectrum.amplitude_spectrum(one).shape == (46,)  # 32 times the root of 2


# Runs.


def test_real_x_rays_of_64_pixels_are_learned_resumed_shown_and_exported(
    run, tmp_path, monkeypatch, real_64_dir
):
    monkeypatch.chdir(tmp_path)
    options = ["--DATASET=chestmnist", "--SIZE=64", f"--DATA_DIR={real_64_dir}", "--EPOCHS=2"]
    options += ["--TRAIN_FRACTION=0.15", "--BATCH_SIZE=20", "--CONDITIONAL=True"]
    with networks(**NARROW):
        with signal_in_step(8, signal.SIGINT):  # in the middle of the second epoch
            assert run("train_model.py", *options).status == 130
        result = run("train_model.py", *options)
        assert result.status == 0 and "of 64x64x1" in result.text
        assert run("train_model.py", *options, "--RUN_NAME=straight").status == 0
    assert_same_run("chestmnist_64", "straight")
    settings = torch.load("models/chestmnist_64/checkpoint.pt", weights_only=True)["settings"]
    assert settings["SIZE"] == 64
    generator = checkpoint.load_generator("models/chestmnist_64/generator_epoch_0002.pt")
    assert generator(torch.randn(2, 100), torch.zeros(2, 14)).shape == (2, 1, 64, 64)

    shutil.rmtree("models/straight")
    result = run("generate_report.py", f"--DATA_DIR={real_64_dir}", *LITTLE)
    assert result.status == 0, result.text
    page = Path("images/chestmnist_64/report.html").read_text(encoding="utf-8")
    assert "64 x 64 x 1 values" in page and "ChestMNIST, 64x64" in page
    assert "averaged to 32 x 32 pixels" in page and 'id="detail_64"' in page
    assert "into 1×64×64" in page and "28×28" not in page  # medmnist describes its smallest files
    assert len(page) < 12e6
    assert Path("images/chestmnist_64/play.html").exists()

    result = run("generate_images.py", "--N_IMAGES=30")
    assert result.status == 0 and "size=64" in result.text
    root = "images/chestmnist_64/export"
    loaded = medmnist.ChestMNIST(split="train", root=root, size=64, download=False)
    assert loaded.imgs.shape == (30, 64, 64) and loaded.labels.shape == (30, 14)
    assert "30 of 64x64x1" in Path(root, "ABOUT.txt").read_text()


@pytest.mark.parametrize("size", [128, 224])
def test_a_few_steps_on_large_images_and_their_export(run, tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    write(Path(f"data/phantom_{size}.npz"), 24, size, labels=2)
    with networks(**NARROW):
        options = ["--DATASET=phantom", f"--SIZE={size}", "--EPOCHS=1", "--BATCH_SIZE=8"]
        result = run("train_model.py", *options)
    assert result.status == 0 and f"24 of {size}x{size}x1, 3 steps" in result.text, result.text
    assert run("generate_images.py", "--N_IMAGES=3").status == 0
    with np.load(f"images/phantom_{size}/export/phantom_{size}.npz") as file:
        assert file["train_images"].shape == (3, size, size)


def test_the_page_of_large_images_stays_small_and_says_why_it_has_no_game(
    run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(Path("data/phantom_128.npz"), 44, 128, labels=2)
    with networks(**NARROW):
        options = ["--DATASET=phantom", "--SIZE=128", "--EPOCHS=1", "--BATCH_SIZE=22"]
        assert run("train_model.py", *options).status == 0
    assert run("generate_report.py", *LITTLE).status == 0
    folder = Path("images/phantom_128")
    page = (folder / "report.html").read_text()
    assert len(page) < 12e6
    assert not (folder / "play.html").exists() and 'href="play.html"' not in page
    with Image.open(folder / "real_vs_synthetic.png") as picture:
        assert max(picture.size) < 2000  # three by three in each half


def test_a_run_resumes_at_its_own_size_only(run, train):
    small = train("--EPOCHS=1")
    result = run("train_model.py", *small, "--EPOCHS=2", "--SIZE=64", "--RUN_NAME=phantom")
    assert result.status == 1 and "SIZE was 28 and is now 64" in result.text
    result = run("train_model.py", *small, "--SIZE=32")
    assert result.status == 1 and "legal values are 28, 64, 128, 224" in result.text
