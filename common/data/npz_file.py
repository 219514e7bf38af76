"""Reads the arrays of an .npz file, their headers first: no file can claim more than it holds."""

import math
import shutil
import warnings

import numpy as np
import torch

from common import files

TEXTS = 2**20  # bytes of all labels' names
LARGE = 2**30  # bytes; a larger array must not unpack from less than a hundredth of its size


class Damaged(Exception):
    """An array of a file is not what its header says."""


def read_header(archive, key):
    """Return (shape, dtype) of an array of an open zip file, without its elements.

    Raises Damaged if there are not as many elements as that, or suspiciously many.
    """
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise Damaged(f"{key} has another size than its shape {shape}")
    if size > LARGE and size > 100 * member.compress_size:
        raise Damaged(f"{key} of shape {shape} unpacks to more than a hundred times its size")
    return shape, dtype


def read_array(archive, key, dtype):
    """Return an array of an open zip file as dtype, in C order and the bytes in native order."""
    with archive.open(f"{key}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)  # pickles can run code
    if np.can_cast(array.dtype, dtype) or array.size == 0 or array.max() <= np.iinfo(dtype).max:
        return np.ascontiguousarray(array, dtype=dtype)
    raise Damaged(f"{key} holds values up to {array.max()}")


def read_rows(archive, key, count):
    """Yield (first row, array) for each count rows of an array of an open zip file.

    Only these are in memory, unless the array is in Fortran order.
    """
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, fortran, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
        whole = read_array(archive, key, dtype) if fortran else None
        size = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], count):
            n = min(count, shape[0] - start)
            if fortran:
                yield start, whole[start : start + n]
            else:
                yield start, np.frombuffer(file.read(n * size), dtype).reshape(n, *shape[1:])


def read_texts(archive, key):
    """Return a one-dimensional array of texts of an open zip file as a list. Raises Damaged."""
    shape, dtype = read_header(archive, key)
    if dtype.kind != "U" or len(shape) != 1 or shape[0] * dtype.itemsize > TEXTS:
        raise Damaged(f"{key} is of type {str(dtype)[:40]} and shape {shape}, no list of texts")
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
