"""Reads the arrays of an .npz file, their headers first: no file can claim more than it holds."""

import contextlib
import math
import shutil
import warnings
import zipfile

import numpy as np
import torch

from common import errors, files
from common.data.layout import SPLITS
from common.errors import UserError

KEYS = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
TEXTS = 2**20  # bytes of all labels' names
LARGE = 2**30  # bytes; a larger array must not unpack from less than a hundredth of its size


class BadFile(Exception):
    """A file cannot be used; the message, such as "has no train_images", goes on after its path."""


@contextlib.contextmanager
def opened(path, fix):
    """Yield an .npz file as an open zip file. fix: a sentence for the message.

    Raises UserError if it is damaged, if the block raises BadFile, or if it cannot be read now.
    """
    try:
        with errors.reading(path), zipfile.ZipFile(path) as archive:
            yield archive
    except BadFile as error:
        raise UserError(f"{path} {error}. {fix}") from None
    except Exception as error:  # NumPy and zipfile raise a dozen kinds for damaged files
        cause = error if isinstance(error, zipfile.BadZipFile) else type(error).__name__
        cause = f"cannot be read as an .npz file of plain arrays ({cause})"
        raise UserError(f"{path} {cause}. {fix}") from None


def read_layout(archive, split):
    """Return the shapes of a split's images and labels, from their headers alone.

    Raises BadFile unless the open zip file is in MedMNIST's layout: uint8 images (N, S, S) or
    (N, S, S, 3), of any S, and integer labels (N,) or (N, L).
    """
    pixels, truth = f"{split}_images", f"{split}_labels"
    missing = [key for key in KEYS if f"{key}.npy" not in archive.namelist()]
    if missing:
        raise BadFile(f"is not in MedMNIST's layout: it lacks {', '.join(missing)}")
    shape, dtype = read_header(archive, pixels)
    if dtype != np.uint8:
        raise BadFile(f"has {pixels} of type {str(dtype)[:40]}, not uint8")
    if len(shape) < 3 or shape[1] != shape[2] or shape[3:] not in ((), (3,)):
        raise BadFile(f"has {pixels} of shape {shape}, not (N, S, S) or (N, S, S, 3)")
    rows, dtype = read_header(archive, truth)
    if dtype.kind not in "iub" or len(rows) not in (1, 2):
        raise BadFile(
            f"has {truth} of type {str(dtype)[:40]} and shape {rows}, not integers (N, L)"
        )
    if rows[0] != shape[0]:
        raise BadFile(f"has {shape[0]} {pixels} but {rows[0]} {truth}")
    return shape, rows


def parse_header(file):
    """Return (shape, whether in Fortran order, dtype) from the start of an .npy file."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def read_header(archive, key):
    """Return (shape, dtype) of an array of an open zip file, without its elements.

    Raises BadZipFile if there are not as many elements as that, or suspiciously many.
    """
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as file:
        shape, _, dtype = parse_header(file)
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise zipfile.BadZipFile(f"{key} has another size than its shape {shape}")
    if size > LARGE and size > 100 * member.compress_size:
        cause = f"{key} of shape {shape} unpacks to more than a hundred times its size"
        raise zipfile.BadZipFile(cause)
    return shape, dtype


def read_array(archive, key, dtype):
    """Return an array of an open zip file as dtype, in C order and the bytes in native order."""
    with archive.open(f"{key}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)  # pickles can run code
    if np.can_cast(array.dtype, dtype) or array.size == 0 or array.max() <= np.iinfo(dtype).max:
        return np.ascontiguousarray(array, dtype=dtype)
    raise zipfile.BadZipFile(f"{key} holds values up to {array.max()}")


def read_rows(archive, key, count):
    """Yield (first row, array) for each count rows of an array of an open zip file.

    Only these are in memory, unless the array is in Fortran order.
    """
    with archive.open(f"{key}.npy") as file:
        shape, fortran, dtype = parse_header(file)
        whole = read_array(archive, key, dtype) if fortran else None
        size = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], count):
            n = min(count, shape[0] - start)
            if fortran:
                yield start, whole[start : start + n]
            else:
                yield start, np.frombuffer(file.read(n * size), dtype).reshape(n, *shape[1:])


def read_texts(archive, key):
    """Return a one-dimensional array of texts of an open zip file as a list. Raises BadZipFile."""
    shape, dtype = read_header(archive, key)
    if dtype.kind != "U" or len(shape) != 1 or shape[0] * dtype.itemsize > TEXTS:
        kind = f"type {str(dtype)[:40]} and shape {shape}"
        raise zipfile.BadZipFile(f"{key} is of {kind}, no list of texts")
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False).tolist()


def map_array(archive, key, path):
    """Return an array of an open zip file at path as a read-only tensor that stays on the disk.

    The array is unpacked once, beside path. The checksum in the name tells arrays of the same name
    apart. Raises UserError if the disk is full.
    """
    member = archive.getinfo(f"{key}.npy")
    unpacked = path.with_name(f"{path.stem}_{key}_{member.CRC:08x}.npy")
    files.make_once(unpacked, unpack, archive, member, unpacked)
    with warnings.catch_warnings(action="ignore"):  # torch has no read-only tensors, and warns
        return torch.from_numpy(np.load(unpacked, mmap_mode="r"))


def unpack(archive, member, path):
    print(f"unpacking {path}, once: memory is too small for {member.file_size / 1e9:.1f} GB ...")
    with archive.open(member) as packed, files.atomic_write(path) as file:
        shutil.copyfileobj(packed, file, 2**20)
