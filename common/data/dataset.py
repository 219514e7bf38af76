"""Images and labels of a data set as tensors: from a file, a download, or the phantom."""

import dataclasses
import difflib
import functools
import hashlib
import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from common import errors, files, hardware
from common.data import download, npz_file, own_images, phantom
from common.errors import UserError

with warnings.catch_warnings(action="ignore"):  # of a read-only home, where we write nothing
    from medmnist import INFO

INFO = {name: info for name, info in INFO.items() if not name.endswith("3d")}
INFO["phantom"] = {
    "python_class": "Phantom (computer-drawn, not patients)",
    "task": "multi-label, binary-class",
    "label": {str(number): label for number, label in enumerate(phantom.LABELS)},
    "n_samples": phantom.SPLITS,
}
NAMES = list(INFO)
SIZES = (28, 64, 128, 224)  # pixels, height and width
OFFICIAL = "the official file (MD5 agrees)"
OWN = "your own images"


def title(data):
    """Return what logs and pictures call a data set. data: its name, or what find_info returns."""
    return (INFO[data] if isinstance(data, str) else data)["python_class"]


def sized(name, size):
    """Return what MedMNIST+ calls something at this size: NAME at 28 pixels, NAME_64 and so on."""
    return name if size == 28 else f"{name}_{size}"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """The .npz file of a data set, or of your own images, at one size in pixels."""

    name: str  # as check_name returns it
    folder: str | Path = "data"
    size: int = 28

    @property
    def path(self):
        name = sized(self.name, self.size) if self.name in NAMES else f"{self.name}_{self.size}"
        return Path(self.folder) / f"{name}.npz"


def check_name(name, size=28):
    """Return what a data set is called in the names of files and runs.

    name: that of a data set, or the path of your own images. Raises UserError, with the nearest
    legal name, if it is neither. size: pixels, height and width.
    """
    if name in NAMES:
        return name
    known = f"Known are {', '.join(NAMES)}."
    if "/" in name or os.sep in name or os.path.exists(name):
        short = own_images.short_name(name, size, known)
        return f"own-{short}" if short.lower() in NAMES else short
    near = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"DATASET={name}: {hint}{known} Or it is the path of your own images.")


def find_info(data):
    """Return what is known of a DataFile that `load` has made, a table as in medmnist.INFO."""
    return INFO.get(data.name) or own_images.describe(data.path, data.name)


def load(
    name, split="train", folder="data", fraction=1.0, seed=0, size=28, trained_on="", labels_csv=""
):
    """Return one split as (images, labels, source).

    images: uint8 tensor (N, C, size, size), C is 1 or 3, 0 is black; in memory, or mapped from a
    file where they would fill more than half of it. labels: integer tensor (N, L); ChestMNIST has
    L = 14 columns, any number of which can be 1 (all zero: no finding). source: the file and where
    it comes from, in words.
    name: of a data set, or the path of your own images, which are first read into a file in folder.
    fraction: seeded random part of the split, in (0, 1].
    labels_csv: a table of the labels of your own images in a folder, or "".
    trained_on: what a run was trained on, in words. Where it is given, name is what check_name
    returned for it, and the file is only read: if it is missing, that is an error that says so, and
    nothing is drawn, downloaded or converted.
    Raises UserError if there is no usable file and none can be made or downloaded.
    """
    given, name = name, name if trained_on else check_name(name, size)
    data = DataFile(name, folder, size)
    path = data.path
    if labels_csv and (name in NAMES or not own_images.locate(given).is_dir()):
        raise UserError(f"LABELS_CSV={labels_csv}: legal with a folder of images as DATASET")
    if trained_on:
        if not path.exists():
            fix = "give the folder of that file as --DATA_DIR"
            raise UserError(f"{path} does not exist. {trained_on}; {fix}")
    elif name == "phantom":
        files.make_once(path, write_phantom, path, size)
    elif name in NAMES:
        url, md5 = (INFO[name][sized(key, size)] for key in ("url", "MD5"))
        files.make_once(path, download.download, sized(name, size), path, url, md5)
    else:
        own_images.read_once(given, path, size, labels_csv)
    lacks = split != "train" and name not in NAMES  # your own images need no other splits
    images, labels = read_split(data, split, may_be_empty=lacks)
    if fraction < 1.0:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        chosen = order[: max(1, round(fraction * len(images)))]
        images, labels = images[chosen], labels[chosen]
    return images, labels, f"{path}, {provenance(data)}"


def to_network(pixels):
    """uint8 pixels [0, 255] -> float32 [-1, 1], the range of the generator's tanh."""
    return pixels.float().div_(127.5).sub_(1.0)


def to_pixels(images):
    """Images in [-1, 1] -> uint8 pixels [0, 255], rounded; the inverse of to_network."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_hwc(images):
    """uint8 (N, C, S, S) -> array (N, S, S), or (N, S, S, 3) for colour, as in MedMNIST."""
    return images.permute(0, 2, 3, 1).squeeze(-1).numpy()


def sha256(images, labels=None):
    """Return the SHA-256 of images and label vectors, by which a run knows its data again."""
    digest = hashlib.sha256()
    for part in images.split(1024):  # mapped ones need not fit into memory
        digest.update(part.contiguous().numpy())
    if labels is not None:
        digest.update(labels.numpy())
    return digest.hexdigest()


def is_official(data):
    """Whether a DataFile is MedMNIST's, by its MD5. False for the phantom and your own images."""
    if "MD5" not in INFO.get(data.name, {}):
        return False
    with errors.reading(data.path):
        about = data.path.stat()
        digest = md5_of(data.path, about.st_size, about.st_mtime_ns, about.st_ino)
    return digest == INFO[data.name][sized("MD5", data.size)]


@functools.lru_cache  # a report asks four times, and files can have gigabytes
def md5_of(path, *_):
    """Return the MD5 of a file; what else is given tells a file from one that replaced it."""
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)  # FIPS mode refuses it otherwise
    with open(path, "rb") as file:
        return hashlib.file_digest(file, md5).hexdigest()


def provenance(data):
    """Return in words where a DataFile comes from."""
    if data.name == "phantom":
        return "drawn by phantom.py: computer-drawn phantoms, not patients"
    if data.name not in NAMES:
        return OWN
    if is_official(data):
        return OFFICIAL
    return "not the official file (its MD5 differs), used as it is"


def read_split(data, split, may_be_empty=False):
    """Read images (N, C, size, size) and labels (N, L) from a DataFile in MedMNIST's layout.

    The order of elements and bytes in the file makes no difference. may_be_empty: whether N may
    be 0. Images that would fill more than half of the free memory are unpacked into a file beside
    path and mapped, read-only. Raises UserError, with the cause and the fix, if the file is damaged
    or of another layout or size, or cannot be read now.
    """
    name, size, pixels = data.name, data.size, f"{split}_images"
    if name == "phantom":
        fix = "Move it away, and it is drawn again."
    elif name not in NAMES:
        fix = "Move it away, and train_model.py reads your images again."
    else:
        url = INFO[name][sized("url", size)]
        fix = f"Move it away to download it again, or replace it from {url}"
    with npz_file.opened(data.path, fix) as archive:
        shape, _ = npz_file.read_layout(archive, split)
        if shape[1] != size:
            if shape[1] in SIZES:
                other = DataFile(name, "", shape[1]).path
                fix = f"Rename it to {other} and give --SIZE={shape[1]}, or move it away."
            wanted = f"(N, {size}, {size}) or (N, {size}, {size}, 3)"
            raise UserError(f"{data.path} has {pixels} of shape {shape}, not {wanted}. {fix}")
        if shape[0] == 0 and not may_be_empty:
            raise npz_file.BadFile(f"has no {pixels}")
        large = math.prod(shape) > hardware.free_memory() / 2
        if large:
            images = npz_file.map_array(archive, pixels, data.path)
        else:
            images = torch.from_numpy(npz_file.read_array(archive, pixels, np.uint8))
        labels = torch.from_numpy(npz_file.read_array(archive, f"{split}_labels", np.int64))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    images = images if large else images.contiguous()
    return images, labels if labels.ndim == 2 else labels.unsqueeze(1)


def check_channels(data, split, images, channels):
    """Raise UserError unless images (N, C, S, S) have as many channels as those trained on."""
    if images.shape[1] != channels:
        raise UserError(
            f"{data.path} has {split}_images with {images.shape[1]} channels, the run was trained "
            f"on {channels}. Give the folder of the right file as --DATA_DIR"
        )


def write_phantom(path, size=28):
    """Draw the phantom data set and write it in MedMNIST's layout."""
    print(f"drawing the phantom data set into {path}, once ...")
    arrays = {}
    with files.atomic_write(path) as file:
        for seed, (split, n) in enumerate(phantom.SPLITS.items()):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = phantom.make_split(n, seed, size)
        np.savez_compressed(file, **arrays)
