"""Bad input: one clear message and status 1, nothing written, nothing lost, no code run."""

import ast
import copy
import io
import os
import pickle
import re
import runpy
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, rewrite

from common import errors, settings
from common.data import dataset, download, npz_file, phantom

CHECKPOINT = Path("models/phantom/checkpoint.pt")
SNAPSHOT = Path("models/phantom/generator_epoch_0001.pt")
NOISE = np.random.default_rng(0)


class Trap:
    """Unpickling this makes a folder: the sign that code from a file was run."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


def contents():
    """The bytes of every file below the working folder, but for the locks of runs."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in files}


@pytest.fixture
def refused(run):
    """Run a script that must refuse its input, and return the message."""

    def run_refused(script, *arguments):
        before = contents()
        result = run(script, *arguments)
        assert result.status == 1
        assert "Traceback" not in result.text
        assert len(re.findall("^error: ", result.text, re.MULTILINE)) == 1
        message = result.text[re.search("^error: ", result.text, re.MULTILINE).start() :]
        assert message.isprintable() or "\n  by hand: " in message  # no escape codes; one line
        after = contents()
        assert after.keys() == before.keys()
        assert all(after[path] == before[path] for path in before)
        assert not Path("trap").exists()
        return message

    return run_refused


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """A working folder, and a closed port in the place of MedMNIST's server."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/breastmnist.npz"
    monkeypatch.setitem(dataset.INFO["breastmnist"], "url", url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)


@pytest.fixture
def trained(train):
    """The arguments of a run of one epoch that stands in models/."""
    return train("--EPOCHS=1")


def test_the_trap_of_these_tests_works():
    pickle.loads(pickle.dumps(Trap()))
    assert Path("trap").exists()


# Data sets


def npz(**changes):
    """The bytes of a small data set in MedMNIST's layout, with some arrays changed."""
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = NOISE.integers(0, 256, (8, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.zeros((8, 1), np.uint8)
    memory = io.BytesIO()
    np.savez(memory, **(arrays | changes))
    return memory.getvalue()


def npy(array):
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


def images(*shape):
    return {"train_images": np.zeros(shape, np.uint8)}


def with_a_damaged_byte(whole):
    middle = len(whole) // 8
    return whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]


BAD_DATA = {
    "truncated": (npz()[:5000], "cannot be read"),
    "empty": (b"", "cannot be read"),
    "random bytes": (NOISE.bytes(5000), "cannot be read"),
    "one damaged byte": (with_a_damaged_byte(npz()), "CRC"),
    "a web page": (b"<!doctype html><title>Too many requests</title>", "cannot be read"),
    "a plain npy": (npy(np.zeros((8, 28, 28), np.uint8)), "npz"),
    "a pickle alone": (pickle.dumps(Trap()), "cannot be read"),
    "objects as images": (npz(train_images=np.array([Trap()] * 8)), "cannot be read"),
    "objects as labels": (npz(train_labels=np.array([Trap()] * 8)), "cannot be read"),
    "float images": (npz(train_images=np.zeros((8, 28, 28))), "float64, not uint8"),
    "32x32 images": (npz(**images(8, 32, 32)), "(8, 32, 32), not (N, 28, 28)"),
    "four channels": (npz(**images(8, 28, 28, 4)), "(8, 28, 28, 4), not (N, S, S)"),
    "channels first": (npz(**images(8, 3, 28, 28)), "(8, 3, 28, 28), not (N, S, S)"),
    "volumes": (npz(**images(8, 28, 28, 28)), "(8, 28, 28, 28), not (N, S, S)"),
    "a single number": (npz(**images()), "(), not (N, S, S)"),
    "seven labels": (npz(train_labels=np.zeros((7, 1), np.uint8)), "8 train_images but 7"),
    "float labels": (npz(train_labels=np.zeros((8, 1))), "train_labels of type float64"),
    "3-D labels": (npz(train_labels=np.zeros((8, 1, 1), np.uint8)), "train_labels"),
    "no images": (
        npz(**images(0, 28, 28), train_labels=np.zeros((0, 1), np.uint8)),
        "no train_images",
    ),
}


@pytest.mark.parametrize(("content", "cause"), BAD_DATA.values(), ids=BAD_DATA)
def test_a_bad_data_set_is_refused_by_name(refused, content, cause):
    Path("data").mkdir()
    Path("data/breastmnist.npz").write_bytes(content)
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")
    assert cause in message
    assert dataset.INFO["breastmnist"]["url"] in message  # where to find a good one
    assert "unsafely" not in message  # NumPy's advice, which would run the code in the file


def write_zip(**members):
    """Write data/breastmnist.npz from raw bytes, where NumPy would not make such a file."""
    with zipfile.ZipFile("data/breastmnist.npz", "w") as file:
        for key in npz_file.KEYS:
            file.writestr(f"{key}.npy", members.get(key, npy(np.zeros((8, 28, 28), np.uint8))))


def test_text_where_an_array_should_be_is_refused(refused):
    Path("data").mkdir()
    write_zip(train_images=b"see the other archive")
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")


def test_an_array_that_claims_to_be_larger_than_any_memory_is_refused(refused):
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (10**14, 28, 28)}
    np.lib.format.write_array_header_1_0(header, claim)
    Path("data").mkdir()
    write_zip(train_images=header.getvalue())
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")


@pytest.mark.parametrize(
    ("offset", "value"), [((6, 8), 1), ((8, 10), 99)], ids=["encrypted", "unknown compression"]
)
def test_a_zip_that_python_cannot_unpack_is_refused(refused, offset, value):
    content = bytearray(npz())
    content[offset[0]] = value  # in the header of the first member
    content[content.index(b"PK\x01\x02") + offset[1]] = value  # and again in the zip's directory
    Path("data").mkdir()
    Path("data/breastmnist.npz").write_bytes(content)
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")


def test_a_data_set_of_other_keys_is_refused_with_the_missing_ones(refused):
    Path("data").mkdir()
    np.savez("data/breastmnist.npz", images=np.zeros((8, 28, 28), np.uint8))
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")
    assert all(key in message for key in npz_file.KEYS)


def test_a_missing_data_set_that_cannot_be_downloaded_is_refused(refused):
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert "data/breastmnist.npz" in message and "--DATASET=phantom" in message


def test_a_folder_in_the_place_of_a_data_set_is_refused(refused):
    Path("data/breastmnist.npz").mkdir(parents=True)
    message = refused("train_model.py", "--DATASET=breastmnist")
    assert message.startswith("error: data/breastmnist.npz ")


def test_a_bad_phantom_file_is_refused_and_moving_it_away_is_the_remedy(refused):
    Path("data").mkdir()
    Path("data/phantom.npz").write_bytes(b"")
    message = refused("train_model.py", "--DATASET=phantom")
    assert message.startswith("error: data/phantom.npz ") and "Move it away" in message


def test_the_report_refuses_a_bad_data_set_too(refused, trained):
    Path("data").mkdir()
    Path("data/phantom.npz").write_bytes(npz()[:5000])
    message = refused("generate_report.py", "--DATA_DIR=data")
    assert message.startswith("error: data/phantom.npz ")


# Checkpoints


def legacy_trap():
    memory = io.BytesIO()
    torch.save({"settings": Trap()}, memory, _use_new_zipfile_serialization=False)
    return memory.getvalue()


def without(*keys):
    return lambda real: {key: value for key, value in real.items() if key not in keys}


def other_layers(real):
    """As if the first layer had had another size when this was saved."""
    for part in ("generator", "generator_ema"):
        real[part]["project.weight"] = torch.zeros(3, 3)
    return real


def other_optimizer(real):
    """Moments larger than the weights: smaller ones would be read past their end, and crash."""
    moments = real["optimizer_g"]["state"][0]
    moments["exp_avg"] = torch.zeros(7000, 200)
    return real


def odd_labels(rows, counts):
    return {"rows": torch.zeros(rows, 2, dtype=torch.uint8), "counts": torch.ones(counts)}


def odd_sizes(**arguments):
    return {"generator": arguments, "discriminator": arguments}


BAD_CHECKPOINTS = {
    "truncated": lambda real: CHECKPOINT.read_bytes()[:100_000],
    "empty": lambda real: b"",
    "random bytes": lambda real: NOISE.bytes(5000),
    "a pickle with code": lambda real: pickle.dumps(Trap()),
    "code beside tensors": lambda real: real | {"settings": Trap()},
    "code in the old format": lambda real: legacy_trap(),
    "an object beside tensors": lambda real: real | {"comment": Path("notes.txt")},
    "an empty dict": lambda real: {},
    "a list": lambda real: [1, 2],
    "a tensor": lambda real: torch.zeros(3),
    "other layers": other_layers,
    "numbers for layers": lambda real: real | {"generator": 1, "generator_ema": 1},
    "empty settings": lambda real: real | {"settings": {}},
    "a list for settings": lambda real: real | {"settings": []},
    "without settings": without("settings"),
    "without a generator": without("generator", "generator_ema"),
    "without channels": without("channels"),
    "without an epoch": without("epoch"),
    "without the images seen": without("images_seen"),
    "words for labels": lambda real: real | {"label_counts": {"rows": "a", "counts": "b"}},
    "more labels than counts": lambda real: real | {"label_counts": odd_labels(3, 2)},
    "labels of no image": lambda real: real | {"label_counts": odd_labels(0, 0)},
    "without fixed latents": without("fixed_latents"),
    "no sizes of networks": lambda real: real | {"model_args": {}},
    "odd sizes of networks": lambda real: real | {"model_args": odd_sizes(widths=3)},
    "sizes of another program": lambda real: real | {"model_args": odd_sizes(attention=True)},
    "without a history": without("history"),
    "a history of words": lambda real: real | {"history": ["an epoch"]},
}
BAD_FOR_TRAINING = {
    "without a discriminator": without("discriminator"),
    "without an optimizer": without("optimizer_d"),
    "without a checksum of the data": without("data_sha256"),
    "without a permutation": without("permutation"),
    "without running sums": without("running_sums"),
    "without a recipe": without("recipe"),
    "without a random state": without("rng_cpu"),
    "other optimizer": other_optimizer,
    "a short permutation": lambda real: real | {"permutation": torch.arange(10)},
    "a foreign random state": lambda real: real | {"rng_cpu": torch.zeros(3)},
}
BAD_FOR_BOTH = BAD_CHECKPOINTS | BAD_FOR_TRAINING


@pytest.mark.parametrize("damage", BAD_FOR_BOTH.values(), ids=BAD_FOR_BOTH)
def test_training_does_not_go_on_from_a_bad_checkpoint(refused, trained, damage):
    rewrite(CHECKPOINT, damage(torch.load(CHECKPOINT, weights_only=True)))
    message = refused("train_model.py", *trained, "--EPOCHS=2")
    assert message.startswith(f"error: {CHECKPOINT} ")


@pytest.mark.parametrize(
    "damage", ["truncated", "a pickle with code", "other layers", "odd sizes of networks"]
)
def test_the_report_refuses_a_bad_checkpoint(refused, trained, damage):
    rewrite(CHECKPOINT, BAD_CHECKPOINTS[damage](torch.load(CHECKPOINT, weights_only=True)))
    message = refused("generate_report.py")
    assert message.startswith(f"error: {CHECKPOINT} ")


BAD_SNAPSHOTS = {
    "truncated": lambda real: SNAPSHOT.read_bytes()[:100_000],
    "random bytes": lambda real: NOISE.bytes(5000),
    "a pickle with code": lambda real: pickle.dumps(Trap()),
    "an empty dict": lambda real: {},
    "a tensor": lambda real: torch.zeros(3),
    "other layers": lambda real: other_layers(real | {"generator": {}}),
    "without settings": without("settings"),
    "without a generator": without("generator_ema"),
}
BAD_FOR_EXPORT = BAD_SNAPSHOTS | {
    "labels that the generator has not": lambda real: real | {"label_counts": odd_labels(3, 3)},
}


@pytest.mark.parametrize("damage", BAD_FOR_EXPORT.values(), ids=BAD_FOR_EXPORT)
def test_the_export_refuses_a_bad_generator_of_an_epoch(refused, trained, damage):
    rewrite(SNAPSHOT, damage(torch.load(SNAPSHOT, weights_only=True)))
    message = refused("generate_images.py", "--EPOCH=1", "--N_IMAGES=1")
    assert message.startswith(f"error: {SNAPSHOT} ")


@pytest.mark.parametrize("damage", BAD_SNAPSHOTS.values(), ids=BAD_SNAPSHOTS)
def test_the_report_refuses_a_bad_generator_of_an_epoch(refused, trained, damage):
    rewrite(SNAPSHOT, damage(torch.load(SNAPSHOT, weights_only=True)))
    message = refused("generate_report.py")
    assert message.startswith(f"error: {SNAPSHOT} ")


def test_a_checkpoint_without_a_random_state_of_cuda_is_good_enough(run, trained):
    """The other rows are refused for their damage, then, and not for being saved again."""
    real = torch.load(CHECKPOINT, weights_only=True)
    rewrite(CHECKPOINT, copy.deepcopy(real) | {"rng_cuda": None})
    assert run("train_model.py", *trained, "--EPOCHS=2").status == 0


def test_a_refused_report_leaves_older_pictures_in_their_place(refused, trained):
    Path("images/phantom/epochs").mkdir(parents=True)
    Path("images/phantom/epochs/epoch_0009.png").write_bytes(b"of a former run")
    rewrite(CHECKPOINT, other_layers(torch.load(CHECKPOINT, weights_only=True)))
    refused("generate_report.py")


def test_a_report_on_a_run_that_does_not_exist_is_refused(refused, trained):
    message = refused("generate_report.py", "--RUN_NAME=nosuch")
    assert "models/nosuch" in message and "python train_model.py" in message


def test_a_report_without_any_run_is_refused(refused):
    message = refused("generate_report.py")
    assert message.startswith("error: models ") and "train_model.py" in message


def test_a_run_folder_without_a_checkpoint_is_not_trained_over(refused, small):
    Path("models/phantom").mkdir(parents=True)
    Path("models/phantom/notes.txt").write_text("mine")
    message = refused("train_model.py", *small, "--EPOCHS=1")
    assert message.startswith("error: models/phantom ") and "--RESUME=never" in message


def test_a_run_is_not_continued_with_other_images(refused, trained):
    """The same data set, but another file of it: the epochs would not be passes over one set."""
    Path("data").mkdir()
    arrays = {}
    for split, n in (("train", 10_000), ("val", 1), ("test", 1)):
        arrays[f"{split}_images"] = np.zeros((n, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((n, 2), np.uint8)
    np.savez("data/phantom.npz", **arrays)
    message = refused("train_model.py", *trained, "--DATA_DIR=data", "--EPOCHS=2")
    assert message.startswith("error: data/phantom.npz ")


# Folders


@pytest.mark.parametrize("path", ["models", "models/phantom"])
def test_training_refuses_a_file_in_the_place_of_a_folder_for_its_run(refused, small, path):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("not a folder")
    assert path in refused("train_model.py", *small, "--EPOCHS=1")


@pytest.mark.parametrize("name", ["breastmnist", "phantom"])
def test_training_refuses_a_file_in_the_place_of_the_data_folder(refused, monkeypatch, name):
    monkeypatch.setattr(phantom, "SPLITS", {"train": 2, "val": 1, "test": 1})  # quickly drawn
    Path("data").write_text("not a folder")
    assert "data" in refused("train_model.py", f"--DATASET={name}", "--EPOCHS=1")


@pytest.mark.parametrize("path", ["images", "images/phantom"])
def test_the_report_refuses_a_file_in_the_place_of_a_folder_for_pictures(refused, trained, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("not a folder")
    assert path in refused("generate_report.py")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["models", "data", "images"])
def test_a_folder_that_is_not_writable_is_named(refused, trained, monkeypatch, name):
    monkeypatch.setattr(phantom, "SPLITS", {"train": 2, "val": 1, "test": 1})
    Path(name).mkdir(exist_ok=True)
    os.chmod(name, 0o500)
    if name == "images":
        message = refused("generate_report.py")
    else:
        message = refused("train_model.py", "--DATASET=phantom", "--RUN_NAME=new", "--EPOCHS=1")
    os.chmod(name, 0o700)
    assert name in message and "ermission" in message


# Settings

WRONG_SETTINGS = [  # script, argument, what the message says of the legal values
    ("train_model.py", "--EPOCHS=0", "a whole number from 1 to 100000"),
    ("train_model.py", "--EPOCHS=2.5", "a whole number from 1 to 100000"),
    ("train_model.py", "--EPOCHS=", "a whole number from 1 to 100000"),
    ("train_model.py", "--EPOCHS=True", "a whole number from 1 to 100000"),
    ("train_model.py", "--BATCH_SIZE=0", "a whole number from 2 to 65536"),
    ("train_model.py", "--BATCH_SIZE=1", "a whole number from 2 to 65536"),
    ("train_model.py", "--LEARNING_RATE=abc", "a number from 1e-08 to 1.0"),
    ("train_model.py", "--LEARNING_RATE=nan", "a number from 1e-08 to 1.0"),
    ("train_model.py", "--LEARNING_RATE=-1", "a number from 1e-08 to 1.0"),
    ("train_model.py", "--LEARNING_RATE=inf", "a number from 1e-08 to 1.0"),
    ("train_model.py", "--LEARNING_RATE=0", "a number from 1e-08 to 1.0"),
    ("train_model.py", "--TRAIN_FRACTION=1.01", "a number from 0.0001 to 1.0"),
    ("train_model.py", "--SEED=-1", "a whole number from 0 to 2147483647"),
    ("train_model.py", "--DEVICE=tpu", '"auto", "cpu", "cuda"'),
    ("train_model.py", "--DTYPE=float16", '"auto", "float32", "bfloat16"'),
    ("train_model.py", "--RESUME=yes", '"auto", "never"'),
    ("train_model.py", "--RUN_NAME=a/b", "letters, digits"),
    ("train_model.py", "--RUN_NAME=..", "letters, digits"),
    ("train_model.py", "--RUN_NAME=../models", "letters, digits"),
    ("train_model.py", "--RUN_NAME=my run", "letters, digits"),
    ("generate_report.py", "--N_SYNTHETIC=0", "a whole number from 1 to 100000"),
    ("generate_report.py", "--N_SYNTHETIC=many", "a whole number from 1 to 100000"),
    ("generate_report.py", "--GRID_ROWS=9", "a whole number from 1 to 8"),
    ("generate_report.py", "--FRAME_MS=0", "a whole number from 20 to 60000"),
    ("generate_report.py", "--RUN_NAME=a/b", "letters, digits"),
    ("generate_report.py", "--RUN_NAME=..", "letters, digits"),
    ("generate_images.py", "--N_IMAGES=-1", "a whole number from 0 to 10000000"),
    ("generate_images.py", "--FORMAT=jpg", '"npz", "png"'),
    ("generate_images.py", "--RUN_NAME=..", "letters, digits"),
    ("train_model.py", "--CONDITIONAL=yes", "True, False"),
]


@pytest.mark.parametrize(("script", "argument", "legal"), WRONG_SETTINGS)
def test_a_wrong_value_is_refused_with_the_legal_ones(refused, script, argument, legal):
    message = refused(script, argument)
    assert message.startswith(f"error: {argument.removeprefix('--')}: legal")
    assert legal in message


@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py"])
def test_a_run_name_too_long_for_the_file_system_is_refused(refused, script):
    Path("models").mkdir()
    assert "models" in refused(script, f"--RUN_NAME={'x' * 300}")


@pytest.mark.parametrize(
    ("script", "words", "advice"),
    [
        ("train_model.py", ["--EPOCHSS=5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["--epochs=5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["--epochs", "5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["--EPOCH=5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["-EPOCHS=5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["EPOCHS=5"], "did you mean --EPOCHS?"),
        ("train_model.py", ["--batch-size=8"], "did you mean --BATCH_SIZE?"),
        ("train_model.py", ["--xyz=1"], "--help"),
        ("train_model.py", ["now"], "--help"),
        ("train_model.py", ["--EPOCHSS=5", "--EPOCHS=5"], "did you mean --EPOCHS?"),
        ("generate_report.py", ["--RUNNAME=a"], "did you mean --RUN_NAME?"),
        ("generate_report.py", ["phantom"], "--help"),
    ],
)
def test_a_word_that_is_no_setting_is_refused_with_the_nearest_one(refused, script, words, advice):
    message = refused(script, *words)
    assert message.startswith(f"error: {words[0]}: ") and advice in message


def test_a_setting_without_a_value_is_refused(refused):
    assert "EPOCHS" in refused("train_model.py", "--EPOCHS")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pneumonia", "did you mean pneumoniamnist?"),
        ("ChestMNIST", "did you mean chestmnist?"),
        ("organmnist3d", "Known are"),
        ("../data", "Known are"),
        ("", "Known are"),
    ],
)
def test_an_unknown_data_set_is_refused_with_the_known_ones(refused, name, advice):
    message = refused("train_model.py", f"--DATASET={name}")
    assert message.startswith(f"error: DATASET={name}: ") and advice in message
    assert "pathmnist, chestmnist" in message and "phantom" in message
    assert "3d" not in message.removeprefix(f"error: DATASET={name}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_cuda_where_there_is_none_is_refused(refused, small):
    message = refused("train_model.py", *small, "--DEVICE=cuda")
    assert message.startswith("error: DEVICE=cuda: ") and '"cpu" and "auto"' in message


def test_a_batch_larger_than_the_data_set_is_refused_with_the_largest_legal_one(refused, small):
    message = refused("train_model.py", *small, "--BATCH_SIZE=201")
    assert message.startswith("error: BATCH_SIZE=201: ") and "at most 200" in message


def test_a_batch_as_large_as_the_data_set_is_legal(run, small):
    assert run("train_model.py", *small, "--BATCH_SIZE=200", "--EPOCHS=1").status == 0


def test_a_fraction_that_leaves_one_image_is_refused_by_name(refused, small):
    message = refused("train_model.py", *small, "--TRAIN_FRACTION=0.0001")
    assert "TRAIN_FRACTION=0.0001 leaves" in message


def test_a_refused_start_over_keeps_the_old_run_in_its_place(refused, trained):
    refused("train_model.py", *trained, "--RESUME=never", "--BATCH_SIZE=201")


def test_other_settings_than_those_of_the_run_are_refused(refused, trained):
    message = refused("train_model.py", *trained, "--EPOCHS=2", "--BATCH_SIZE=32")
    assert message.startswith("error: models/phantom ")
    assert "BATCH_SIZE was 64 and is now 32" in message


@pytest.mark.parametrize(
    ("script", "line", "edited", "wrong"),
    [
        ("train_model.py", "EPOCHS = 50", "EPOCHS = 0", "EPOCHS=0"),
        ("train_model.py", "EPOCHS = 50", "EPOCHS = 2.5", "EPOCHS=2.5"),
        ("train_model.py", "EPOCHS = 50", 'EPOCHS = "5"', "EPOCHS=5"),
        ("train_model.py", "EPOCHS = 50", "EPOCHS = -1", "EPOCHS=-1"),
        ("train_model.py", "EPOCHS = 50", "EPOCHS = 10 * 0", "EPOCHS=0"),
        ("train_model.py", "EPOCHS = 50", "EPOCHS: int = 0", "EPOCHS=0"),
        ("train_model.py", "LEARNING_RATE = 1e-4", "LEARNING_RATE = -1e-4", "LEARNING_RATE="),
        ("train_model.py", 'DEVICE = "auto"', 'DEVICE = "gpu"', "DEVICE=gpu"),
        ("train_model.py", 'RUN_NAME = ""', "RUN_NAME = 2024", "RUN_NAME=2024"),
        ("train_model.py", 'MODELS_DIR = "models"', "MODELS_DIR = None", "MODELS_DIR=None"),
        ("generate_report.py", "N_SYNTHETIC = 1000", "N_SYNTHETIC = 0", "N_SYNTHETIC=0"),
        ("generate_report.py", "SCALE = 6", "SCALE = -3", "SCALE=-3"),
    ],
)
def test_a_wrong_value_in_the_script_itself_is_refused(
    refused, tmp_path, script, line, edited, wrong
):
    source = (REPO / script).read_text()
    assert source.count(f"\n{line}  #") == 1
    source = source.replace(f"\n{line}  #", f"\n{edited}  #")
    # Without data, a value that is not refused leads to another message and not to a long training.
    source = source.replace('DATASET = "chestmnist"', 'DATASET = "breastmnist"')
    (tmp_path / script).write_text(source)
    assert refused(str(tmp_path / script)).startswith(f"error: {wrong}")


SCRIPT = '''"""Draws apples."""

# --- Numbers ---
COUNT = 3  # how many [1 to 9]
SHARE = 0.5  # how much, 100 % at most [0.0 to 1.0]

# --- Words ---
NAME = ""  # any text
MODE = "auto"  # how ["auto", "slow"]
LOUD = False  # print more [True, False]
'''


@pytest.fixture
def script():
    """The globals of a script that has constants."""
    Path("apples.py").write_text(SCRIPT)
    return runpy.run_path("apples.py")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--COUNT=4"], "COUNT", 4),
        (["--COUNT", "4"], "COUNT", 4),
        (["--COUNT=9"], "COUNT", 9),
        (["--COUNT=2", "--COUNT=4"], "COUNT", 4),
        (["--SHARE=1e-3"], "SHARE", 0.001),
        (["--SHARE=1"], "SHARE", 1.0),
        (["--NAME=7"], "NAME", "7"),
        (["--NAME=a=b c"], "NAME", "a=b c"),
        (["--MODE=slow"], "MODE", "slow"),
        (["--LOUD=True"], "LOUD", True),
        ([], "COUNT", 3),
    ],
)
def test_a_setting_on_the_command_line_takes_the_type_of_its_constant(
    script, arguments, name, value
):
    constants = settings.override(script, arguments)
    assert constants[name] == script[name] == value
    assert type(constants[name]) is type(script[name]) is type(value)
    assert list(constants) == ["COUNT", "SHARE", "NAME", "MODE", "LOUD"]


@pytest.mark.parametrize(
    ("argument", "legal"),
    [
        ("--COUNT=10", "a whole number from 1 to 9"),
        ("--COUNT=4.0", "a whole number from 1 to 9"),
        ("--SHARE=1.5", "a number from 0.0 to 1.0"),
        ("--MODE=Slow", '"auto", "slow"'),
        ("--LOUD=1", "True, False"),
        ("--LOUD=yes", "True, False"),
    ],
)
def test_a_value_outside_the_brackets_is_refused(script, argument, legal):
    with pytest.raises(errors.UserError) as refusal:
        settings.override(script, [argument])
    assert str(refusal.value).startswith(f"error: {argument.removeprefix('--')}: legal")
    assert str(refusal.value).endswith(legal)


@pytest.mark.parametrize(
    "script_name", ["train_model.py", "generate_report.py", "generate_images.py"]
)
def test_help_lists_every_constant_with_its_comment_and_default(run, monkeypatch, script_name):
    monkeypatch.setenv("COLUMNS", "1000")  # or argparse breaks the lines
    result = run(script_name, "--help")
    assert result.status == 0
    source = (REPO / script_name).read_text()
    constants = re.findall(r"^([A-Z][A-Z0-9_]+) = (.+?)  # (.+)$", source, re.MULTILINE)
    assert len(constants) > 10
    for name, value, comment in constants:
        if "(" not in value and "," not in value:
            line = rf"--{name} VALUE\s+{re.escape(comment)} \(default: (.+)\)\n"
            assert re.search(line, result.text)[1] == repr(ast.literal_eval(value))
    assert contents() == {}


def test_help_is_shown_even_if_a_constant_is_wrong(run, tmp_path):
    """Help is where the user reads which values are right."""
    override = "from common import settings\nsettings.override(globals())\n"
    (tmp_path / "apples.py").write_text(SCRIPT.replace("COUNT = 3", "COUNT = 0") + override)
    result = run(str(tmp_path / "apples.py"), "--help")
    assert result.status == 0
    assert "how many [1 to 9] (default: 0)" in result.text and "100 % at most" in result.text
