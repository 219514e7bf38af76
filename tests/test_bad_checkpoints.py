"""A checkpoint is checked once, whole, before anything uses it."""

import errno
import hashlib
import io
import os
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import signal_in_step

import dcgan
from common import checkpoint, sampling
from common.data import dataset, phantom
from common.errors import UserError

CHECKPOINT = Path("models/phantom/checkpoint.pt")
SNAPSHOT = Path("models/phantom/generator_epoch_0001.pt")
SHORT = ["--LATENT_DIM=10", "--METRIC_IMAGES=0", "--EPOCHS=3", "--CONDITIONAL=True"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Networks of few weights, so that a checkpoint is written and read in no time."""
    for network, widths in ((dcgan.Generator, (8, 8, 4, 4)), (dcgan.Discriminator, (4, 4, 8))):
        defaults = checkpoint.constructor_args(network) | {"widths": widths}
        monkeypatch.setattr(network.__init__, "__defaults__", tuple(defaults.values()))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for what all these tests share."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def small(tmp_path, monkeypatch, kept):
    """An empty working folder, and the arguments of a run on 200 phantoms: 3 steps per epoch."""
    monkeypatch.chdir(tmp_path)
    if not (kept / "data").exists():
        (kept / "data").mkdir()
        arrays = {}
        for seed, (split, n) in enumerate({"train": 200, "val": 20, "test": 60}.items()):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = phantom.make_split(n, seed)
        np.savez(kept / "data" / "phantom.npz", **arrays)
    return ["--DATASET=phantom", f"--DATA_DIR={kept / 'data'}"]


@pytest.fixture
def trained(run, small, kept):
    """The arguments of a run that was stopped in its second epoch and stands in models/."""
    if not (kept / "models").exists():
        with signal_in_step(5, signal.SIGINT):
            assert run("train_model.py", *small, *SHORT).status == 130
        shutil.copytree("models", kept / "models")
    shutil.rmtree("models", ignore_errors=True)
    shutil.copytree(kept / "models", "models")
    return [*small, *SHORT]


@pytest.fixture
def saved(trained):
    return torch.load(CHECKPOINT, weights_only=True)


def refusal(content, path=CHECKPOINT, layout=checkpoint.CHECKPOINT):
    """The message with which a checkpoint of this content is refused."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as refused:
        checkpoint.load(path, layout)
    message = str(refused.value)
    assert message.startswith(f"error: {path} ") and message.isprintable()
    assert len(message) < 600
    return message


def test_a_checkpoint_as_it_was_written_is_read(saved):
    loaded = checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)
    assert loaded["images_seen"] == 128 and loaded["step"] == 5 and loaded["epoch"] == 1
    assert checkpoint.load(SNAPSHOT, checkpoint.SNAPSHOT)["epoch"] == 1


# One odd value in one field


def put(value, *keys):
    """Return a function that puts a value into a checkpoint, at keys one in the other."""

    def change(saved):
        place = saved
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value
        return saved

    return change


def drop(*keys):
    def change(saved):
        place = saved
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        return saved

    return change


def first(value):
    """Return a function that changes the first element of a tensor."""

    def change(tensor):
        tensor = tensor.clone()
        tensor[(0,) * tensor.ndim] = value
        return tensor

    return change


def expanded(tensor):
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def loop():
    endless = []
    endless.append(endless)
    return endless


WEIGHT = ("generator_ema", "project.weight")
MOMENT = ("optimizer_d", "state", 0, "exp_avg")
ODD_TENSORS = {
    "of whole numbers": lambda x: x.int(),
    "of 64 bits": lambda x: x.double(),
    "of 16 bits": lambda x: x.half(),
    "complex": lambda x: x + 1j,
    "sparse": lambda x: x.to_sparse(),
    "expanded": expanded,
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "that is a parameter": lambda x: torch.nn.Parameter(x.clone()),
    "on the meta device": lambda x: x.to("meta"),
    "with a nan": first(float("nan")),
    "with an inf": first(float("-inf")),
    "of another shape": lambda x: x.flatten()[:-1].clone(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "a list": lambda x: x.tolist(),
    "none": lambda x: None,
}
ODD_VALUES = {  # name: (change, words of the message)
    "a position between two batches": (put(100, "images_seen"), "images_seen"),
    "a position beyond the images": (put(64 * 10**7, "images_seen"), "images_seen"),
    "a position before the images": (put(-64, "images_seen"), "images_seen"),
    "a position that is a truth": (put(True, "images_seen"), "images_seen"),
    "an epoch that the history has not": (put(2, "epoch"), "epoch"),
    "an epoch of text": (put("1", "epoch"), "epoch"),
    "a step that does not fit": (put(6, "step"), "step is 6, not 5"),
    "an endless step": (put(2**200, "step"), "step"),
    "a step of hundreds of digits": (put(10**300, "step"), "a huge number"),
    "a negative time": (put(-1.0, "seconds"), "seconds"),
    "an endless time": (put(float("inf"), "seconds"), "seconds"),
    "no history": (put(None, "history"), "history"),
    "a history in itself": (put(loop(), "history"), "history"),
    "a history of text": (put("0.5", "history", 0, "loss"), "history 0 loss"),
    "a history of none": (put(None, "history", 0, "d_real"), "history 0 d_real"),
    "a history of inf": (put(float("inf"), "history", 0, "d_fake"), "history 0 d_fake"),
    "a coverage of nan": (
        lambda saved: saved | {"history": [saved["history"][0] | {"coverage": float("nan")}]},
        "history 0 coverage",
    ),
    "a history of another epoch": (put(7, "history", 0, "epoch"), "history 0 epoch"),
    "a history of another step": (put(4, "history", 0, "step"), "history 0 step"),
    "an image twice": (put(first(1), "permutation"), "permutation"),
    "an image that does not exist": (put(first(200), "permutation"), "permutation"),
    "a negative image": (put(first(-1), "permutation"), "permutation"),
    "an order of fractions": (put(lambda p: p.float(), "permutation"), "permutation"),
    "an order of pairs": (put(lambda p: p.view(-1, 2), "permutation"), "permutation"),
    "an empty order": (put(lambda p: p[:0].clone(), "permutation"), "permutation"),
    "sums with a gradient": (put(lambda x: x.requires_grad_(), "running_sums"), "running_sums"),
    "a history of escape codes": (put("\x1b[2J", "history", 0, "data_set"), "history 0 data_set"),
    "sums of nan": (put(first(float("nan")), "running_sums"), "running_sums"),
    "negative counts": (put(first(-3), "label_counts", "counts"), "label_counts counts"),
    "counts of fractions": (put(lambda c: c.double(), "label_counts", "counts"), "label_counts"),
    "counts of other images": (put(lambda c: c * 2, "label_counts", "counts"), "400"),
    "fewer counts than labels": (put(lambda c: c[1:].clone(), "label_counts", "counts"), "label"),
    "labels of another width": (
        put(lambda rows: torch.cat([rows, rows], 1), "label_counts", "rows"),
        "label_counts rows",
    ),
    "labels above 1": (put(first(7), "label_counts", "rows"), "label_counts rows"),
    "a label twice": (put(lambda rows: rows * 0, "label_counts", "rows"), "label_counts"),
    "no counts": (drop("label_counts", "counts"), "label_counts"),
    "no labels in a conditional run": (put({}, "label_counts"), "label_counts"),
    "a seed beyond 64 bits": (put(2**64, "settings", "SEED"), "settings SEED"),
    "a seed of text": (put("0", "settings", "SEED"), "settings SEED"),
    "an unknown data set": (put("x-ray", "settings", "DATASET"), "settings DATASET"),
    "a data set of escape codes": (put("\x1b[31m", "settings", "DATASET"), "settings DATASET"),
    "no folder of data": (put(None, "settings", "DATA_DIR"), "settings DATA_DIR"),
    "a folder that ends early": (put("data\0", "settings", "DATA_DIR"), "settings DATA_DIR"),
    "a latent of no length": (put(0, "settings", "LATENT_DIM"), "settings LATENT_DIM"),
    "a latent of another length": (put(11, "settings", "LATENT_DIM"), "latent_dim is 10, not 11"),
    "twice the data": (put(2.0, "settings", "TRAIN_FRACTION"), "settings TRAIN_FRACTION"),
    "an unknown dtype": (put("float16", "settings", "DTYPE"), "settings DTYPE"),
    "a tensor as a setting": (put(torch.ones(2), "settings", "N_CRITIC"), "settings N_CRITIC"),
    "a batch of none": (put(0, "settings", "BATCH_SIZE"), "settings BATCH_SIZE"),
    "ten million channels": (put(10**7, "channels"), "channels"),
    "half a fingerprint": (put("abc", "data_sha256"), "data_sha256"),
    "latents of another width": (put(torch.zeros(64, 11), "fixed_latents"), "fixed_latents"),
    "latents of nan": (put(first(float("nan")), "fixed_latents"), "fixed_latents"),
    "a recipe of numbers": (put({"optimizer_g": 3}, "recipe"), "recipe optimizer_g"),
    "a machine of tensors": (put({"Hardware": torch.ones(3)}, "machine"), "machine Hardware"),
    "no arguments": (drop("model_args", "generator"), "model_args generator"),
    "an argument that is a tensor": (
        put(torch.ones(3), "model_args", "generator", "widths"),
        "model_args generator widths",
    ),
    "a JPEG quality of text": (put("high", "model_args", "generator", "jpeg"), "generator jpeg"),
    "an endless argument": (put(2**60, "model_args", "generator", "channels"), "model_args"),
    "another number of labels": (put(3, "model_args", "generator", "labels"), "labels"),
    "a state of random numbers that is none": (put(torch.zeros(3), "rng_cpu"), "rng_cpu"),
    "a state of random numbers of zeros": (put(lambda r: r * 0, "rng_cpu"), "rng_cpu"),
    "no weights": (put(None, "discriminator"), "discriminator"),
    "a negative variance": (
        put(first(-1.0), "generator_ema", "at_start.0.running_var"),
        "generator_ema",
    ),
    "a state of text": (put("state", "optimizer_g", "state"), "optimizer_g state"),
    "no groups": (drop("optimizer_g", "param_groups"), "optimizer_g param_groups"),
}
FITS_ITS_KIND = {"of another shape", "of 64 bits", "of 16 bits", "of whole numbers"}
for kind, odd in ODD_TENSORS.items():
    if kind not in FITS_ITS_KIND:  # only the network itself knows the shapes of its weights
        ODD_VALUES[f"a weight {kind}"] = (put(odd, *WEIGHT), "generator_ema")
    if kind not in {"of another shape", "none"}:
        ODD_VALUES[f"a moment {kind}"] = (put(odd, *MOMENT), "optimizer_d state 0 exp_avg")


@pytest.mark.parametrize(("change", "words"), ODD_VALUES.values(), ids=ODD_VALUES)
def test_an_odd_value_is_refused_by_the_name_of_its_field(saved, change, words):
    message = refusal(change(saved))
    assert words in message and "Move it away" in message


ODD_IN_SNAPSHOTS = {
    "an epoch before the first": (put(-1, "epoch"), "epoch"),
    "labels of another width": (put(torch.zeros(4, 3).byte(), "label_counts", "rows"), "rows"),
    "a weight with a nan": (put(first(float("nan")), *WEIGHT), "generator_ema"),
    "three channels of one": (put(3, "channels"), "channels"),
    "an unknown data set": (put("x-ray", "settings", "DATASET"), "settings DATASET"),
    "no settings": (drop("settings"), "settings"),
}


@pytest.mark.parametrize(("change", "words"), ODD_IN_SNAPSHOTS.values(), ids=ODD_IN_SNAPSHOTS)
def test_the_generator_of_an_epoch_is_checked_like_a_checkpoint(trained, change, words):
    content = change(torch.load(SNAPSHOT, weights_only=True))
    message = refusal(content, SNAPSHOT, checkpoint.SNAPSHOT)
    assert words in message and "train anew" not in message  # for one epoch of many


@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py", "generate_images.py"])
@pytest.mark.parametrize(
    "change",
    [
        put(2**64, "settings", "SEED"),
        put("x-ray", "settings", "DATASET"),
        put(first(float("nan")), *WEIGHT),
        put(lambda x: x.int(), *WEIGHT),
        put(10**7, "channels"),
    ],
)
def test_every_script_refuses_it_in_one_line_and_leaves_all_as_it_was(run, saved, change, script):
    torch.save(change(saved), CHECKPOINT)
    before = CHECKPOINT.read_bytes()
    arguments = [*small_of(saved), *SHORT] if script == "train_model.py" else []
    result = run(script, *arguments)
    assert result.status == 1 and result.text.count("error: ") == 1
    assert f"error: {CHECKPOINT} " in result.text and "Traceback" not in result.text
    assert CHECKPOINT.read_bytes() == before and not Path("images").exists()


def small_of(saved):
    settings = saved["settings"]
    names = ("DATASET", "DATA_DIR", "TRAIN_FRACTION")
    if settings["DATASET"] not in dataset.NAMES:
        settings = settings | {"DATASET": "phantom"}
    return [f"--{name}={settings[name]}" for name in names]


# The networks


LARGER_THAN_THE_WEIGHTS = {
    "a latent of half a million": put(500_000, "model_args", "generator", "latent_dim"),
    "wide layers": put((10**6, 10**6, 10**6, 10**6), "model_args", "generator", "widths"),
    "too many widths": put((8,) * 5, "model_args", "generator", "widths"),
    "a width of text": put("8888", "model_args", "generator", "widths"),
    "an unknown argument": put(1, "model_args", "generator", "depth"),
}


@pytest.mark.parametrize("change", LARGER_THAN_THE_WEIGHTS.values(), ids=LARGER_THAN_THE_WEIGHTS)
def test_arguments_are_compared_with_the_weights_before_a_network_is_built(saved, change):
    content = change(saved)
    width = content["model_args"]["generator"]["latent_dim"]
    content["settings"]["LATENT_DIM"] = width
    content["fixed_latents"] = torch.zeros(64, 1).repeat(1, min(width, 10))
    built = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="architecture"):
        patch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: built.append(layer))
        checkpoint.rebuild_generator(content, CHECKPOINT)
    assert all(layer.weight.is_meta for layer in built)


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_weights_of_another_kind_are_not_drawn_from(saved, kind):
    content = put(ODD_TENSORS[kind], *WEIGHT)(saved)
    torch.save(content, CHECKPOINT)
    with pytest.raises(UserError, match=r"generator_ema|architecture"):
        checkpoint.load_generator(CHECKPOINT)


def test_a_network_of_ones_own_that_looks_at_its_values_is_rebuilt(saved):
    class Own(dcgan.Generator):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            assert self.project.weight.std().item() > 0  # no values on the meta device

    torch.save(saved, CHECKPOINT)
    loaded = checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)
    own = checkpoint.rebuild_generator(loaded, CHECKPOINT, Own)
    assert torch.equal(own.project.weight, saved["generator_ema"]["project.weight"])


def test_images_of_nan_are_no_black_images(saved):
    saved["generator_ema"]["project.weight"] *= 1e38  # each of them is finite
    torch.save(saved, CHECKPOINT)
    generator = checkpoint.load_generator(CHECKPOINT)
    with pytest.raises(UserError, match="nan"):
        sampling.sample(generator, saved["label_counts"], 10, seed=0)


def test_a_generator_of_another_run_is_not_reported_as_one_of_this(run, trained, small):
    run("train_model.py", *small, "--EPOCHS=1", "--RUN_NAME=b", "--METRIC_IMAGES=0")
    shutil.copy("models/b/generator_epoch_0001.pt", SNAPSHOT)
    result = run("generate_report.py", "--RUN_NAME=phantom")
    assert result.status == 1 and f"error: {SNAPSHOT} is of another run" in result.text


# The optimisers


def weights(path=CHECKPOINT):
    content = torch.load(path, weights_only=True)
    return [tensor for part in ("generator", "discriminator") for tensor in content[part].values()]


OTHER_LAYOUTS = {
    "in the order of contiguous ones": lambda x: x.contiguous(),
    "a part of something larger": lambda x: torch.stack([x, x * 0], -1)[..., 0],
    "turned round": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_moments_in_another_memory_layout_are_resumed_from_bit_for_bit(
    run, saved, trained, kept, layout
):
    if not (kept / "finished.pt").exists():
        assert run("train_model.py", *trained).status == 0
        shutil.copy(CHECKPOINT, kept / "finished.pt")
    for part in ("optimizer_g", "optimizer_d"):
        for state in saved[part]["state"].values():
            state |= {key: layout(x) if x.ndim else x for key, x in state.items()}
    torch.save(saved, CHECKPOINT)
    assert run("train_model.py", *trained).status == 0
    for ours, theirs in zip(weights(), weights(kept / "finished.pt"), strict=True):
        assert torch.equal(ours, theirs)


ODD_OPTIMIZERS = {
    "a rate of text": put("1e-4", "optimizer_g", "param_groups", 0, "lr"),
    "a rate of nan": put(float("nan"), "optimizer_g", "param_groups", 0, "lr"),
    "a negative rate": put(-1e-4, "optimizer_g", "param_groups", 0, "lr"),
    "no rate": drop("optimizer_g", "param_groups", 0, "lr"),
    "no moments at all": put({}, "optimizer_g", "state"),
    "no moments of a weight": drop("optimizer_g", "state", 3),
    "a moment of none": put(None, "optimizer_g", "state", 3, "exp_avg"),
    "no step": put(torch.tensor(0.0), "optimizer_g", "state", 3, "step"),
    "half a step": put(torch.tensor(0.5), "optimizer_g", "state", 3, "step"),
    "a step that is a truth": put(True, "optimizer_g", "state", 3, "step"),
    "no second moment": drop("optimizer_g", "state", 3, "exp_avg_sq"),
    "a negative second moment": put(first(-1.0), "optimizer_g", "state", 3, "exp_avg_sq"),
    "moments of another shape": put(torch.zeros(2000, 80), "optimizer_g", "state", 1, "exp_avg"),
    "a negative step": put(torch.tensor(-5.0), "optimizer_g", "state", 3, "step"),
    "other groups": put([], "optimizer_g", "param_groups"),
    "expanded moments": put(expanded, "optimizer_g", "state", 1, "exp_avg"),
}


@pytest.mark.parametrize("change", ODD_OPTIMIZERS.values(), ids=ODD_OPTIMIZERS)
def test_a_training_does_not_go_on_with_another_state_of_its_optimiser(run, saved, trained, change):
    torch.save(change(saved), CHECKPOINT)
    before = CHECKPOINT.read_bytes()
    result = run("train_model.py", *trained)
    assert result.status == 1 and "optimizer_g" in result.text
    assert f"error: {CHECKPOINT} " in result.text
    assert CHECKPOINT.read_bytes() == before


def test_options_of_an_optimiser_are_those_of_the_script(run, saved, trained, kept):
    for group in saved["optimizer_g"]["param_groups"]:
        group |= {"maximize": True, "amsgrad": True, "capturable": True, "betas": (2.0, "a")}
    torch.save(saved, CHECKPOINT)
    assert run("train_model.py", *trained).status == 0
    kept = torch.load(CHECKPOINT, weights_only=True)["optimizer_g"]["param_groups"][0]
    assert kept["betas"] == (0.0, 0.999) and not kept["maximize"]


OPTIMIZERS = {
    "SGD": "SGD({}, lr=0.01)",
    "SGD with momentum": "SGD({}, lr=0.01, momentum=0.9)",
    "RMSprop": "RMSprop({}, lr=1e-4, momentum=0.1, centered=True)",
    "AdamW": "AdamW({}, lr=1e-4, amsgrad=True)",
    "NAdam": "NAdam({}, lr=1e-4)",
    "Adagrad": "Adagrad({}, lr=1e-3)",
    "a tensor as its rate": "Adam({}, lr=torch.tensor(1e-4), fused=True)",
}


@pytest.mark.parametrize("code", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimiser_is_resumed_bit_for_bit(run, small, tmp_path, code):
    script = Path(dcgan.__file__).with_name("train_model.py").read_text()
    for network in ("generator", "discriminator"):
        ours = f"torch.optim.Adam({network}.parameters(), **adam)"
        assert ours in script
        script = script.replace(ours, f"torch.optim.{code.format(network + '.parameters()')}")
    Path("train_model.py").write_text(script)
    path = str(tmp_path / "train_model.py")
    short = ["--LATENT_DIM=10", "--METRIC_IMAGES=0", "--EPOCHS=2"]
    assert run(path, *small, *short, "--RUN_NAME=whole").status == 0
    with signal_in_step(4, signal.SIGINT):
        assert run(path, *small, *short).status == 130
    assert run(path, *small, *short).status == 0
    for ours, theirs in zip(weights(), weights("models/whole/checkpoint.pt"), strict=True):
        assert torch.equal(ours, theirs)


# What trains can always be read again


def test_a_layer_without_a_gradient_is_resumed(run, small, monkeypatch):
    init = dcgan.Discriminator.__init__

    def init_with_a_layer_too_many(
        self, channels=1, labels=0, size=28, widths=(4, 4, 8), scales=(1.0, 1.0, 1.0, 1.0)
    ):
        init(self, channels, labels, size, widths, scales)
        self.forgotten = torch.nn.Linear(3, 3)

    monkeypatch.setattr(dcgan.Discriminator, "__init__", init_with_a_layer_too_many)
    short = ["--LATENT_DIM=10", "--METRIC_IMAGES=0"]
    assert run("train_model.py", *small, *short, "--EPOCHS=1").status == 0
    assert run("train_model.py", *small, *short, "--EPOCHS=2").status == 0


@pytest.mark.parametrize("value", [3, 0.5, True, "text", float("inf"), -(2**40)])
def test_constants_of_ones_own_are_read_again(saved, value):
    saved["settings"]["N_CRITIC"] = value
    saved["settings"]["TRAIN_FRACTION"] = 1  # as in a script without the decimal point
    torch.save(saved, CHECKPOINT)
    loaded = checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)
    assert loaded["settings"]["N_CRITIC"] == value


def test_columns_of_ones_own_in_the_history_are_read_again(saved):
    saved["history"][0] |= {"note": "better", "best": None, "fid": 3.5, "worst": float("inf")}
    torch.save(saved, CHECKPOINT)
    checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)


# The file


def test_the_file_is_read_once_and_its_checksum_is_that_of_what_was_read(trained, monkeypatch):
    opened, real_open = [], io.open

    def counted(file, *arguments, **named):
        opened.append(str(file))
        return real_open(file, *arguments, **named)

    monkeypatch.setattr(io, "open", counted)
    loaded = checkpoint.load(CHECKPOINT, checkpoint.CHECKPOINT)
    assert opened.count(str(CHECKPOINT)) == 1
    assert loaded["file_sha256"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()


def test_an_export_names_the_checkpoint_that_it_drew_from(run, trained, monkeypatch):
    wanted = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    rebuild = checkpoint.rebuild_generator

    def rebuild_while_a_training_saves(saved, path):
        replaced = torch.load(path, weights_only=True)
        torch.save(replaced | {"seconds": 1.0}, path)
        return rebuild(saved, path)

    monkeypatch.setattr(checkpoint, "rebuild_generator", rebuild_while_a_training_saves)
    assert run("generate_images.py", "--N_IMAGES=3").status == 0
    assert wanted in Path("images/phantom/export/ABOUT.txt").read_text()


NO_FILES = {
    "a pipe": lambda: os.mkfifo(CHECKPOINT),
    "a folder": CHECKPOINT.mkdir,
    "a device": lambda: CHECKPOINT.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py", "generate_images.py"])
def test_what_is_no_file_is_not_waited_for(run, trained, make, script):
    CHECKPOINT.unlink()
    make()
    result = run(script, *trained) if script == "train_model.py" else run(script)
    assert result.status == 1 and "is not a file" in result.text


def rezipped(compression, **members):
    memory = io.BytesIO()
    with zipfile.ZipFile(CHECKPOINT) as old, zipfile.ZipFile(memory, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, members.get(Path(name).name, old.read(name)))
    return memory.getvalue()


BAD_FILES = {
    "deflated": lambda: rezipped(zipfile.ZIP_DEFLATED),
    "of another compression": lambda: rezipped(zipfile.ZIP_LZMA),
    "truncated": lambda: CHECKPOINT.read_bytes()[:-1000],
    "with a flipped bit": lambda: flipped(CHECKPOINT.read_bytes()),
    "empty": lambda: b"",
    "no zip": lambda: b"PK and nothing else",
    "a zip of no checkpoint": lambda: rezipped(zipfile.ZIP_STORED, **{"data.pkl": b"no pickle"}),
    "an endless pickle": lambda: rezipped(zipfile.ZIP_STORED, **{"data.pkl": b"\x80\x02" * 999}),
}


def flipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        largest = max(file.infolist(), key=lambda member: member.file_size)
    place = largest.header_offset + largest.file_size // 2  # not in what fills up to 64 bytes
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_damaged_file_is_refused(trained, content):
    assert "cannot be read now" not in refusal(content())


def test_a_storage_is_not_larger_than_the_file_says(trained):
    """A tensor whose header claims more than is there would be read past its end."""
    with zipfile.ZipFile(CHECKPOINT) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    assert pickled.count(b"K\xc8") >= 2  # the length of the permutation, and of its storage
    longer = pickled.replace(b"K\xc8", b"J\xff\xff\xff\x0f")
    refusal(rezipped(zipfile.ZIP_STORED, **{"data.pkl": longer}))


TROUBLE = {
    "no rights": PermissionError(errno.EACCES, "Permission denied"),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "too many files in the system": OSError(errno.ENFILE, "Too many open files in system"),
    "a broken disk": OSError(errno.EIO, "Input/output error"),
    "no memory": MemoryError(),
    "no memory for tensors": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py", "generate_images.py"])
def test_trouble_that_passes_is_not_called_damage(run, trained, monkeypatch, trouble, script):
    def fail(*_, **__):
        raise trouble

    if isinstance(trouble, (MemoryError, RuntimeError)):
        monkeypatch.setattr(torch, "load", fail)
    else:
        real_open = io.open
        monkeypatch.setattr(
            io,
            "open",
            lambda file, *a, **k: (fail if str(CHECKPOINT) in str(file) else real_open)(
                file, *a, **k
            ),
        )
    result = run(script, *trained) if script == "train_model.py" else run(script)
    assert result.status == 1 and f"error: {CHECKPOINT} cannot be read now: " in result.text
    assert "may be whole" in result.text and "Move it away" not in result.text


# What a run was trained on


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("generate_report.py", []), ("generate_images.py", ["--VAL_AND_TEST=real", "--N_IMAGES=2"])],
)
def test_a_report_or_an_export_only_reads_data(run, saved, monkeypatch, script, arguments):
    def forbidden(*_):
        raise AssertionError("no data set is made for a report")

    monkeypatch.setattr(dataset, "write_phantom", forbidden)
    saved["settings"]["DATA_DIR"] = "elsewhere"
    torch.save(saved, CHECKPOINT)
    result = run(script, *arguments)
    assert result.status == 1 and not Path("elsewhere").exists()
    assert "error: elsewhere/phantom.npz does not exist" in result.text
    assert "The run was trained on Phantom" in result.text and "--DATA_DIR" in result.text


def test_a_run_knows_whether_its_data_were_the_official_file(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(
            0, 256, (70, 28, 28), np.uint8
        )
        arrays[f"{split}_labels"] = np.zeros((70, 1), np.uint8)
    Path("data").mkdir()
    np.savez("data/breastmnist.npz", **arrays)
    short = ["--DATASET=breastmnist", "--LATENT_DIM=10", "--METRIC_IMAGES=0", "--EPOCHS=1"]
    assert run("train_model.py", *short, "--RUN_NAME=own").status == 0
    md5 = hashlib.md5(Path("data/breastmnist.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(dataset.INFO["breastmnist"], "MD5", md5)
    assert run("train_model.py", *short, "--RUN_NAME=official").status == 0
    Path("data").rename("moved")
    told = {"own": "not the official file", "official": "the official file (MD5 agrees)"}
    for name, words in told.items():
        result = run("generate_report.py", f"--RUN_NAME={name}")
        assert result.status == 1 and f"BreastMNIST, {words}; give" in result.text
