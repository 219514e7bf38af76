"""Where real images carry the pattern of JPEG compression, synthetic ones carry it too."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import sampling
from common.data import jpeg, phantom
from dcgan import Generator


@pytest.fixture(scope="module")
def phantoms():
    return torch.from_numpy(phantom.make_split(300, seed=0)[0])[:, None]


def stored(image, quality):
    """A NumPy image as Pillow reads it from a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [20, 50, 75, 90, 95])
def test_the_quality_is_found_in_grey_and_colour_images(phantoms, quality):
    assert jpeg.find_quality(jpeg.compress(phantoms, quality)) == quality
    tints = torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    colour = (phantoms * tints).to(torch.uint8)
    assert jpeg.find_quality(jpeg.compress(colour, quality)) == quality


def test_images_that_were_not_stored_as_jpeg_have_no_quality(phantoms):
    assert jpeg.find_quality(phantoms) is None
    assert jpeg.find_quality(torch.full_like(phantoms, 7)) is None
    half = torch.cat([jpeg.compress(phantoms[:150], 75), phantoms[150:]])
    assert jpeg.find_quality(half) is None
    moved = jpeg.compress(phantoms, 75).roll(3, dims=3)  # as after cutting off an edge
    assert jpeg.find_quality(moved) is None


def test_images_are_compressed_as_pillow_does(phantoms):
    wanted = np.stack([stored(image, 75) for image in phantoms[:20, 0].numpy()])
    assert np.array_equal(jpeg.compress(phantoms[:20], 75)[:, 0].numpy(), wanted)
    assert jpeg.compress(phantoms[:20].expand(-1, 3, -1, -1), 75).shape == (20, 3, 28, 28)


def test_a_generator_draws_as_its_images_were_stored():
    torch.manual_seed(0)
    generator, latents = Generator().eval(), torch.randn(40, 100)
    images = sampling.draw(generator, latents)
    generator.jpeg = 50
    assert torch.equal(sampling.draw(generator, latents), jpeg.compress(images, 50))


def test_a_run_on_jpeg_files_of_its_size_says_so_and_exports_alike(
    run, phantoms, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    for number, image in enumerate(phantoms[:, 0].numpy()):
        Image.fromarray(image).save(f"scans/{number}.jpg", quality=60)
    options = ["--DATASET=scans", "--EPOCHS=1", "--METRIC_IMAGES=0"]
    done = run("train_model.py", *options)
    assert done.status == 0
    assert "JPEG       quality 60, of real images; synthetic ones are compressed alike" in done.text
    assert run("generate_images.py", "--OUT=out").status == 0
    with np.load("out/scans_28.npz") as file:
        assert jpeg.find_quality(torch.from_numpy(file["train_images"])[:, None]) == 60
    assert "compressed  as JPEG of quality 60" in Path("out/ABOUT.txt").read_text()
