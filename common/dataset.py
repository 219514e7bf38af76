"""Images and labels of a data set as tensors: from a file, a download, or the phantom."""

import difflib
import hashlib
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import one_hot

from common import download, phantom
from common.files import atomic_write
from common.settings import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # medmnist warns of a read-only home, where we write nothing
    from medmnist import INFO

INFO = {name: info for name, info in INFO.items() if not name.endswith("3d")}
INFO["phantom"] = {
    "python_class": "Phantom (computer-drawn, not patients)",
    "task": "multi-label, binary-class",
    "label": dict(enumerate(phantom.LABELS)),
    "n_samples": phantom.SPLITS,
}
NAMES = list(INFO)
KEYS = [f"{split}_{part}" for split in ("train", "val", "test") for part in ("images", "labels")]
SIZE = 28  # pixels, height and width
NO_FINDING = "no finding"


def title(name):
    """Return the name of a data set as logs and pictures show it."""
    return INFO[name]["python_class"]


def check_name(name):
    """Raise UserError, with the nearest legal name, unless the data set is known."""
    if name not in NAMES:
        near = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"DATASET={name}: {hint}Known are {', '.join(NAMES)}.")


def load(name, split="train", folder="data", fraction=1.0, seed=0):
    """Return one split as (images, labels, source).

    images: uint8 tensor (N, C, 28, 28), C is 1 or 3, 0 is black. labels: integer tensor (N, L);
    ChestMNIST has L = 14 columns, any number of which can be 1 (all zero: no finding).
    source: the file and where it comes from, in words.
    fraction: seeded random part of the split, in (0, 1].
    Raises UserError if there is no usable file and none can be made or downloaded.
    """
    check_name(name)
    path = Path(folder) / f"{name}.npz"
    if not path.exists():
        if name == "phantom":
            write_phantom(path)
        else:
            download.download(name, path, INFO[name]["url"], INFO[name]["MD5"])
    images, labels = read_split(path, split, name)
    if fraction < 1.0:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        chosen = order[: max(1, round(fraction * len(images)))]
        images, labels = images[chosen], labels[chosen]
    return images, labels, f"{path}, {provenance(name, path)}"


def to_network(pixels):
    """uint8 pixels [0, 255] -> float32 [-1, 1], the range of the generator's tanh."""
    return pixels.float().div_(127.5).sub_(1.0)


def to_pixels(images):
    """Images in [-1, 1] -> uint8 pixels [0, 255], rounded; the inverse of to_network."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_hwc(images):
    """uint8 (N, C, 28, 28) -> array (N, 28, 28), or (N, 28, 28, 3) for colour, as in MedMNIST."""
    return images.permute(0, 2, 3, 1).squeeze(-1).numpy()


def encode_labels(name, labels):
    """Return labels (N, L), as load returns them, as float vectors (N, K) of 0 and 1.

    Where an image can have several findings or none, as in ChestMNIST, K = L and each finding has
    a column. Where each has one class, K is the number of classes, one column of which is 1.
    Raises UserError for labels that the data set cannot have.
    """
    names = label_names(name)
    multilabel = is_multilabel(name)
    columns, highest = (len(names), 1) if multilabel else (1, len(names) - 1)
    if labels.shape[1] != columns or labels.min() < 0 or labels.max() > highest:
        raise UserError(
            f"the labels of {name} have {labels.shape[1]} columns of {labels.min()} to "
            f"{labels.max()}, not {columns} of 0 to {highest}, so they cannot be learned. Put the "
            "right ones into the file, or train with --CONDITIONAL=False"
        )
    return labels.float() if multilabel else one_hot(labels[:, 0], len(names)).float()


def label_names(name):
    """Return what the columns of a data set's label vectors stand for."""
    return list(INFO[name]["label"].values())


def is_multilabel(name):
    """Whether an image of a data set can have several labels or none, not exactly one."""
    return INFO[name]["task"].startswith("multi-label")


def single_labels(name, label_counts):
    """Return {label: the vector of it alone, uint8 (K,)} for the labels in label_counts.

    Where an image can have no label, the vector of zeros is called "no finding".
    """
    names, rows = label_names(name), label_counts["rows"]
    alone = zip(names, torch.eye(len(names), dtype=torch.uint8), rows.T, strict=True)
    found = {label: vector for label, vector, column in alone if column.any()}
    if is_multilabel(name) and not rows.any(dim=1).all():
        found[NO_FINDING] = torch.zeros(len(names), dtype=torch.uint8)
    return found


def has_labels(vectors, wanted):
    """Which label vectors (N, K) have all labels of one vector (K,); of a zero vector, no label."""
    return vectors[:, wanted > 0].all(dim=1) if wanted.any() else ~vectors.any(dim=1)


def decode_labels(name, vectors):
    """Return label vectors (N, K) as files hold them, uint8 (N, L): encode_labels reversed."""
    if is_multilabel(name) or vectors.shape[1] == 0:
        return vectors.to(torch.uint8)
    return vectors.argmax(dim=1, keepdim=True).to(torch.uint8)


def count_labels(labels):
    """Return {"rows": distinct label vectors, uint8 (U, K), "counts": how often each occurs, (U,)}.

    Returns an empty dict if K is 0, as in a run without CONDITIONAL.
    """
    if labels.shape[1] == 0:
        return {}
    rows, counts = labels.to(torch.uint8).unique(dim=0, return_counts=True)
    return {"rows": rows, "counts": counts}


def draw_labels(label_counts, n, random):
    """Draw n label vectors, float (n, K), each row of label_counts as often as it was counted.

    random: a torch.Generator. K is 0 if label_counts is empty.
    """
    if not label_counts:
        return torch.zeros(n, 0)
    chosen = label_counts["counts"].double().multinomial(n, replacement=True, generator=random)
    return label_counts["rows"][chosen].float()


def sha256(images, labels=None):
    """Return the SHA-256 of images and label vectors, by which a run knows its data again."""
    digest = hashlib.sha256(images.numpy())
    if labels is not None:
        digest.update(labels.numpy())
    return digest.hexdigest()


def is_official(name, path):
    """Whether a file is MedMNIST's own, by its MD5. False for the phantom."""
    if name == "phantom":
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, download.md5).hexdigest() == INFO[name]["MD5"]


def provenance(name, path):
    """Return in words where a file comes from."""
    if name == "phantom":
        return "drawn by phantom.py: computer-drawn phantoms, not patients"
    if is_official(name, path):
        return "the official file (MD5 agrees)"
    return "not the official file (its MD5 differs), used as it is"


def read_split(path, split, name):
    """Read images (N, C, 28, 28) and labels (N, L) from a file in MedMNIST's layout.

    Raises UserError, with the cause and the fix, if the file is damaged or of another layout.
    """

    def refuse(cause):
        if name == "phantom":
            fix = "Move it away, and it is drawn again."
        else:
            fix = f"Move it away to download it again, or replace it from {INFO[name]['url']}"
        raise UserError(f"{path} {cause}. {fix}")

    try:
        with np.load(path, allow_pickle=False) as arrays:  # pickles can run code
            missing = [key for key in KEYS if key not in arrays.files]
            if not missing:
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except Exception as error:  # NumPy and zipfile raise a dozen kinds for damaged files
        cause = str(error) if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        refuse(f"cannot be read as an .npz file of plain arrays ({cause})")
    if missing:
        refuse(f"is not in MedMNIST's layout: it lacks {', '.join(missing)}")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        refuse("holds something other than arrays")
    if images.dtype != np.uint8:
        refuse(f"has {split}_images of type {images.dtype}, not uint8")
    if images.shape[1:] not in ((SIZE, SIZE), (SIZE, SIZE, 3)):
        refuse(f"has {split}_images of shape {images.shape}, not (N, 28, 28) or (N, 28, 28, 3)")
    if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2):
        refuse(f"has {split}_labels of type {labels.dtype} and shape {labels.shape}, not (N, L)")
    if len(labels) != len(images):
        refuse(f"has {len(images)} {split}_images but {len(labels)} {split}_labels")
    if len(images) == 0:
        refuse(f"has no {split}_images")
    images = torch.from_numpy(images)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(labels.astype(np.int64)).reshape(len(images), -1)


def write_phantom(path):
    """Draw the phantom data set and write it in MedMNIST's layout."""
    print(f"drawing the phantom data set into {path}, once ...")
    arrays = {}
    with atomic_write(path) as file:
        for seed, (split, n) in enumerate(phantom.SPLITS.items()):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = phantom.make_split(n, seed)
        np.savez_compressed(file, **arrays)
