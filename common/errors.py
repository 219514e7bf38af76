"""Errors that a user can fix, each told in one line, and what turns others into them."""

import contextlib
import errno
import os
from pathlib import Path

ADVICE = {
    "ENOSPC EDQUOT": "Free some disk space or choose another folder",
    "EFBIG": "Raise the limit on the size of files, ulimit -f",
    "EACCES EPERM": "Change the permissions or choose another folder",
    "EROFS": "Choose a folder in which files can be written",
    "ENAMETOOLONG": "Choose a shorter name",
    "EMFILE ENFILE": "Raise the limit on open files, ulimit -n",
    "ENOMEM": "Close other programs",
    "ENOLCK ENOSYS ENOTSUP EOPNOTSUPP": "The file system has no locks: choose a folder on another",
}


class UserError(SystemExit):
    """An error the user can fix: Python prints its one-line message and exits with status 1.

    lines: the message, and what is to be printed below it.
    """

    def __init__(self, *lines):
        super().__init__("\n".join(["error: " + printable(lines[0]), *map(printable, lines[1:])]))


def printable(text):
    """Return a text with all that is no letter for a terminal, as \\x1b, written as repr does."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def os_errors(path=None, doing="used", note=""):
    """Turn an OSError into a UserError: what cannot be done with a path, why, and a fix.

    path: by default the one that the error names; an error that names none stays as it is. doing: a
    participle, as "written"; note: a sentence on what became of the file.
    """
    try:
        yield
    except OSError as error:
        path = path or error.filename
        if path is None:
            raise
        name = errno.errorcode.get(error.errno, "other")
        fixes = (fix for names, fix in ADVICE.items() if name in names.split())
        advice = next(fixes, "Move what is in its place, or choose another folder")
        cause = f"{os.fsdecode(path)} cannot be {doing}: {error.strerror or error}."
        cause += f" {note}" if note else ""
        raise UserError(f"{cause} {advice}, then run the command again.") from None


@contextlib.contextmanager
def reading(path, missing=""):
    """Turn trouble in reading a file, other than damage to it, into a UserError.

    missing: what to say where the file does not exist. Trouble that passes, as missing rights or
    too little memory, is told as such, so that nobody throws a whole file away.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would wait, a device would never end
            raise UserError(f"{path} is not a file to be read. Move it away, or name another one.")
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {missing}".strip()) from None
    except (OSError, MemoryError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "too little memory"
        raise UserError(
            f"{path} cannot be read now: {cause}. The file may be whole: fix that, and run the "
            "same command again."
        ) from None


@contextlib.contextmanager
def short_of_memory(*constants):
    """Raise a UserError that names the constants to lower, should memory be short in the block.

    Also a decorator of functions.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
        words += ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in words):
            raise
        fix = f"Lower {' or '.join(constants)}, or close" if constants else "Close"
        raise UserError(f"there is too little memory. {fix} other programs.") from None
