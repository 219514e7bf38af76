"""Files that are whole or not there, and the folders of a run, which belong to one process."""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from settings import UserError


@contextlib.contextmanager
def replacing(path):
    """Yield a binary file that takes the place of path in one rename when the block ends well.

    When the block fails or the process dies, whatever stood at path before is untouched.
    Raises UserError if the file cannot be written (no permission, disk full, ...).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        make_folder(path.parent)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the real name
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. What stood there before "
            "is untouched; make room or choose another folder, and run the same command again."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path):
    """Yield an empty hidden folder that becomes path in one rename when the block ends well.

    When the block fails it is removed; what a killed process left is removed the next time.
    Raises UserError if path exists, another process is making it, or it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already. Move it away, or choose another OUT.")
    hidden = path.with_name(f".{path.name}.tmp")
    with lock(path, doing="writing", constant="OUT"):
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir()
            yield hidden
            getattr(os, "sync", int)()  # or a power cut could leave empty files; not on Windows
            os.rename(hidden, path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror or error}. Nothing of it was kept; "
                "make room or choose another OUT, and run the same command again."
            ) from None
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def make_folder(folder):
    """Create a folder and its parents, and return it as a Path. Raises UserError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be made: {error.strerror or error}. "
            "Move what is in its way, or choose another folder."
        ) from None
    return Path(folder)


def run_folder(parent, run_name):
    """Return parent/run_name as a Path; nothing is created. Raises UserError for an odd name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_name):
        raise UserError(
            f"RUN_NAME={run_name}: legal are 1 to 100 letters, digits, '.', '_' and '-', "
            f"the first one a letter or a digit; it names a folder in {parent}"
        )
    folder = Path(parent) / run_name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Move it, or choose another RUN_NAME.")
    return folder


def lock(folder, doing="training the run", constant="RUN_NAME"):
    """Keep other processes off a folder until this one ends, however it ends. Raises UserError.

    doing, constant: what the other process does, and what to change to be apart from it.
    The lock file stands beside the folder, so that the folder can be renamed under the lock.
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


def set_aside(*folders):
    """Rename folders of one run to the first free RUN-old-1, RUN-old-2, ... and return that name.

    The number is the same for all of them; a folder that does not exist is passed over.
    """
    number = 1
    while any(folder.with_name(f"{folder.name}-old-{number}").exists() for folder in folders):
        number += 1
    for folder in folders:
        if folder.exists():
            try:
                folder.rename(folder.with_name(f"{folder.name}-old-{number}"))
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be renamed: {error.strerror or error}. "
                    "Rename it by hand, or choose another RUN_NAME."
                ) from None
    return f"{folders[0].name}-old-{number}"
