"""Data files: the memory layout never matters, and nothing is computed from bad input."""

import errno
import io
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import dcgan
from common import checkpoint
from common.data import dataset, npz_file
from common.data.labels import encode_labels
from common.errors import UserError

DATA = Path("data/pneumoniamnist.npz")
NAME = ["--DATASET=pneumoniamnist", "--LATENT_DIM=10", "--METRIC_IMAGES=0", "--EPOCHS=1"]
SHORT = ["--BLIND_TEST=False", "--NUMBERS=False", "--DIVERSITY=False", "--LATENT_SPACE=False"]
SHORT += [
    "--DETECTIVE=False",
    "--TRAINING=False",
    "--COLLAGE=False",
    "--FAILURES=False",
    "--N_SYNTHETIC=40",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder, networks of few weights, and no network to the world."""
    monkeypatch.chdir(tmp_path)
    for network, widths in ((dcgan.Generator, (8, 8, 4, 4)), (dcgan.Discriminator, (4, 4, 8))):
        defaults = checkpoint.constructor_args(network) | {"widths": widths}
        monkeypatch.setattr(network.__init__, "__defaults__", tuple(defaults.values()))
    monkeypatch.setattr(dataset.download, "download", lambda *_: pytest.fail("downloads"))


def arrays(n=70, channels=1):
    """A data set in MedMNIST's layout, {name: array}."""
    random, shape = np.random.default_rng(0), (28, 28) if channels == 1 else (28, 28, 3)
    made = {}
    for split in ("train", "val", "test"):
        made[f"{split}_images"] = random.integers(0, 256, (n, *shape), np.uint8)
        made[f"{split}_labels"] = random.integers(0, 2, (n, 1), np.uint8)
    return made


def write(save=np.savez, **members):
    DATA.parent.mkdir(exist_ok=True)
    save(DATA, **members)


def fingerprint(conditional):
    images, labels, _ = dataset.load("pneumoniamnist")
    assert images.is_contiguous() and images.dtype == torch.uint8
    assert labels.is_contiguous() and labels.dtype == torch.int64
    vectors = encode_labels(dataset.INFO["pneumoniamnist"], labels) if conditional else None
    return dataset.sha256(images, vectors)


# The same pixels and labels, laid out otherwise

LAYOUTS = {
    "in Fortran order": np.asfortranarray,
    "as a transpose": lambda x: np.ascontiguousarray(x.T).T,
    "as every second of more": lambda x: np.repeat(x, 2, axis=0)[::2],
    "reversed twice": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
}
LABELS = {
    dtype: lambda x, dtype=dtype: x.astype(dtype)
    for dtype in ("i1", "u1", "bool", "<i2", ">i2", ">u4", "<u8", ">u8", ">i8")
}
LABELS |= {
    "one dimension": lambda x: x[:, 0],
    "one dimension, big-endian": lambda x: x[:, 0].astype(">i4"),
    "Fortran order, big-endian": lambda x: np.asfortranarray(x.astype(">u2")),
}


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_arrays_does_not_change_the_fingerprint(layout, channels, conditional):
    write(**arrays(channels=channels))
    wanted = fingerprint(conditional)
    write(**{key: layout(array) for key, array in arrays(channels=channels).items()})
    assert fingerprint(conditional) == wanted


@pytest.mark.parametrize("layout", LABELS.values(), ids=LABELS)
def test_the_type_of_labels_does_not_change_the_fingerprint(layout):
    write(**arrays())
    wanted = fingerprint(conditional=True)
    write(**{k: layout(x) if "labels" in k else x for k, x in arrays().items()})
    assert fingerprint(conditional=True) == wanted


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_arrays_does_not_change_the_losses(run, channels, conditional):
    losses = []
    for layout in (np.ascontiguousarray, np.asfortranarray):
        write(**{key: layout(array) for key, array in arrays(channels=channels).items()})
        name = f"run-{len(losses)}"
        result = run("train_model.py", *NAME, f"--CONDITIONAL={conditional}", f"--RUN_NAME={name}")
        assert result.status == 0, result.text
        saved = torch.load(f"models/{name}/checkpoint.pt", weights_only=True)
        losses.append([saved["history"][0][key] for key in ("loss", "d_real")])
    assert losses[0] == losses[1]


def test_several_findings_in_fortran_order_are_learned():
    findings = np.random.default_rng(0).integers(0, 2, (70, 14), np.uint8)
    for order in "CF":
        Path("data").mkdir(exist_ok=True)
        labels = {f"{split}_labels": findings.copy(order) for split in ("train", "val", "test")}
        np.savez("data/chestmnist.npz", **(arrays() | labels))
        loaded = dataset.load("chestmnist")[1]
        assert np.array_equal(loaded, findings)
        dataset.sha256(torch.zeros(1), encode_labels(dataset.INFO["chestmnist"], loaded))


# Messages say what is wrong, and are not computed from it


def none(*shape):
    return np.zeros(shape, np.uint8)


WITHOUT_LEARNABLE_LABELS = {
    "no columns": (none(70, 0), "have 0 columns, not 1 of 0 to 1"),
    "two columns": (none(70, 2), "have 2 columns of 0 to 0, not 1"),
    "negative ones": (none(70, 1).astype(np.int8) - 1, "1 columns of -1 to -1, not 1 of 0 to 1"),
    "a class too many": (none(70, 1) + 2, "1 columns of 2 to 2"),
    "the largest number": (np.full((70, 1), 2**63 - 1), "9223372036854775807"),
}
BAD_LABELS = {
    "beyond 63 bits": (np.full((70, 1), 2**64 - 1, np.uint64), "18446744073709551615"),
    "of three dimensions": (none(70, 1, 1), "train_labels"),
    "of no dimension": (none(), "train_labels"),
    "of fractions": (none(70, 1) / 2, "float64"),
    "of text": (np.full((70, 1), "pneumonia"), "train_labels"),
    "of dates": (np.full((70, 1), "2026-01-01", "M8[D]"), "train_labels"),
    "of records": (np.zeros(70, [(f"f{i}", "u1") for i in range(500)]), "train_labels"),
    "of complex numbers": (none(70, 1) * 1j, "complex128"),
    "too few": (none(69, 1), "70 train_images but 69 train_labels"),
    "none at all": (none(0, 1), "70 train_images but 0 train_labels"),
}


@pytest.mark.parametrize(("labels", "words"), WITHOUT_LEARNABLE_LABELS.values())
def test_labels_that_cannot_be_learned_are_refused_in_words(run, labels, words):
    write(**(arrays() | {"train_labels": labels}))
    result = run("train_model.py", *NAME, "--CONDITIONAL=True")
    assert result.status == 1 and "Traceback" not in result.text
    assert "error: the labels of PneumoniaMNIST " in result.text and words in result.text
    assert run("train_model.py", *NAME).status == 0  # without labels they do not matter


@pytest.mark.parametrize(("labels", "words"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels_are_refused_in_one_short_line(labels, words):
    write(**(arrays() | {"train_labels": labels}))
    with pytest.raises(UserError) as refused:
        dataset.load("pneumoniamnist")
    message = str(refused.value)
    assert message.startswith(f"error: {DATA} ") and words in message
    assert message.isprintable() and len(message) < 400


def test_an_export_of_a_plain_run_has_no_labels_to_learn(run):
    write(**arrays())
    assert run("train_model.py", *NAME).status == 0
    assert run("generate_images.py", "--N_IMAGES=70").status == 0
    exported = f"--DATA_DIR={next(Path('images').glob('*/export'))}"
    result = run("train_model.py", *NAME, exported, "--CONDITIONAL=True", "--RUN_NAME=second")
    assert result.status == 1 and "have 0 columns" in result.text
    result = run("train_model.py", *NAME, exported, "--RUN_NAME=third")
    assert result.status == 0
    result = run("generate_report.py", *SHORT, "--RUN_NAME=third")  # val and test are empty there
    assert result.status == 0 and "no test or validation images" in result.text


# Headers first


def with_header(shape, body, dtype="|u1", compression=zipfile.ZIP_DEFLATED):
    """Write a data file whose train_images claim a shape and hold a body of zeros."""
    write(**arrays())
    header = io.BytesIO()
    claim = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    members = {}
    with zipfile.ZipFile(DATA) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(DATA, "w", compression) as new:
        for name, content in members.items():
            if name == "train_images.npy":
                with new.open(name, "w") as file:
                    file.write(header.getvalue())
                    for _ in range(body >> 20):
                        file.write(bytes(1 << 20))
            else:
                new.writestr(name, content)


BOMBS = {
    "of another shape": ((100 << 20, 1), "|u1"),
    "of another type": ((100 << 20,), "|i1"),
    "larger than the file": ((10**14, 28, 28), "|u1"),
    "smaller than what it unpacks to": ((70, 28, 28), "|u1"),
    "of no size": ((10**30, 0, 28), "|u1"),
    "of objects": ((100 << 20,), "|O"),
}


@pytest.mark.parametrize(("shape", "dtype"), BOMBS.values(), ids=BOMBS)
def test_an_array_is_not_unpacked_before_its_header_is_read(shape, dtype):
    with_header(shape, body=100 << 20, dtype=dtype)
    assert DATA.stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(UserError, match=str(DATA)):
        dataset.load("pneumoniamnist")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_well_formed_bomb_is_refused_by_what_it_unpacks_to(monkeypatch):
    monkeypatch.setattr(npz_file, "LARGE", 50 << 20)
    n = (100 << 20) // 784
    with_header((n, 28, 28), body=0)
    with zipfile.ZipFile(DATA, "a", zipfile.ZIP_DEFLATED) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if "train" not in name}
    members["train_images.npy"] = npy(np.zeros((n, 28, 28), np.uint8))
    members["train_labels.npy"] = npy(np.zeros((n, 1), np.uint8))
    with zipfile.ZipFile(DATA, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)
    with pytest.raises(UserError, match="more than a hundred times"):
        dataset.load("pneumoniamnist")


def npy(array):
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


# Trouble that passes, and what is no file


TROUBLE = {
    "no rights": PermissionError(errno.EACCES, "Permission denied"),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "a broken disk": OSError(errno.EIO, "Input/output error"),
    "no memory": MemoryError(),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_that_passes_is_not_called_damage(monkeypatch, trouble):
    write(**arrays())
    real_open = io.open

    def fail(file, *arguments, **named):
        if str(file) == str(DATA):
            raise trouble
        return real_open(file, *arguments, **named)

    monkeypatch.setattr(io, "open", fail)
    with pytest.raises(UserError, match=f"{DATA} cannot be read now: .*may be whole") as refused:
        dataset.load("pneumoniamnist")
    assert "Move it away" not in str(refused.value)


NO_FILES = {
    "a pipe": lambda: os.mkfifo(DATA),
    "a folder": DATA.mkdir,
    "a device": lambda: DATA.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_is_not_waited_for(make):
    DATA.parent.mkdir()
    make()
    with pytest.raises(UserError, match=f"{DATA} is not a file"):
        dataset.load("pneumoniamnist")


# The other splits


@pytest.fixture
def trained(run):
    """A run, and the bytes of its data file."""
    write(**arrays())
    assert run("train_model.py", *NAME).status == 0
    return DATA.read_bytes()


DAMAGED_TEST_IMAGES = {
    "of another size": {"test_images": none(70, 32, 32)},
    "of another type": {"test_images": np.zeros((70, 28, 28))},
    "of colour": {"test_images": none(70, 28, 28, 3)},
    "without their labels": {"test_labels": none(3, 1)},
}


@pytest.mark.parametrize("changes", DAMAGED_TEST_IMAGES.values(), ids=DAMAGED_TEST_IMAGES)
def test_a_report_does_not_quietly_do_without_damaged_test_images(run, trained, changes):
    write(**(arrays() | changes))
    result = run("generate_report.py", *SHORT)
    assert result.status == 1 and f"error: {DATA} has " in result.text
    assert "test_" in result.text and not Path("images").exists()


def test_a_flipped_bit_in_the_test_images_is_no_reason_to_take_others(run, trained):
    place = trained.index(b"test_images.npy") + 10_000
    DATA.write_bytes(trained[:place] + bytes([trained[place] ^ 1]) + trained[place + 1 :])
    result = run("generate_report.py", *SHORT)
    assert result.status == 1 and "CRC" in result.text


def test_a_report_without_test_images_takes_validation_images(run, trained):
    write(**(arrays() | {"test_images": none(0, 28, 28), "test_labels": none(0, 1)}))
    result = run("generate_report.py", *SHORT)
    assert result.status == 0 and "no test or validation images" not in result.text


NOT_TO_BE_COPIED = {
    "labels above 255": ({"val_labels": np.full((70, 1), 300)}, "val_labels from 300 to 300"),
    "negative labels": ({"test_labels": np.full((70, 1), -1)}, "test_labels from -1 to -1"),
    "colour": ({"val_images": none(70, 28, 28, 3)}, "val_images with 3 channels"),
    "no images": ({"val_images": none(0, 28, 28), "val_labels": none(0, 1)}, "no val_images"),
}


@pytest.mark.parametrize(("changes", "words"), NOT_TO_BE_COPIED.values(), ids=NOT_TO_BE_COPIED)
def test_real_images_that_do_not_go_with_the_synthetic_ones_are_not_exported(
    run, trained, changes, words
):
    write(**(arrays() | changes))
    result = run("generate_images.py", "--VAL_AND_TEST=real", "--N_IMAGES=3")
    assert result.status == 1 and words in result.text
    assert not Path("images/pneumoniamnist/export").exists()


def test_a_missing_data_folder_is_not_made_by_a_report(run, trained):
    shutil.rmtree("data")
    result = run("generate_report.py", *SHORT)
    assert result.status == 1 and "--DATA_DIR" in result.text and not Path("data").exists()
