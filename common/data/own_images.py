"""Reads your own images, a folder of files or an .npz, into one file in MedMNIST's layout.

    scans/*.png                  neither labels nor splits
    scans/NORMAL/*.png           the folders' names are the labels, as in torchvision's ImageFolder
    scans/train/NORMAL/*.png     there are splits, too (layout.py)
    scans/labels.csv             has the labels, if LABELS_CSV names it (table.py)

Besides MedMNIST's six arrays the file holds label_names, and made_from: digests by which a changed
folder is noticed. docs/FILES.md says how images are cropped and resized.
"""

import hashlib
import os
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import errors, files
from common.data import image_file, layout, npz_file, table
from common.data.layout import MAX_LABELS, SPLITS
from common.errors import UserError, printable

ROWS = 256  # images of an .npz in memory at a time
VERSION = 3  # of the reading; a higher one has all images read again


def locate(text):
    """Return an absolute Path for a path as a user writes it."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def short_name(text, size, hint):
    """Return what the images at a path are called: its last part, legal as the name of a run.

    The file that was made of scans/ for a size of 28, scans_28.npz, is called scans as well.
    hint: a sentence for the message. Raises UserError if there is nothing at the path.
    """
    path = locate(text)
    if not path.exists():
        raise UserError(
            f"DATASET={text}: there is no such file or folder. If it was there before, the file "
            f"that was made of it, DATA_DIR/{path.name}_{size}.npz, can be DATASET. {hint}"
        )
    name = path.name
    if path.is_file():
        name = path.stem.removesuffix(f"_{size}")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).lstrip("._-")[:80] or "images"


def read_once(text, target, size, labels_csv=""):
    """Read the images at a path into the file target, unless it holds these very images.

    size: pixels, height and width in target; labels_csv: a table of their labels, or "". Raises
    UserError if no image can be read, or if the file target is there and was made of others.
    """
    source, labels = locate(text), locate(labels_csv) if labels_csv else None
    if target.exists() and target.samefile(source):  # it is to be used as it is
        return
    listing, passed_over = list_images(source)
    content = listing
    if labels:
        with errors.reading(labels):
            content = [listing, hashlib.sha256(labels.read_bytes()).hexdigest()]
    made_from = [digest(VERSION, content), digest(str(source))]
    if is_made_from(target, made_from, source):
        return
    with files.lock(target, doing="making", constant=None):
        if is_made_from(target, made_from, source):  # by another process meanwhile
            return
        files.remove_leftovers(target.parent, target.name)
        print(f"reading {printable(str(source))} into {target}, once ...")
        if passed_over:
            print(f"passed over, as they are no images: {passed_over}")
        if source.is_dir():
            arrays = read_folder(source, [path for path, _, _ in listing], target, size, labels)
        else:
            arrays = read_npz(source, size)
        with files.atomic_write(target) as file:
            np.savez_compressed(file, **arrays, made_from=np.array(made_from))
            file.flush()
            if target.exists() and checksums(target) != checksums(file.name):
                (old,) = files.old_names(target)
                target.rename(old)  # a run may have been trained on it
                print(
                    f"the images have changed: what {target} held is now {old}. To go on with a "
                    f"run that was trained on it, rename it back and give --DATASET={target}"
                )


def checksums(path):
    """Return the checksums of the arrays in a file but made_from, None if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        return None
    return {member.filename: member.CRC for member in members if "made_from" not in member.filename}


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_made_from(target, made_from, source):
    """Whether a file was made of just these images. Raises UserError if not even of that source."""
    if not target.exists():
        return False
    with errors.reading(target):
        try:
            with zipfile.ZipFile(target) as archive:
                old = npz_file.read_texts(archive, "made_from")
        except (KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            old = []
    if old[:1] != made_from[:1] and old[1:] != made_from[1:]:
        raise UserError(
            f"{target} was not made of {source}, and is not replaced. Rename the one or the other, "
            "or choose another DATA_DIR"
        )
    return old[:1] == made_from[:1]


def describe(path, name):
    """Return what is known of the images in a file that read_once made, as medmnist.INFO has it.

    Labels without names are called 0, 1, ... Raises UserError if the file is damaged, or its
    label_names are none.
    """
    with npz_file.opened(path, "Move it away, or make it as docs/FILES.md says.") as archive:
        shapes = {split: npz_file.read_header(archive, f"{split}_images")[0] for split in SPLITS}
        labels = npz_file.read_array(archive, "train_labels", np.int64)
        names = read_names(archive, labels)
    names = names or [str(number) for number in range(min(n_labels(labels), MAX_LABELS))]
    return {
        "python_class": name,
        "task": "multi-label, binary-class" if labels.shape[1:] > (1,) else "multi-class",
        "label": {str(number): label for number, label in enumerate(names[:MAX_LABELS])},
        "n_samples": {split: shape[0] for split, shape in shapes.items()},
    }


def n_labels(labels):
    """Return how many labels (N,) or (N, L) can be: L, or where L is 1 the classes 0, 1, ..."""
    columns = labels.shape[1] if labels.ndim == 2 else 1
    return int(labels.max(initial=0)) + 1 if columns == 1 else columns


def read_names(archive, labels):
    """Return the label_names in an open .npz file, printable, or [] if it has none.

    Raises BadFile unless each label in an array, (N,) or (N, L), has a name of its own.
    """
    if "label_names.npy" not in archive.namelist():
        return []
    names = [printable(text)[:200] for text in npz_file.read_texts(archive, "label_names")]
    if len({*names, ""}) <= len(names):
        raise npz_file.BadFile("has label_names that are empty or there twice")
    if len(names) < n_labels(labels):
        raise npz_file.BadFile(f"has {len(names)} label_names for {n_labels(labels)} labels")
    return names


# --- A folder ---


def list_images(source):
    """Return [(path, size, time)] of the image files in a folder, sorted; of an .npz just its own.

    The paths are tuples of the parts below the folder. Hidden files and folders, symbolic links
    and other kinds of files are left out; the second thing returned says how many, in words.
    """
    if not source.is_dir():
        about = source.stat()
        return [((source.name,), about.st_size, about.st_mtime_ns)], ""
    found, others, folders = [], Counter(), [((), source)]
    while folders:
        parts, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    others["symbolic links"] += 1
                elif entry.is_dir():
                    folders.append(((*parts, entry.name), entry.path))
                elif entry.is_file() and image_file.is_image(entry.path):
                    about = entry.stat()
                    found.append(((*parts, entry.name), about.st_size, about.st_mtime_ns))
                else:
                    others[Path(entry.name).suffix.lower() or "without suffix"] += 1
    words = ", ".join(f"{printable(kind)} {n:,}" for kind, n in others.most_common(10))
    if not found:
        passed = f", only {words}" if words else ""
        raise UserError(f"{source} holds no PNG, JPEG, TIFF or DICOM files{passed}")
    return sorted(found), words


def read_folder(root, paths, target, size, labels_csv=None):
    """Return the arrays of a file in MedMNIST's layout, {name: array}, with label_names.

    paths: as list_images returns them; target: for a message. Raises UserError if no image of the
    training split can be read.
    """
    rows = None
    if labels_csv:
        rows, line = table.match(labels_csv, paths)
        print(line)
    else:
        table.offer(root, paths)
    items = layout.arrange(paths, rows)

    images = np.empty((len(items), size, size), np.uint8)
    kept, bad, own_range, coloured = [], [], 0, []
    for item in tqdm(items, "reading", unit=" images", disable=None):
        path = os.path.join(*item.path)
        try:
            pixels, by_own_range = image_file.read_image(root / path, size)
        except MemoryError:
            raise
        except Exception as error:  # Pillow and pydicom raise dozens of kinds for damaged files
            told = isinstance(error, (image_file.Unusable, Image.DecompressionBombError))
            cause = error if told else type(error).__name__
            bad.append(f"{printable(path)} ({cause})")
            continue
        if pixels.ndim == 3:
            coloured.append(path)
            if images.ndim == 3:
                images = images[..., None].repeat(3, axis=-1)
        images[len(kept)] = pixels if pixels.ndim == images.ndim - 1 else pixels[..., None]
        kept.append(item)
        own_range += by_own_range

    if bad:
        print(
            f"{len(bad):,} of {len(items):,} images cannot be used and are passed over: "
            f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}. They are tried again when "
            f"{target} is moved away"
        )
    if own_range:
        print(
            f"{own_range:,} images that are not of 8 bits are scaled by the range of each: the "
            "darkest pixel of a file becomes 0, the brightest 255"
        )
    if coloured:
        print(f"in colour, as {len(coloured):,} images are; the first is {printable(coloured[0])}")
    return to_arrays(root, images[: len(kept)], kept)


def to_arrays(root, images, items):
    """Return the arrays of a file in MedMNIST's layout, {name: array}, with label_names."""
    parts, names, numbers = layout.divide(items)
    if not parts["train"]:
        raise UserError(f"none of the images in {root} can be used for training")
    digests = [hashlib.sha256(image).digest() for image in images]
    layout.tell_shared(items, digests, parts, "identical to images in")
    shown = [printable(name)[:200] for name in names]
    if len({*shown}) < len(shown):
        raise UserError(f"{root}: two labels have the same first 200 letters. Shorten one of them")
    arrays = {"label_names": np.array(shown, np.str_)}
    for split, chosen in parts.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], numbers[chosen]
    words = ", ".join(f"{len(chosen):,} {split}" for split, chosen in parts.items())
    print(f"read {words} images, {len(names) or 'no'} labels")
    return arrays


# --- An .npz ---


def read_npz(path, size):
    """Return the arrays of a file in MedMNIST's layout, the images resized, {name: array}.

    Raises UserError if the file is damaged or of another layout, or the images are smaller.
    """
    arrays, kinds = {}, {}
    fix = "docs/FILES.md says what the file of own images holds."
    with npz_file.opened(path, fix) as archive:
        for split in SPLITS:
            pixels, truth = f"{split}_images", f"{split}_labels"
            (n, side, _, *channels), rows = npz_file.read_layout(archive, split)
            if side < size:
                cause = f"has {pixels} of {side}x{side} pixels, fewer than {size}"
                raise npz_file.BadFile(cause)
            if n == 0 and split == "train":
                raise npz_file.BadFile("has no train_images")
            kinds[split] = channels, rows[1:] or (1,)
            if n > 0 and kinds[split] != kinds["train"]:
                cause = f"has {pixels} or {truth} of another layout than in train"
                raise npz_file.BadFile(cause)
            arrays[pixels] = small = np.empty((n, size, size, *channels), np.uint8)
            with tqdm(total=n, desc=split, unit=" images", disable=None) as bar:
                for start, images in npz_file.read_rows(archive, pixels, ROWS):
                    if side != size:
                        images = [image_file.square(Image.fromarray(x), size) for x in images]
                    small[start : start + len(images)] = images
                    bar.update(len(images))
            arrays[truth] = npz_file.read_array(archive, truth, np.int64)
        if names := read_names(archive, arrays["train_labels"]):
            arrays["label_names"] = np.array(names, np.str_)
    return arrays
