"""Your own images: folders as people have them, .npz files of any size, DICOM; train to export."""

import contextlib
import os
import shutil
import struct
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import NARROW, networks, refusal, rewrite, run_script
from PIL import Image
from test_report import SHORT

from common import checkpoint
from common.data import dataset, image_file, own_images
from common.data.dataset import DataFile
from common.data.labels import is_multilabel, label_names
from common.errors import UserError
from report import plotting


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ramp(height=40, width=60, low=0, high=255, kind=np.uint8):
    """A picture that becomes brighter from left to right."""
    return np.linspace(low, high, width).round().astype(kind)[None].repeat(height, axis=0)


def save(path, pixels=None, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp() if pixels is None else pixels).save(path, **options)


def write_chests(train=70, others=6):
    """chest_xray/train/NORMAL/0.jpeg ..., the layout of the pneumonia set that most people have."""
    random = np.random.default_rng(0)
    for split, n in {"train": train, "val": others, "test": others}.items():
        for label, brightness in {"NORMAL": 60, "PNEUMONIA": 120}.items():
            for number in range(n):
                noise = random.integers(0, 100, (36, 44), np.uint8)
                save(f"chest_xray/{split}/{label}/{number}.jpeg", noise + np.uint8(brightness))


def load(path="scans", split="train"):
    """The images (N, H, W) or (N, H, W, 3) and labels (N, L) of a path as training gets them."""
    images, labels, _ = dataset.load(path, split)
    return dataset.to_hwc(images), labels.numpy()


def names(path="scans"):
    return label_names(dataset.find_info(DataFile(dataset.check_name(path))))


# Layouts


def test_the_folders_are_splits_and_labels(capsys):
    write_chests(train=3, others=2)
    images, labels = load("chest_xray")
    assert images.shape == (6, 28, 28) and labels.tolist() == [[0]] * 3 + [[1]] * 3
    assert images[:3].mean() + 30 < images[3:].mean()  # the labels are those of the images
    assert names("chest_xray") == ["NORMAL", "PNEUMONIA"]
    assert [len(load("chest_xray", split)[0]) for split in ("val", "test")] == [4, 4]
    assert capsys.readouterr().out.count("reading") == 1


def test_without_splits_they_are_seeded(tmp_path):
    for label in ("a", "b"):
        for number in range(50):
            grey = number + 100 * (label == "b")
            save(f"scans/{label}/{number}.png", ramp(low=grey, high=grey))
    parts = {split: load(split=split) for split in ("train", "val", "test")}
    assert [len(images) for images, _ in parts.values()] == [70, 10, 20]
    every = np.concatenate([images[:, 0, -1] for images, _ in parts.values()])
    assert len({*every.tolist()}) == 100  # each in one split only
    assert 25 < parts["train"][1].sum() < 45  # both labels
    shutil.copytree("scans", "elsewhere/scans")
    shutil.rmtree("data")
    again = load("elsewhere/scans")
    assert all(np.array_equal(*pair) for pair in zip(parts["train"], again, strict=True))


def test_a_flat_folder_has_no_labels(run):
    for number in range(10):
        save(f"scans/{number}.png")
    images, labels = load()
    assert images.shape == (7, 28, 28) and labels.shape == (7, 0) and names() == []
    result = run("train_model.py", "--DATASET=scans", "--CONDITIONAL=True")
    assert result.status == 1 and "scans has no labels that could be learned" in result.text


def test_what_is_no_image_is_passed_over_and_not_counted(capsys, tmp_path):
    write_chests(train=2, others=1)
    root = Path("chest_xray/train/NORMAL")
    shutil.copytree("chest_xray", "chest_xray/chest_xray")  # as in the archive of that set
    for name in ("Thumbs.db", "labels.csv", ".hidden.png", "a.gif"):
        (root / name).write_bytes(b"no image")
    save("chest_xray/.cache/a.png")
    save("chest_xray/train/loose.png")
    (root / "link.png").symlink_to(root.absolute() / "0.jpeg")
    Path("chest_xray/train/LINK").symlink_to(root.absolute())
    os.mkfifo(root / "pipe.png")
    assert len(load("chest_xray")[0]) == 4
    told = capsys.readouterr().out
    assert "cannot be used" not in told, told
    assert "left out: 9 images that lie beside the folders of splits or labels" in told
    assert names("chest_xray") == ["NORMAL", "PNEUMONIA"]


def test_unreadable_images_are_counted_and_the_first_five_named(capsys):
    save("scans/a/good.png")
    for number in range(6):
        Path(f"scans/a/bad{number}.jpeg").write_bytes(b"no image")
    save("scans/a/bad\x1b[31m.png")
    whole = Path("scans/a/bad\x1b[31m.png").read_bytes()
    Path("scans/a/bad\x1b[31m.png").write_bytes(whole[: len(whole) // 2])
    save("scans/a/small.png", ramp(27, 90))
    assert len(load()[0]) == 1
    told = capsys.readouterr().out
    assert "8 of 9 images cannot be used" in told and "\x1b" not in told
    assert "bad3.jpeg (UnidentifiedImageError), ..." in told and "bad4" not in told
    Path("scans/a/good.png").unlink()
    shutil.rmtree("data")
    assert "none of the images in " in refusal(load)
    assert not list(Path("data").glob("*.npz"))


@pytest.mark.parametrize(
    "options", [{"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {}]
)
def test_an_image_that_is_damaged_in_the_middle_is_not_black(capsys, options):
    name = f"scans/bad.{'tif' if options else 'png'}"
    save(name, np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8), **options)
    content = bytearray(Path(name).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    Path(name).write_bytes(content)
    save("scans/good.png")
    assert len(load()[0]) == 1
    assert "1 of 2 images cannot be used" in capsys.readouterr().out


def test_a_label_of_hundreds_of_letters_is_refused_where_it_is_cut():
    for end in ("effusion", "no effusion"):
        save(f"scans/train/{end}.png")
    long = "a" * 250
    Path("labels.csv").write_text(f"file,label\neffusion,{long}1\nno effusion,{long}2\n")
    with pytest.raises(UserError, match="two labels have the same first 200 letters"):
        dataset.load("scans", labels_csv="labels.csv")


def test_a_folder_without_images_is_refused():
    Path("scans").mkdir()
    Path("scans/notes.txt").write_text("nothing")
    assert "scans holds no PNG, JPEG, TIFF or DICOM files" in refusal(load)
    assert "no such file or folder" in refusal(load, "./scan")
    assert "did you mean pneumoniamnist?" in refusal(load, "pneumonia")


# Pixels


def test_a_picture_is_cropped_to_its_middle_and_averaged():
    pixels = np.zeros((56, 100), np.uint8)
    pixels[:, 22:78] = np.random.default_rng(0).integers(0, 256, (56, 56))
    save("scans/a.png", pixels)
    means = pixels[:, 22:78].reshape(28, 2, 28, 2).mean(axis=(1, 3))
    assert np.abs(load()[0][0] - means).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "inverted.tiff"])
def test_16_bits_are_scaled_by_the_files_own_range(capsys, name):
    inverted = name == "inverted.tiff"
    options = {"tiffinfo": {262: 0}} if inverted else {}  # 262: white is 0
    save(f"scans/{name}", ramp(56, 56, 1000, 5000, np.uint16), **options)
    wanted = ramp(1, 56).reshape(28, 2).mean(axis=1)
    pixels = load()[0][0].astype(float)
    assert np.abs(pixels - (255 - wanted if inverted else wanted)).max() <= 1
    assert "1 images that are not of 8 bits are scaled by the range" in capsys.readouterr().out


@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_in_colour_are_passed_over_and_not_made_black(capsys, name, bands):
    save("scans/b.png")
    write_16_bits(f"scans/{name}", ramp(high=4000, kind=np.uint16)[..., None].repeat(bands, -1))
    assert len(load()[0]) == 1
    assert f"{name} (16 bits in several channels" in capsys.readouterr().out


def write_16_bits(path, pixels):
    """Write a PNG or TIFF of 16 bits a channel; Pillow writes none in colour."""
    if path.endswith(".tif"):
        alpha = {"extrasamples": ["unassalpha"]} if pixels.shape[-1] == 4 else {}
        tifffile.imwrite(path, pixels, photometric="rgb", **alpha)
        return
    height, width, bands = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_a_picture_with_damaged_exif_is_read():
    save("scans/a.jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40)
    assert load()[0].shape == (1, 28, 28)


def test_16_bits_all_alike_are_black():
    save("scans/a.png", ramp(56, 56, 1000, 1000, np.uint16))
    assert load()[0].max() == 0


def test_colour_is_kept_where_there_is_any(capsys):
    grey, many = ramp(), 20
    for number in range(many):  # as a JPEG's R, G and B of grey images are
        save(f"scans/{number:02}.png", np.stack([grey, grey // 2 * 2, grey], axis=-1))
    assert load()[0].ndim == 3 and load()[0].shape[1:] == (28, 28)
    save(f"scans/{many}.png", np.stack([grey, 255 - grey, grey], axis=-1))
    images = np.concatenate([load(split=split)[0] for split in own_images.SPLITS])
    assert images.shape == (many + 1, 28, 28, 3)
    told = capsys.readouterr().out
    assert f"in colour, as 1 images are; the first is {many}.png" in told
    assert (np.ptp(images, axis=-1).max(axis=(1, 2)) > 0).sum() == 1  # the others stay grey


def test_other_kinds_of_pictures_are_read():
    see_through = np.full((40, 40, 4), 255, np.uint8)
    see_through[:, 20:, 3] = 0  # white, the right half of it transparent
    save("scans/1.png", see_through)
    save("scans/2.png", np.eye(40) > 2)
    Image.fromarray(ramp()).convert("P").save("scans/3.png")
    upright = Image.Exif()
    upright[274] = 6  # to be turned clockwise
    save("scans/4.jpg", ramp(60, 60), exif=upright)
    read = {}
    for path, _, _ in own_images.list_images(Path("scans").absolute())[0]:
        read[path[0]] = image_file.read_image(Path("scans", *path), 28)[0]
    assert read["1.png"][:, 0].min() == 255 and read["1.png"][:, -1].max() == 0
    assert read["2.png"].max() == 0
    assert np.abs(read["3.png"][0].astype(int) - np.asarray(read["3.png"][5])).max() == 0
    turned = read["4.jpg"].astype(int)  # the left edge, which is dark, is now above
    assert turned[0].max() < 20 and turned[-1].min() > 235


# Reading once


def test_a_folder_is_read_again_only_when_it_has_changed(capsys):
    for number in range(4):
        save(f"scans/a/{number}.png")
    load()
    file = Path("data/scans_28.npz")
    before = file.read_bytes()
    Path("scans/a/notes.txt").write_text("no image")
    os.utime(file, (0, 0))
    for path in ("scans", "./scans/", str(Path("scans").absolute())):
        load(path)
        assert file.stat().st_mtime == 0 and dataset.check_name(path) == "scans"
    assert capsys.readouterr().out.count("reading") == 1
    save("scans/a/4.png")
    load()
    assert file.read_bytes() != before
    Path("scans/a/4.png").unlink()
    load()
    with np.load(file) as new:
        assert len(new["train_images"]) == 3
    os.utime("scans/a/0.png", (1, 1))
    load()
    told = capsys.readouterr().out
    assert told.count("reading") == 3 and told.count("the images have changed") == 2
    # What was read before is kept; the third time it was the same.
    assert Path("data/scans_28-old-1.npz").read_bytes() == before
    assert sorted(Path("data").glob("*-old-*")) == [
        Path("data/scans_28-old-1.npz"),
        Path("data/scans_28-old-2.npz"),
    ]


def test_a_folder_that_cannot_be_written_to_is_enough():
    save("scans/a.png")
    Path("scans").chmod(0o500)
    before = sorted(Path("scans").rglob("*"))
    load()
    Path("scans").chmod(0o700)
    assert sorted(Path("scans").rglob("*")) == before


def test_another_folder_or_file_of_the_same_name_is_not_overwritten():
    save("scans/a.png")
    save("other/scans/b.png")
    load()
    before = Path("data/scans_28.npz").read_bytes()
    message = refusal(load, "other/scans")
    assert "data/scans_28.npz was not made of " in message
    assert Path("data/scans_28.npz").read_bytes() == before
    Path("data/scans_28.npz").write_bytes(b"mine")
    assert "is not replaced" in refusal(load)
    assert Path("data/scans_28.npz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("chestmnist", "own-chestmnist"),
        ("ChestMNIST", "own-ChestMNIST"),  # the same file on some file systems
        ("phantom", "own-phantom"),
        ("My X-rays (2024)", "My-X-rays-2024-"),
        ("Röntgen", "Rontgen"),
        ("胸片", "images"),
        ("..a", "a"),
    ],
)
def test_any_name_of_a_folder_becomes_a_legal_one(folder, name):
    save(f"{folder}/a.png")
    assert dataset.check_name(f"./{folder}") == name
    load(f"./{folder}")
    assert [path.name for path in Path("data").glob("*.npz")] == [f"{name}_28.npz"]


def test_a_name_of_medmnist_is_that_and_not_a_folder():
    Path("phantom").mkdir()
    assert dataset.check_name("phantom") == "phantom"


# .npz


def write_npz(path, size, n=10, columns=1, channels=(), **changes):
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (n, size, size, *channels), np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 2, (n, columns), np.uint8)
    Path(path).parent.mkdir(exist_ok=True)
    arrays |= changes
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("size", [28, 56])
def test_an_npz_of_any_name_and_size_is_read(monkeypatch, size, channels, order):
    monkeypatch.setattr(own_images, "ROWS", 4)  # so that there are several parts
    arrays = write_npz("mine.npz", size, channels=channels)
    np.savez("mine.npz", **{key: np.asarray(x, order=order) for key, x in arrays.items()})
    for split in own_images.SPLITS:
        images, labels = load("mine.npz", split)
        factor = size // 28
        means = arrays[f"{split}_images"].reshape(10, 28, factor, 28, factor, -1).mean(axis=(2, 4))
        assert np.abs(images.reshape(means.shape) - means).max() <= (0 if factor == 1 else 1)
        assert np.array_equal(labels, arrays[f"{split}_labels"])
    assert names("mine.npz") == ["0", "1"]


def test_an_npz_of_64_pixels_with_names_and_several_findings():
    write_npz("mine_64.npz", 64, columns=2, label_names=np.array(["mass", "effusion"]))
    images, labels = load("./mine_64.npz")
    assert images.shape == (10, 28, 28) and labels.shape == (10, 2)
    info = dataset.find_info(DataFile(dataset.check_name("mine_64.npz")))
    assert label_names(info) == ["mass", "effusion"] and is_multilabel(info)
    assert Path("data/mine_64_28.npz").exists()


def test_the_file_in_data_dir_can_be_named_itself():
    save("scans/NORMAL/a.png")
    wanted = load()[0]
    shutil.rmtree("scans")
    before = Path("data/scans_28.npz").read_bytes()
    assert dataset.check_name("data/scans_28.npz") == "scans"
    assert np.array_equal(load("data/scans_28.npz")[0], wanted)
    assert names("data/scans_28.npz") == ["NORMAL"]
    assert Path("data/scans_28.npz").read_bytes() == before
    assert "DATA_DIR/scans_28.npz, can be DATASET" in refusal(load, "./scans")


ODD_FILES = {
    "too small": ({"size": 27}, "27x27 pixels, fewer than 28"),
    "of floats": ({"train_images": np.zeros((10, 28, 28))}, "train_images of type float64"),
    "not square": ({"val_images": np.zeros((10, 28, 30), np.uint8)}, "val_images of shape (10,"),
    "labels of text": ({"test_labels": np.array(["a"] * 10)}, "test_labels of type <U1"),
    "too few labels": ({"test_labels": np.zeros(9, int)}, "10 test_images but 9 test_labels"),
    "no training images": (
        {"train_images": np.zeros((0, 28, 28), np.uint8), "train_labels": np.zeros((0, 1), int)},
        "mine.npz has no train_images",
    ),
    "an empty row of numbers": (
        {"val_images": np.zeros(0, np.uint8)},
        "val_images of shape (0,)",
    ),
    "colour in one split": (
        {"test_images": np.zeros((10, 28, 28, 3), np.uint8)},
        "mine.npz has test_images or test_labels of another layout than in train",
    ),
    "more columns in one split": (
        {"val_labels": np.zeros((10, 2), int)},
        "mine.npz has val_images or val_labels of another layout than in train",
    ),
    "too few names": ({"label_names": np.array(["a"])}, "1 label_names for 2 labels"),
    "names of numbers": ({"label_names": np.arange(2)}, "label_names is of type int64"),
    "names of objects": ({"label_names": np.array(["a", 1], object)}, "cannot be read"),
}


@pytest.mark.parametrize(("changes", "words"), ODD_FILES.values(), ids=ODD_FILES)
def test_an_npz_of_another_kind_is_refused(changes, words):
    write_npz("mine.npz", **{"size": 28} | changes)
    assert words in refusal(load, "mine.npz") and not Path("data/mine_28.npz").exists()


@pytest.mark.parametrize("given", [["a", "a"], ["a", ""]])
def test_a_label_needs_a_name_of_its_own(given):
    write_npz("mine.npz", 28, label_names=np.array(given))
    message = refusal(load, "mine.npz")
    assert "mine.npz has label_names that are empty or there twice" in message
    Path("data").mkdir(exist_ok=True)
    shutil.move("mine.npz", "data/mine_28.npz")  # it is used as it is
    load("data/mine_28.npz")
    message = refusal(names, "data/mine_28.npz")
    assert "mine_28.npz has label_names that are empty or there twice" in message


def test_a_name_cannot_be_an_escape_code_and_numbers_are_no_names_beyond_a_byte():
    write_npz("mine.npz", 28, label_names=np.array(["a\x9b31m", "\ud800"]))
    load("mine.npz")
    assert names("mine.npz") == ["a\\x9b31m", "\\ud800"]
    write_npz("many.npz", 28, train_labels=np.full((10, 1), 10**9))
    load("many.npz")
    assert len(names("many.npz")) == 256


def test_a_file_that_is_no_npz_is_refused():
    save("a.png")
    assert "cannot be read as an .npz file" in refusal(load, "./a.png")


# DICOM


@pytest.fixture
def shipped():
    """Where pydicom keeps the files it is tested with."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    return Path(pydicom.__file__).parent / "data" / "test_files"


def test_pydicoms_own_files_are_read(shipped):
    def read(name):
        return image_file.read_image(shipped / name, 28)

    ct, own_range = read("CT_small.dcm")  # 16 bits and no window
    assert own_range and ct.shape == (28, 28)
    window, own_range = read("J2K_pixelrep_mismatch.dcm")  # soft tissue: air is black, bone white
    assert not own_range and (window == 0).mean() > 0.2 and window.max() == 255
    plain, packed, big_endian = (
        read(f"MR_small{kind}.dcm")[0] for kind in ("", "_RLE", "_bigendian")
    )
    assert np.array_equal(plain, packed) and np.array_equal(plain, big_endian)
    assert read("image_dfl.dcm")[0].shape == (28, 28)  # deflated
    for name in ("examples_palette.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_16bit_2frame.dcm"):
        assert read(name)[0].shape == (28, 28, 3)  # the second and third have several frames


def test_rescale_window_and_monochrome1_are_obeyed(shipped):
    import pydicom

    header = pydicom.dcmread(shipped / "CT_small.dcm")
    values = header.pixel_array.astype(float) * float(header.RescaleSlope)
    values += float(header.RescaleIntercept)
    header.WindowCenter, header.WindowWidth = [50, 9], [401, 9]  # the first counts
    Path("scans").mkdir()
    header.save_as("scans/a.dcm")
    seen = image_file.read_image(Path("scans/a.dcm"), 28)[0].astype(int)
    wanted = ((values - (50 - 0.5)) / (401 - 1) + 0.5).clip(0, 1) * 255  # DICOM PS3.3 C.11.2.1.2
    wanted = np.asarray(Image.fromarray(wanted.astype(np.float32)).resize((28, 28), 4))
    assert np.abs(seen - wanted).max() <= 1 and np.ptp(seen) > 100
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as("scans/a.dcm")
    inverted = image_file.read_image(Path("scans/a.dcm"), 28)[0]
    assert np.abs(255 - seen - inverted).max() <= 1


def test_a_window_without_width_is_none(shipped):
    import pydicom

    header = pydicom.dcmread(shipped / "CT_small.dcm")
    header.WindowCenter, header.WindowWidth = 50, 0
    Path("scans").mkdir()
    header.save_as("scans/a.dcm")
    pixels, own_range = image_file.read_image(Path("scans/a.dcm"), 28)
    assert own_range and np.ptp(pixels) > 100


def test_a_voi_lut_is_obeyed(shipped):
    import pydicom

    header = pydicom.dcmread(shipped / "CT_small.dcm")
    values = header.pixel_array.astype(float)
    del header.RescaleSlope, header.RescaleIntercept
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])  # entries, first value, bits
    table.add_new("LUTData", "US", list(range(4095, -1, -1)))
    header.VOILUTSequence = [table]
    header.WindowCenter, header.WindowWidth = 50, 400  # what a LUT goes before
    Path("scans").mkdir()
    header.save_as("scans/a.dcm")
    table.LUTDescriptor = [4096, 0, 8]
    table.LUTData = [value // 16 for value in table.LUTData]
    header.save_as("scans/8_bits.dcm")
    wanted = Image.fromarray(((4095 - values) * 255 / 4095).astype(np.float32)).resize((28, 28), 4)
    for path in Path("scans").iterdir():
        seen, own_range = image_file.read_image(path, 28)
        assert not own_range and np.abs(seen - np.asarray(wanted)).max() <= 1


def test_a_folder_of_dicom_says_what_cannot_be_read(shipped, capsys):
    Path("scans").mkdir()
    for name in ("CT_small.dcm", "rtplan.dcm", "MR_truncated.dcm", "JPEGLSNearLossless_08.dcm"):
        shutil.copy(shipped / name, "scans")
    assert len(load()[0]) == 1
    told = capsys.readouterr().out
    assert "3 of 4 images cannot be used" in told and "pip install pylibjpeg" in told
    assert "1 images that are not of 8 bits" in told


def test_pydicom_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    save("scans/a.png")
    Path("scans/b.dcm").write_bytes(b"")
    message = refusal(load)
    assert "b.dcm is a DICOM file" in message and 'pip install "pydicom>=3"' in message


# From a folder to the page and the export


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a conditional run of one epoch on chest_xray, resumed for a second."""
    folder = tmp_path_factory.mktemp("own")
    with contextlib.chdir(folder), networks(**NARROW):
        write_chests()
        arguments = ["--CONDITIONAL=True", "--METRIC_IMAGES=40", "--BATCH_SIZE=32"]
        assert (
            run_script("train_model.py", "--DATASET=chest_xray", *arguments, "--EPOCHS=1")[0] == 0
        )
        before = Path("data/chest_xray_28.npz").read_bytes()
        path = f"--DATASET={folder}/chest_xray/"
        assert run_script("train_model.py", path, *arguments, "--EPOCHS=2")[0] == 0
        assert Path("data/chest_xray_28.npz").read_bytes() == before
        shutil.rmtree("chest_xray")  # from here on, what is needed is in models/ and data/
    return folder


@pytest.fixture
def own(trained, tmp_path):
    """The same, to be changed: links to its files in the working folder."""
    for name in ("models", "data"):
        shutil.copytree(trained / name, name, copy_function=os.link)


CHECKPOINT = Path("models/chest_xray/checkpoint.pt")


def test_the_checkpoint_knows_the_labels_and_no_path(own, trained):
    saved = checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)
    assert saved["settings"]["DATASET"] == "chest_xray" and saved["epoch"] == 2
    assert label_names(saved["info"]) == ["NORMAL", "PNEUMONIA"]
    assert str(trained).encode() not in CHECKPOINT.read_bytes()


def test_a_run_resumes_from_the_file_of_its_images(own, run):
    arguments = ["--CONDITIONAL=True", "--METRIC_IMAGES=40", "--BATCH_SIZE=32", "--EPOCHS=3"]
    result = run("train_model.py", "--DATASET=data/chest_xray_28.npz", *arguments)
    assert result.status == 0 and "chest_xray, from epoch 3" in result.text
    assert "labels     NORMAL, PNEUMONIA" in result.text


def test_a_report_names_the_labels_and_your_own_images(own, run):
    before = Path("data/chest_xray_28.npz").read_bytes()
    assert run("generate_report.py", *SHORT).status == 0
    page = Path("images/chest_xray/report.html").read_text(encoding="utf-8")
    assert "Reel vs Real: chest_xray" in page and "chest_xray_28.npz, your own images" in page
    assert "PNEUMONIA" in page and "MedMNIST" not in page and "phantom" not in page
    assert Path("data/chest_xray_28.npz").read_bytes() == before


def test_a_report_without_the_file_says_so_and_reads_no_folder(own, run):
    shutil.rmtree("data")
    write_chests(train=1, others=1)  # they are there, but a report only reads data
    for script in (["generate_report.py"], ["generate_images.py", "--VAL_AND_TEST=real"]):
        result = run(*script)
        assert result.status == 1 and "data/chest_xray_28.npz does not exist" in result.text
        assert "The run was trained on chest_xray, your own images" in result.text
        assert not Path("data").exists() and not Path("images").exists()


def test_an_export_draws_a_label_by_its_name(own, run):
    shutil.rmtree("data")
    result = run("generate_images.py", "--LABELS=PNEUMONIA", "--N_IMAGES=10", "--OUT=few")
    assert result.status == 0 and 'numpy.load("few/chest_xray_28.npz")' in result.text
    with np.load("few/chest_xray_28.npz") as file:
        assert file["train_images"].shape == (10, 28, 28) and (file["train_labels"] == 1).all()
    about = Path("few/ABOUT.txt").read_text()
    assert "your own images" in about and "drawn by a program" not in about
    result = run("generate_images.py", "--LABELS=EDEMA", "--OUT=none")
    assert result.status == 1 and '"NORMAL", "PNEUMONIA"' in result.text
    result = run("generate_images.py", "--OUT=all", "--FORMAT=png")
    assert result.status == 0 and "images     140 to all" in result.text
    assert Path("all/labels.csv").read_text().startswith("file,NORMAL,PNEUMONIA\n")


def test_an_export_finds_a_label_in_any_case_and_unicode_form(own, run):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["info"]["label"] = {"0": unicodedata.normalize("NFC", "Ödem"), "1": "x+y"}
    rewrite(CHECKPOINT, content)
    for number, label in enumerate([unicodedata.normalize("NFD", "ödem"), " ÖDEM", "X+Y"]):
        result = run("generate_images.py", f"--LABELS={label}", "--N_IMAGES=2", f"--OUT=o{number}")
        assert result.status == 0 and "exactly as in 70 training images" in result.text


def test_an_export_copies_the_real_splits(own, run):
    assert run("generate_images.py", "--VAL_AND_TEST=real", "--OUT=out").status == 0
    with np.load("out/chest_xray_28.npz") as new, np.load("data/chest_xray_28.npz") as old:
        assert np.array_equal(new["test_images"], old["test_images"])
        assert np.array_equal(new["val_labels"], old["val_labels"])


def test_an_export_copies_no_real_images_of_a_file_that_has_changed(own, run):
    with np.load("data/chest_xray_28.npz") as file:
        arrays = dict(file)
    arrays["test_images"], arrays["train_images"] = arrays["train_images"], arrays["test_images"]
    arrays["test_labels"], arrays["train_labels"] = arrays["train_labels"], arrays["test_labels"]
    Path("data/chest_xray_28.npz").unlink()
    np.savez("data/chest_xray_28.npz", **arrays)
    result = run("generate_images.py", "--VAL_AND_TEST=real", "--OUT=out")
    assert result.status == 1 and "not the images that the run was trained on" in result.text
    assert not Path("out").exists()


def test_a_single_image_is_too_few(run):
    save("scans/train/a/0.png")
    result = run("train_model.py", "--DATASET=scans")
    assert result.status == 1 and "leaves 1 image of data/scans_28.npz" in result.text


def test_a_run_whose_images_have_changed_is_not_resumed(own, run):
    write_chests(train=71)
    shutil.rmtree("data")
    result = run(
        "train_model.py",
        "--DATASET=chest_xray",
        "--CONDITIONAL=True",
        "--EPOCHS=3",
        "--METRIC_IMAGES=40",
        "--BATCH_SIZE=32",
    )
    assert result.status == 1 and "Put the old images back" in result.text


ODD = {
    "a path": (("settings", "DATASET"), "../chest_xray", "settings DATASET"),
    "an absolute path": (("settings", "DATASET"), "/tmp/chest_xray", "settings DATASET"),
    "another name": (("settings", "DATASET"), "other", "settings DATASET"),
    "no labels": (("info",), None, "info is None"),
    "a title of escape codes": (("info", "python_class"), "\x1b[31m", "info python_class"),
    "a label of escape codes": (("info", "label", "0"), "\x1b[31m", "info label 0"),
    "a label of C1 codes": (("info", "label", "0"), "\x9b31m", "info label 0"),
    "a label that is no text": (("info", "label", "0"), torch.ones(2), "info label 0"),
    "an endless label": (("info", "label", "0"), "a" * 10**6, "info label 0"),
    "a label twice": (("info", "label", "0"), "PNEUMONIA", "info label"),
    "a label more": (("info", "label", "2"), "EDEMA", "label_counts rows"),
    "endless images": (("info", "n_samples", "train"), 2**60, "info n_samples train"),
}


@pytest.mark.parametrize(("place", "value", "words"), ODD.values(), ids=ODD)
def test_an_odd_name_in_a_checkpoint_is_refused(own, place, value, words):
    content = torch.load(CHECKPOINT, weights_only=True)
    *parents, last = place
    table = content
    for parent in parents:
        table = table[parent]
    table[last] = value
    rewrite(CHECKPOINT, content)
    message = refusal(checkpoint.load, CHECKPOINT, checkpoint.CHECKPOINT)
    assert words in message and len(message) < 600


def test_label_names_of_letters_that_pictures_could_trip_over(own, run):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["info"]["label"] = {"0": "<b>$\\frac$", "1": "a+b"}
    rewrite(CHECKPOINT, content)
    result = run("generate_report.py", *SHORT)
    assert result.status == 0, result.text
    page = Path("images/chest_xray/report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;$\\frac$" in page and "<b>$" not in page
    result = run("generate_images.py", "--LABELS=a+b", "--N_IMAGES=5", "--OUT=few")
    assert result.status == 0 and "labels     a+b, exactly as in 70" in result.text


def test_labels_of_letters_that_no_font_has_are_numbered(own, run, monkeypatch):
    known = [font for font in plotting.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(plotting.fontManager, "ttflist", known)
    content = torch.load(CHECKPOINT, weights_only=True)
    content["info"]["label"] = {"0": "正常", "1": "صدر"}
    rewrite(CHECKPOINT, content)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        result = run("generate_report.py", *SHORT)
    assert result.status == 0, result.text
    page = Path("images/chest_xray/report.html").read_text(encoding="utf-8")
    assert "label 1: <b>正常</b>" in page and "label 2: <b>صدر</b>" in page


def test_a_run_on_medmnist_takes_its_names_from_medmnist(train):
    train("--EPOCHS=1")
    path = Path("models/phantom/checkpoint.pt")
    content = torch.load(path, weights_only=True)
    content["info"]["label"]["0"] = "something else"
    rewrite(path, content)
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    assert label_names(saved["info"]) == label_names(dataset.INFO["phantom"])
