"""Checkpoints: how they are written, read, checked and resumed. schema.py says what they hold."""

import ast
import dataclasses
import hashlib
import inspect
import io
import pickle
import textwrap
import warnings
import zipfile
from pathlib import Path

import torch

from common import errors, files
from common.data import dataset
from common.errors import UserError
from common.restore import compare, fit_network, fit_optimizer, optimizer_state
from common.schema import (
    CHECKPOINT,
    SNAPSHOT,
    Model,
    Progress,
    Run,
    check_progress,
    check_relations,
)
from common.upgrade import upgrade
from common.validate import Odd, check, demand, describe
from dcgan import Discriminator, Generator

__all__ = ["CHECKPOINT", "SNAPSHOT", "Model", "Progress", "Run"]  # from schema.py, for the scripts


def constructor_args(network, *given, size=28):
    """Return all arguments that a class is constructed with, {name: value}, defaults included.

    size: given to classes that have it; one of your own can be for images of one size.
    """
    signature = inspect.signature(network)
    bound = signature.bind(*given, **({"size": size} if "size" in signature.parameters else {}))
    bound.apply_defaults()
    return dict(bound.arguments)


def describe_recipe(optimizers, losses):
    """Return {name: class name of an optimiser, or code of a loss without its comments}.

    optimizers: {name: optimizer}; losses: functions.
    """
    recipe = {name: type(optimizer).__name__ for name, optimizer in optimizers.items()}
    for loss in losses:
        code = ast.parse(textwrap.dedent(inspect.getsource(loss)))
        recipe[loss.__name__] = ast.unparse(code)
    return recipe


def fields(part):
    """Return the fields of a dataclass instance, {name: value}, not copied."""
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


def save(path, content):
    """Write a dict of tensors and plain values to path atomically. Raises UserError."""
    memory = io.BytesIO()  # torch.save hides the cause of a failed write, a plain write tells it
    torch.save(content, memory)
    with files.atomic_write(path) as file:
        file.write(memory.getbuffer())


def load(path, layout):
    """Read a checkpoint onto the CPU and check all of it; no code in it is run (weights_only).

    layout: CHECKPOINT or SNAPSHOT. Returns its fields, {name: value}, and as "file_sha256" the
    SHA-256 of the very bytes that were read. Raises UserError if the file is missing, cannot be
    read now, is damaged or unsafe, or holds what this program cannot have written.
    """
    path = Path(path)
    with errors.reading(path, "python train_model.py writes checkpoints."):
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # of a zip file; before all of a large one is read
                refuse(path, "is not a readable checkpoint")
            file.seek(0)
            data = file.read()
        content = unpack(path, data)
        try:
            demand(isinstance(content, dict), "it", f"is {describe(content)}, not a dict")
            content = upgrade(content)
            check(layout, content)
            content["info"] = dataset.INFO.get(content["settings"]["DATASET"], content["info"])
            check_relations(content)
            if layout is CHECKPOINT:
                check_progress(content)
        except Odd as odd:
            refuse(path, f"is not a checkpoint of this program: {odd}")
    return content | {"file_sha256": hashlib.sha256(data).hexdigest()}


def unpack(path, data):
    """Return what torch.save wrote, from the bytes of a file. Raises UserError."""
    damaged = None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > len(data):
                refuse(path, "is not a readable checkpoint, it unpacks to more than it is")
            damaged = archive.testzip()  # torch.load would not notice a flipped bit
        if not damaged:
            with warnings.catch_warnings(action="ignore"):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError:
        refuse(path, "holds more than tensors and plain values, which could be harmful")
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        if "allocate memory" in str(error):  # RuntimeError of torch
            raise MemoryError from None
        refuse(path, f"is not a readable checkpoint, {type(error).__name__}")
    refuse(path, "is damaged, a checksum in it is wrong")


def describe_data(saved):
    """Return in words what the run of a checkpoint was trained on."""
    kind = {True: dataset.OFFICIAL, False: "not the official file", None: "a file of that name"}
    name = saved["settings"]["DATASET"]
    which = "" if name == "phantom" else f", {kind[saved['data_official']]}"
    which = which if name in dataset.NAMES else f", {dataset.OWN}"
    return f"The run was trained on {dataset.title(saved['info'])}{which}"


def load_training_images(saved, data_dir):
    """Return the images that a run was trained on, their label vectors or None, and their file.

    data_dir: the folder of that file; empty: the one the run was trained from. Raises UserError if
    they are no longer there; nothing is downloaded or drawn.
    """
    trained, trained_on = saved["settings"], describe_data(saved)
    folder = data_dir or trained["DATA_DIR"]
    name, fraction, seed = trained["DATASET"], trained["TRAIN_FRACTION"], trained["SEED"]
    part = {"fraction": fraction, "seed": seed, "size": trained["SIZE"]}
    images, labels, source = dataset.load(name, "train", folder, trained_on=trained_on, **part)
    labels = dataset.encode_labels(saved["info"], labels) if trained.get("CONDITIONAL") else None
    if dataset.sha256(images, labels) != saved["data_sha256"]:
        raise UserError(
            f"{source}: these are not the images that the run was trained on. {trained_on}; give "
            "the folder of that file as --DATA_DIR"
        )
    return images, labels, dataset.file(folder, name, trained["SIZE"])


def refuse(path, cause):
    if path.name == "checkpoint.pt":
        fix = "Move it away, and put a copy in its place, train anew or take another RUN_NAME."
    else:
        fix = "Move it away; the other epochs do not need it."
    raise UserError(f"{path} {cause}. {fix}")


def load_generator(path):
    """Read a snapshot or a checkpoint and return its averaged generator, in eval mode, on the CPU.

    Raises UserError if the file is missing, damaged or made by another architecture.
    """
    return rebuild_generator(load(Path(path), SNAPSHOT), path)


def rebuild_generator(saved, path, architecture=Generator):
    """Return the averaged generator of what `load` read, in eval mode. Raises UserError.

    architecture: the class that it was trained as, if it is not dcgan.Generator.
    """
    return rebuild(architecture, saved["model_args"].get("generator"), saved["generator_ema"], path)


def rebuild_discriminator(saved, path):
    """Return the discriminator of what `load` read from checkpoint.pt, in eval mode."""
    arguments = saved["model_args"].get("discriminator")
    return rebuild(Discriminator, arguments, saved["discriminator"], path)


def rebuild(architecture, arguments, state, path):
    """Return a network in eval mode, channels_last as in training, so that no bit differs."""
    check_architecture(architecture, arguments, state, path)
    network = architecture(**arguments)
    restore(network, state, path)
    return network.eval().to(memory_format=torch.channels_last)


def check_architecture(architecture, arguments, state, path):
    """Raise UserError unless a class with these arguments has the weights of a state dict."""
    try:
        compare(architecture, arguments, state)
    except Exception as error:  # whatever constructor arguments of another class lead to
        if "meta" not in str(error):  # a class of one's own may look at its values
            refuse_architecture(path, error)


def restore(network, state, path):
    """Load a state dict into a network. Raises UserError if it does not fit."""
    try:
        fit_network(network, state)
    except Exception as error:  # wrong keys, shapes or types, whatever a foreign file holds
        refuse_architecture(path, error)


def restore_optimizer(optimizer, saved, name, path):
    """Load the state dict of an optimiser from what `load` read. Raises UserError."""
    try:
        fit_optimizer(optimizer, saved[name], saved["step"] > 0)
    except Exception as error:  # as above
        cause = " ".join(str(error).split())[:160]
        refuse(path, f"is not a checkpoint of this program: {name} does not fit, {cause}")


def refuse_architecture(path, error):
    cause = " ".join(str(error).split())[:160]
    raise UserError(
        f"{path} was made by another architecture than dcgan.py has now ({cause}). "
        "Undo the change to dcgan.py, or train anew under another RUN_NAME."
    ) from None


def find(folder, constants, may_change, networks):
    """Return the checkpoint of a run's folder to resume, or None if the folder is empty.

    constants: those of the script now, {name: value}; may_change: names that may differ; networks:
    {name: class}. Raises UserError if another constant differs, a class does not fit the weights,
    or the checkpoint cannot be read.
    """
    path = folder / "checkpoint.pt"
    with errors.reading(path):
        found = path.exists()
    if not found:
        if any(not file.name.startswith(".") for file in folder.glob("*")):
            raise UserError(
                f"{folder} holds files but no checkpoint.pt to resume. Choose another "
                "RUN_NAME, or archive it with --RESUME=never"
            )
        return None
    saved = load(path, CHECKPOINT)
    changed = [
        f"{name} was {old!r} and is now {constants[name]!r}"
        for name, old in saved["settings"].items()
        if name in constants and name not in may_change and constants[name] != old
        if (name, constants[name]) != ("DTYPE", "auto") and old is not None
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(changed)}. Change them "
            "back, choose another RUN_NAME, or archive the run with --RESUME=never"
        )
    for name, network in networks.items():
        check_architecture(network, saved["model_args"].get(name), saved[name], path)
    return saved


def save_run(run, progress, model, folder):
    """Write checkpoint.pt into a run's folder, unless its weights are not finite.

    Raises UserError.
    """
    check_finite(progress, model, folder)
    content = fields(run) | fields(progress)
    for name, part in fields(model).items():
        is_optimizer = isinstance(part, torch.optim.Optimizer)
        stepped = progress.step > 0
        content[name] = optimizer_state(part, stepped) if is_optimizer else part.state_dict()
    content["rng_cpu"] = torch.get_rng_state()
    device = progress.running_sums.device
    content["rng_cuda"] = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    save(folder / "checkpoint.pt", content)


def save_snapshot(run, progress, model, folder):
    """Write the averaged generator of the epoch that just ended. Raises UserError."""
    content = {key: value for key, value in fields(run).items() if key in SNAPSHOT.fields}
    content |= {"epoch": progress.epoch, "generator_ema": model.generator_ema.state_dict()}
    save(folder / f"generator_epoch_{progress.epoch:04d}.pt", content)


def check_finite(progress, model, folder):
    """Raise UserError if a loss or a weight is infinite or not a number."""
    tensors = [*model.generator.parameters(), *model.discriminator.parameters()]
    if not all(tensor.isfinite().all() for tensor in [progress.running_sums, *tensors]):
        raise UserError(
            f"the losses of {folder} are no longer finite, in epoch {progress.epoch + 1}. The "
            "last good checkpoint is kept. Train anew with a lower LEARNING_RATE or with "
            "--DTYPE=float32, under another RUN_NAME or with --RESUME=never"
        )


def resume(saved, run, progress, model, path):
    """Restore networks, optimisers, progress and RNG state from what `load` read.

    run: that of this process. Returns it with the fixed latents of the checkpoint, and with None
    for the settings that the program which began the run did not have. Raises UserError if the
    data, the architecture, an optimiser or a loss is another one than the run began with.
    """
    folder = path.parent
    if saved["data_sha256"] != run.data_sha256:
        name = run.settings["DATASET"]
        data = dataset.file(run.settings["DATA_DIR"], name, run.settings["SIZE"])
        old = "the old file" if name in dataset.NAMES else "the images of then"
        raise UserError(
            f"{data} does not hold the images and labels that {folder} "
            f"was trained on. Put {old} back, or choose another RUN_NAME."
        )
    for name, old in saved["recipe"].items():
        if run.recipe.get(name) != old:
            raise UserError(
                f"{folder} was trained with another {name} than train_model.py has now. Undo the "
                "change, choose another RUN_NAME, or archive the run with --RESUME=never"
            )
    for name, part in fields(model).items():
        if isinstance(part, torch.optim.Optimizer):
            restore_optimizer(part, saved, name, path)
        else:
            restore(part, saved[name], path)
    for name, fresh in (fields(progress) | {"fixed_latents": run.fixed_latents}).items():
        if isinstance(fresh, torch.Tensor):
            if saved[name].shape != fresh.shape or saved[name].dtype != fresh.dtype:
                refuse(path, f"does not fit this run, {name!r} has another shape")
            saved[name] = saved[name].to(fresh.device)
    for name in fields(progress):
        setattr(progress, name, saved[name])
    try:
        torch.set_rng_state(saved["rng_cpu"])
        if progress.running_sums.is_cuda and saved["rng_cuda"] is not None:
            torch.cuda.set_rng_state(saved["rng_cuda"], progress.running_sums.device)
    except (KeyError, RuntimeError, TypeError):
        refuse(path, "does not fit this run, its RNG states cannot be set")
    settings = run.settings | {key: x for key, x in saved["settings"].items() if x is None}
    return dataclasses.replace(run, settings=settings, fixed_latents=saved["fixed_latents"])
