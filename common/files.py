"""Atomic writes of files and folders, and locks on folders."""

import contextlib
import csv
import io
import os
import secrets
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from common.settings import UserError


@contextlib.contextmanager
def atomic_write(path):
    """Yield a binary file that replaces path in one rename when the block succeeds.

    If the block fails or the process is killed, the file that was at path is untouched. Raises
    UserError if the file cannot be written (no permission, disk full, ...).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        make_folder(path.parent)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file at path
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. The file that was there is "
            "untouched. Free some disk space or choose another folder, then run the command again."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_csv(path, rows):
    """Write a list of dicts with the same keys as a .csv file. Raises UserError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


@contextlib.contextmanager
def new_folder(path):
    """Yield an empty hidden folder that is renamed to path when the block succeeds.

    If the block fails, the folder is removed; what a killed process left is removed the next time.
    Raises UserError if path exists, another process is writing it, or it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already. Move it away, or choose another OUT.")
    hidden = path.with_name(f".{path.name}.tmp")
    with lock(path, doing="writing", constant="OUT"):
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir()
            yield hidden
            getattr(os, "sync", int)()  # or a power cut could leave empty files; Windows has none
            os.rename(hidden, path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Nothing was left behind. "
                "Free some disk space or choose another OUT, then run the command again."
            ) from None
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def make_folder(folder):
    """Create a folder and its parents, and return it as a Path. Raises UserError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be created: {error.strerror or error}. "
            "Move the file that is in its place, or choose another folder."
        ) from None
    return Path(folder)


def lock(folder, doing="training the run", constant="RUN_NAME"):
    """Lock a folder until this process ends, in whatever way. Raises UserError if it is locked.

    doing, constant: for the message, what the other process does and which constant to change.
    The lock file is beside the folder, so that the folder can be renamed while it is locked.
    """
    parent = make_folder(folder.parent)
    try:
        return FileLock(parent / f".{folder.name}.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is {doing} {folder}. "
            f"Wait for it, stop it, or choose another {constant}."
        ) from None
    except OSError as error:
        raise UserError(
            f"the folder {parent} is not writable: {error.strerror or error}. "
            "Change its permissions, or choose another folder."
        ) from None
