"""Checkpoints: what they hold, how they are written, read, checked and resumed."""

import ast
import dataclasses
import inspect
import io
import pickle
import textwrap
import warnings
import zipfile
from pathlib import Path

import torch

from common.files import atomic_write
from common.settings import UserError
from common.upgrade import upgrade
from dcgan import Discriminator, Generator

# checkpoint.pt is a flat dict: the fields of the three dataclasses below, networks and
# optimisers as state dicts, and the RNG states rng_cpu and rng_cuda (None on a CPU). A snapshot,
# generator_epoch_0001.pt ..., holds the keys of SNAPSHOT.


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is; fixed when it begins."""

    settings: dict  # the constants of train_model.py, DTYPE resolved to "float32" or "bfloat16"
    channels: int  # of the images, 1 or 3
    label_counts: dict  # as dataset.count_labels returns; {} without CONDITIONAL
    data_sha256: str  # of the training images and labels
    fixed_latents: torch.Tensor  # (64, latent_dim), drawn from after every epoch
    model_args: dict  # constructor arguments, {"generator": {...}, "discriminator": {...}}
    recipe: dict  # as describe_recipe returns
    machine: dict  # as hardware.machine returns, of the last process that trained it


@dataclasses.dataclass
class Progress:
    """What changes while a run is trained."""

    permutation: torch.Tensor  # (N,), the order of the images in the unfinished epoch
    running_sums: torch.Tensor  # of status.STATISTICS over the unfinished epoch
    images_seen: int = 0  # in the unfinished epoch
    seconds: float = 0.0  # spent on the unfinished epoch
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps, over all epochs
    history: list = dataclasses.field(default_factory=list)  # the rows of log.csv, one an epoch


@dataclasses.dataclass
class Model:
    """The networks and their optimisers; a checkpoint holds their state dicts."""

    generator: torch.nn.Module
    discriminator: torch.nn.Module
    generator_ema: torch.nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer


def constructor_args(network, *given):
    """Return all arguments that a class is constructed with, {name: value}, defaults included."""
    bound = inspect.signature(network).bind(*given)
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


def types(part):
    """Return the types of the fields of a dataclass, {name: type}."""
    return {field.name: field.type for field in dataclasses.fields(part)}


SETTINGS = {
    "DATASET": str,
    "DATA_DIR": str,
    "TRAIN_FRACTION": float,
    "EPOCHS": int,
    "LATENT_DIM": int,
    "SEED": int,
    "DTYPE": str,
}
LABEL_COUNTS = {"rows": torch.Tensor, "counts": torch.Tensor}
CHECKPOINT = types(Run) | types(Progress) | {"rng_cpu": torch.Tensor}
CHECKPOINT |= dict.fromkeys(types(Model), dict)  # state dicts
SNAPSHOT = {"generator_ema": dict, "epoch": int, "settings": dict, "channels": int}
SNAPSHOT |= {"label_counts": dict, "model_args": dict}

# A row of the history; those of an epoch that was evaluated have the metrics as well.
ROW = {
    "epoch": int,
    "step": int,
    "loss_discriminator": float,
    "loss_generator": float,
    "d_real": float,  # D(x), mean over the epoch
    "d_fake": float,  # D(G(z)), the same
}


def save(path, content):
    """Write a dict of tensors and plain values to path atomically. Raises UserError."""
    memory = io.BytesIO()  # torch.save hides the cause of a failed write, a plain write tells it
    torch.save(content, memory)
    with atomic_write(path) as file:
        file.write(memory.getbuffer())


def load(path, layout):
    """Read a checkpoint onto the CPU; no code in it is run (weights_only).

    layout: CHECKPOINT or SNAPSHOT. Raises UserError if the file is missing, damaged, unsafe or of
    another layout.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist. python train_model.py writes checkpoints.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would not notice a flipped bit
            damaged = archive.testzip()
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        refuse(path, "holds more than tensors and plain values, which could be harmful")
    except Exception as error:  # torch.load raises a dozen kinds for damaged files
        refuse(path, f"is not a readable checkpoint, {type(error).__name__}")
    if damaged:
        refuse(path, "is damaged, a checksum in it is wrong")
    if isinstance(content, dict) and "model_args" not in content:
        content = upgrade(content)
    check_layout(path, content, layout)
    check_layout(path, content["settings"], SETTINGS)
    if content["label_counts"]:
        check_layout(path, content["label_counts"], LABEL_COUNTS)
        rows, counts = content["label_counts"]["rows"], content["label_counts"]["counts"]
        if rows.ndim != 2 or counts.shape != rows.shape[:1] or not (counts > 0).any():
            refuse(path, "is not a checkpoint of this program, 'label_counts' do not fit together")
    for row in content.get("history", []):
        check_layout(path, row, ROW)
    return content


def check_layout(path, content, layout):
    """Raise UserError unless the content is a dict with these keys and types of values."""
    if not isinstance(content, dict):
        refuse(path, f"is not a checkpoint of this program, it holds a {type(content).__name__}")
    for key, kind in layout.items():
        if not isinstance(content.get(key), kind):
            refuse(path, f"is not a checkpoint of this program, {key!r} is missing or odd")


def refuse(path, cause):
    raise UserError(f"{path} {cause}. Move it away, and train anew or take another RUN_NAME.")


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
    try:
        network = architecture(**arguments)
    except Exception as error:  # whatever constructor arguments of another class lead to
        refuse_architecture(path, error)
    restore(network, state, path)
    return network.eval().to(memory_format=torch.channels_last)


def restore(part, state, path):
    """Load a state dict into a network or an optimiser. Raises UserError if it does not fit."""
    try:
        part.load_state_dict(state)
        for parameter, moments in getattr(part, "state", {}).items():
            for name, moment in moments.items():  # a fused optimiser would read past their end
                if isinstance(moment, torch.Tensor) and moment.shape not in (parameter.shape, ()):
                    raise ValueError(f"{name} has the shape {tuple(moment.shape)}")
    except Exception as error:  # wrong keys, shapes or types, whatever a foreign file holds
        refuse_architecture(path, error)


def refuse_architecture(path, error):
    cause = " ".join(str(error).split())[:160]
    raise UserError(
        f"{path} was made by another architecture than dcgan.py has now ({cause}). "
        "Undo the change to dcgan.py, or train anew under another RUN_NAME."
    ) from None


def find(folder, constants, may_change):
    """Return the checkpoint of a run's folder to resume, or None if the folder is empty.

    constants: those of the script now, {name: value}; may_change: names that may differ. Raises
    UserError if another one differs or the checkpoint cannot be read.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
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
        if (name, constants[name]) != ("DTYPE", "auto")
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(changed)}. Change them "
            "back, choose another RUN_NAME, or archive the run with --RESUME=never"
        )
    return saved


def save_run(run, progress, model, folder):
    """Write checkpoint.pt into a run's folder, unless its weights are not finite.

    Raises UserError.
    """
    check_finite(progress, model, folder)
    content = fields(run) | fields(progress)
    content |= {name: part.state_dict() for name, part in fields(model).items()}
    content["rng_cpu"] = torch.get_rng_state()
    device = progress.running_sums.device
    content["rng_cuda"] = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    save(folder / "checkpoint.pt", content)


def save_snapshot(run, progress, model, folder):
    """Write the averaged generator of the epoch that just ended. Raises UserError."""
    content = {key: value for key, value in fields(run).items() if key in SNAPSHOT}
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

    run: that of this process. Returns it with the fixed latents of the checkpoint. Raises UserError
    if the data, the architecture, an optimiser or a loss is another one than the run began with.
    """
    folder = path.parent
    if saved["data_sha256"] != run.data_sha256:
        data_dir, name = run.settings["DATA_DIR"], run.settings["DATASET"]
        raise UserError(
            f"{data_dir}/{name}.npz does not hold the images and labels that {folder} "
            "was trained on. Put the old file back, or choose another RUN_NAME."
        )
    for name, old in saved["recipe"].items():
        if run.recipe.get(name) != old:
            raise UserError(
                f"{folder} was trained with another {name} than train_model.py has now. Undo the "
                "change, choose another RUN_NAME, or archive the run with --RESUME=never"
            )
    for network, arguments in run.model_args.items():
        for name, value in arguments.items():
            old = saved["model_args"].get(network, {}).get(name, "absent")
            if value != old:
                refuse_architecture(path, f"{name} of the {network} was {old!r} and is {value!r}")
    for name, part in fields(model).items():
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
    return dataclasses.replace(run, fixed_latents=saved["fixed_latents"])
