"""Atomic writes of files and folders, and locks on folders."""

import contextlib
import csv
import io
import itertools
import os
import secrets
import shutil
import socket
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError, os_errors, printable


@contextlib.contextmanager
def atomic_write(path):
    """Yield a binary file that replaces path in one rename when the block succeeds.

    If the block fails or the process is killed, the file that was at path is untouched. Raises
    UserError if the file cannot be written (no permission, disk full, ...).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with os_errors(path, "written", "The file that was there is untouched."):
        try:
            make_folder(path.parent)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave an empty file at path
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write(path, content):
    """Write bytes to path atomically. Raises UserError."""
    with atomic_write(path) as file:
        file.write(content)


def write_csv(path, rows):
    """Write dicts as a .csv file with a column for each key of any of them. Raises UserError."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


@contextlib.contextmanager
def new_folder(path):
    """Yield an empty hidden folder that is renamed to path when the block succeeds.

    If the block fails, the folder is removed; what a killed process left is removed the next time.
    Raises UserError if path exists, another process is writing it, or it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already. Move it away, or choose another OUT.")
    hidden = path.with_name(f".{path.name}.tmp")
    with lock(path, "writing", "OUT"), os_errors(path, "written", "Nothing was left behind."):
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir()
            yield hidden
            getattr(os, "sync", int)()  # or a power cut could leave empty files; Windows has none
            os.rename(hidden, path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def make_folder(folder):
    """Create a folder and its parents, and return it as a Path. Raises UserError."""
    with os_errors(f"the folder {folder}", "created"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def remove_leftovers(folder, name=""):
    """Remove what killed processes left half written in a folder and in the folders in it.

    name: of a file, to remove only what was to become that file. Call it under the lock.
    """
    for pattern in (f".{name}*.tmp", f"*/.{name}*.tmp"):
        for path in Path(folder).glob(pattern):
            if path.is_file():  # a folder is new_folder's, which has another lock
                path.unlink(missing_ok=True)


def old_names(*paths):
    """Return what files or folders are to be called when they are put aside, a list of Paths.

    The first free RUN-old-1, RUN-old-2, ..., of a file NAME-old-1.npz; all have the same number.
    """
    for number in itertools.count(1):
        names = []
        for path in paths:
            end = path.suffix if path.is_file() else ""
            names.append(path.with_name(f"{path.name.removesuffix(end)}-old-{number}{end}"))
        if not any(name.exists() for name in names):
            return names


def make_once(path, make, *arguments):
    """Call make(*arguments), which writes the file at path, unless it is there.

    A process that needs the same file meanwhile waits, and has it then. Raises UserError.
    """
    if not path.exists():
        with lock(path, doing="making", constant=None):
            if not path.exists():
                remove_leftovers(path.parent, path.name)
                make(*arguments)


def lock(path, doing="training the run", constant="RUN_NAME"):
    """Lock a file or folder until this process ends, in whatever way.

    doing, constant: for the message, what the other process does and which constant to change;
    with None, wait for the other process. The lock file is beside the path, so that a folder can be
    renamed while it is locked. Raises UserError if it is locked or the file system has no locks.
    """
    parent = make_folder(path.parent)
    file = parent / f".{path.name}.lock"
    with os_errors(file, "locked"), warnings.catch_warnings(record=True, action="always") as warned:
        try:
            held = FileLock(file).acquire(timeout=0)
        except Timeout:
            told = f"another process is {doing} {path}{holder(file)}"
            if constant:
                raise UserError(
                    f"{told}. Wait for it, stop it, or choose another {constant}. If there is "
                    f"none any more, remove {file}"
                ) from None
            print(f"{told}; waiting for it ...")
            held = FileLock(file).acquire(poll_interval=0.5)  # seconds
    if warned:  # by filelock
        print(f"the file system of {parent} has no locks: the file {file} has to do for one")
    else:
        with contextlib.suppress(OSError):
            file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")  # as filelock writes it
    return held


def holder(file):
    """Return in words which process holds a lock file, as " (process 7 on host)", or ""."""
    try:
        process, host, *_ = file.read_text(errors="replace").split()
    except (OSError, ValueError):  # not readable; empty
        return ""
    return printable(f" (process {process[:20]} on {host[:80]})")
