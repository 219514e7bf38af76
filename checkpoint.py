"""Checkpoints: what is in them; found, written whole, read with mistrust, put back into a run."""

import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from files import replacing, run_folder
from settings import UserError

SETTINGS = {
    "DATASET": str,
    "DATA_DIR": str,
    "TRAIN_FRACTION": float,
    "EPOCHS": int,
    "LATENT_DIM": int,
    "SEED": int,
    "PRECISION": str,
}
# The label vectors of the training images, as dataset.tally counts them; {} in the plain mode.
LABELS = {"rows": torch.Tensor, "counts": torch.Tensor}
# generator_epoch_0001.pt ...: the moving-average generator after an epoch.
SNAPSHOT = {"generator_ema": dict, "epoch": int, "settings": dict, "channels": int, "labels": dict}
# checkpoint.pt: with these a run goes on bit for bit.
CHECKPOINT = SNAPSHOT | {
    "generator": dict,
    "discriminator": dict,
    "optimizer_g": dict,
    "optimizer_d": dict,
    "fingerprint": str,  # SHA-256 of the training images
    "fixed_latents": torch.Tensor,  # (64, latent_dim), drawn from in every epoch's pictures
    "step": int,  # finished ones, over all epochs
    "position": int,  # images of the unfinished epoch that were used
    "permutation": torch.Tensor,  # (N,), the order of the images in the unfinished epoch
    "sums": torch.Tensor,  # of the losses and opinions over the unfinished epoch
    "seconds": float,  # spent on the unfinished epoch
    "history": list,  # the rows of log.csv, one dict an epoch
    "floor": dict,  # what metrics.measure says of n real images in the place of synthetic ones
    "gaussian": dict,  # the same of images drawn from a Gaussian fitted to the real pixels
    "rng_cpu": torch.Tensor,
}

# Not in checkpoints of old: what the last process to train the run was computed with, in words.
OPTIONAL = {"machine": dict}

# A row of the history; those of a run that is measured have metrics.measure's numbers as well.
ROW = {
    "epoch": int,
    "step": int,
    "loss_discriminator": float,
    "loss_generator": float,
    "d_real": float,  # D(x), mean over the epoch
    "d_fake": float,  # D(G(z)), the same
}


def find_run(models_dir, run_name):
    """Return the folder of a run, by default of the one trained last. Raises UserError if none."""
    if run_name:
        return run_folder(models_dir, run_name)
    checkpoints = Path(models_dir).glob("*/checkpoint.pt")
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"{models_dir} holds no run yet; first run python train_model.py")
    return newest.parent


def find_snapshots(folder):
    """Return {epoch: path} of the generators that a run has kept, in the order of epochs."""
    names = ((re.fullmatch(r"generator_epoch_(\d+)", p.stem), p) for p in folder.glob("*.pt"))
    return dict(sorted((int(match[1]), path) for match, path in names if match))


def choose_epoch(wanted, snapshots, history):
    """Return the epoch that "best" or a number in a text means. Raises UserError if not kept.

    The best one is that of the highest coverage.
    """
    coverage = {row["epoch"]: row["coverage"] for row in history if "coverage" in row}
    measured = coverage.keys() & snapshots.keys()
    if wanted == "best" and measured:
        return max(sorted(measured), key=coverage.get)
    if wanted.isdecimal() and int(wanted) in snapshots:
        return int(wanted)
    kept = ", ".join(str(epoch) for epoch in snapshots) or "none so far"
    raise UserError(
        f'EPOCH={wanted}: legal are "last", "best" if coverage was measured, and the epochs '
        f"of which a generator was kept: {kept}"
    )


def save(path, content):
    """Write a dict of tensors and plain values to path, whole or not at all. Raises UserError."""
    memory = io.BytesIO()  # torch.save hides the cause of a failed write, a plain write tells it
    torch.save(content, memory)
    with replacing(path) as file:
        file.write(memory.getbuffer())


def load(path, layout):
    """Read a checkpoint onto the CPU; no code in it is run (weights_only).

    layout: CHECKPOINT or SNAPSHOT. Raises UserError if the file is missing, damaged, unsafe or
    laid out differently.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; python train_model.py makes checkpoints.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load would not notice a flipped bit
            damaged = archive.testzip()
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        refuse(path, "holds other things than tensors and plain values, which could be harmful")
    except Exception as error:  # a dozen kinds, for all that a damaged file can hold
        refuse(path, f"is not a readable checkpoint, {type(error).__name__}")
    if damaged:
        refuse(path, "is damaged, a checksum in it is wrong")
    if isinstance(content, dict):
        content.setdefault("labels", {})  # runs from before there was a conditional mode are plain
    check_layout(path, content, layout)
    check_layout(path, content["settings"], SETTINGS)
    if content["labels"]:
        check_layout(path, content["labels"], LABELS)
        rows, counts = content["labels"]["rows"], content["labels"]["counts"]
        if rows.ndim != 2 or counts.shape != rows.shape[:1] or not (counts > 0).any():
            refuse(path, "is not a checkpoint of this program, 'labels' do not fit together")
    present = {key: kind for key, kind in OPTIONAL.items() if key in content}
    check_layout(path, content, present)
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


def restore(part, state, path):
    """Load a state dict into a network or an optimizer.

    Raises UserError if it is one of another architecture.
    """
    try:
        part.load_state_dict(state)
        for parameter, moments in getattr(part, "state", {}).items():
            for name in ("exp_avg", "exp_avg_sq"):  # a fused Adam would read past their end
                if moments[name].shape != parameter.shape:
                    raise ValueError(f"{name} has the shape {tuple(moments[name].shape)}")
    except Exception as error:  # wrong keys, shapes or types, whatever a foreign file holds
        cause = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} was made by another architecture than dcgan.py has now ({cause}). "
            "Undo the change to dcgan.py, or train anew under another RUN_NAME."
        ) from None


def save_run(parts, run, folder):
    """Write checkpoint.pt into a run's folder, unless the run is spoilt. Raises UserError.

    parts: {name: network or optimizer}; run: a namespace with the rest of CHECKPOINT's keys.
    """
    check_finite(parts, run, folder)
    content = {name: part.state_dict() for name, part in parts.items()} | vars(run)
    content["rng_cpu"] = torch.get_rng_state()
    device = run.sums.device
    content["rng_cuda"] = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    save(folder / "checkpoint.pt", content)


def check_finite(parts, run, folder):
    """Raise UserError if a loss or a weight is infinite or not a number."""
    tensors = [run.sums, *parts["generator"].parameters(), *parts["discriminator"].parameters()]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise UserError(
            f"the losses of {folder} are no longer finite, in epoch {run.epoch + 1}. The "
            "last good checkpoint is kept. Train anew with a lower LEARNING_RATE or with "
            "--PRECISION=float32, under another RUN_NAME or with --RESUME=never"
        )


def take_up(saved, parts, run, path):
    """Put what save_run wrote into the parts and the run, and set the random number generators.

    Raises UserError if the two do not fit.
    """
    for name, part in parts.items():
        restore(part, saved[name], path)
    for name, fresh in vars(run).items():
        if isinstance(fresh, torch.Tensor):
            if saved[name].shape != fresh.shape or saved[name].dtype != fresh.dtype:
                refuse(path, f"does not fit this run, {name!r} has another shape")
            setattr(run, name, saved[name].to(fresh.device))
        elif name not in ("settings", "machine"):  # these are this process's own
            setattr(run, name, saved[name])
    try:
        torch.set_rng_state(saved["rng_cpu"])
        if run.sums.is_cuda and saved["rng_cuda"] is not None:
            torch.cuda.set_rng_state(saved["rng_cuda"], run.sums.device)
    except (KeyError, RuntimeError, TypeError):
        refuse(path, "does not fit this run, its random states are odd")
