"""What every script does around its main: output streams, signals, and errors of the machine.

Imports nothing slow: a script calls prepare before it imports torch, which takes seconds.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from common import settings
from common.errors import os_errors, short_of_memory

PACKAGES = ("torch", "torchvision", "medmnist", "numpy", "matplotlib", "imageio", "PIL", "tqdm")
PACKAGES += ("filelock", "jinja2", "pooch", "psutil")  # of requirements.txt, as they are imported
GRACE_SECONDS = 10  # seconds after which a process that was told to stop is ended in any case


class Output:
    """A text stream whose failures do not end the program: what cannot be shown is dropped.

    Lines are written at once, so that a log is up to date. All else is as in the stream: that of
    Python or of a notebook, or None where there is none.
    """

    def __init__(self, stream):
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(
                text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            )
        except (OSError, ValueError):  # a full disk, a reader that is gone; a closed stream
            self.give_up()
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.give_up()

    def give_up(self):
        """Let the null device take what is in the buffer, and all that follows."""
        null = open(os.devnull, "w")  # noqa: SIM115
        with contextlib.suppress(OSError, ValueError):  # a notebook's stream has no descriptor
            os.dup2(null.fileno(), self.stream.fileno())
        self.stream = null


def prepare():
    """Prepare a script for its slow imports. Exits with status 1 if they cannot succeed.

    Nothing that is wrong with the output streams, and no matplotlibrc, will end it. Ctrl-C ends it,
    even where a module has a bare except. SIGUSR1, a scheduler's warning, does not.
    """
    with contextlib.suppress(OSError):  # or files would get the numbers of closed streams
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Output):
            setattr(sys, name, Output(getattr(sys, name)))
    if "IPython" not in sys.modules:  # a notebook is to keep its own
        os.environ["MATPLOTLIBRC"], os.environ["MPLBACKEND"] = os.devnull, "agg"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, exit_now)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.version_info < (3, 11):  # noqa: UP036, to say so
        sys.exit(f"error: Python 3.11 or newer is needed, {sys.executable} is older")
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        wanted = shlex.quote(os.path.join(os.path.dirname(sys.argv[0]), "requirements.txt"))
        sys.exit(
            f"error: {sys.executable} lacks {', '.join(missing)}. Activate the environment that "
            f"has them, or run pip install -r {wanted}"
        )


def exit_now(number=signal.SIGINT, _=None, line="interrupted"):
    """End this process, with a line and no clean-up. A killed process leaves no more behind."""
    with contextlib.suppress(OSError):
        os.write(1, f"\n{line}\n".encode() if line else b"")
    os._exit(128 + number)


def run(main, namespace, memory=()):
    """Run a script: main(constants), with its constants set from the command line.

    namespace: the script's globals(); memory: the constants to lower when memory is short. Exits
    with status 1 after an error that the user can fix, 130 after SIGINT and 143 after SIGTERM.
    """
    timers, stopped, tell_unraisable = [], [], sys.unraisablehook

    def stop(number, _):
        stopped.append(number)
        sys.unraisablehook = lambda _: None  # the exception below, in a __del__
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, exit_now)
        # A bare except or a __del__ may swallow what is raised here.
        timer = threading.Timer(GRACE_SECONDS, exit_now, [number, None, ""])
        timer.daemon = True
        timer.start()
        timers.append(timer)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
    try:
        with short_of_memory(*memory), os_errors():
            main(settings.override(namespace))
    except BaseException as error:
        # Compiled code may put an exception of its own in the place of the one that stop raised.
        if isinstance(error, KeyboardInterrupt):
            stopped.append(signal.SIGINT)
        if not stopped:
            raise
        signal.signal(signal.SIGINT, lambda number, _: exit_now(number, line=""))
        if stopped[0] == signal.SIGINT:
            print("\ninterrupted; every file is complete, or as it was before")
        sys.exit(128 + stopped[0])
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = tell_unraisable
        sys.stdout.flush()


@contextlib.contextmanager
def catch_signals():
    """Yield what signals ask for: save, after any of them, and stop, the number of the one to obey.

    SIGUSR1 asks to save only, SIGINT and SIGTERM to stop. When the block ends, the handlers of
    before are put back, as in a notebook.
    """
    asked = SimpleNamespace(save=False, stop=None)

    def note(number, _):
        asked.save = True
        if number in (signal.SIGINT, signal.SIGTERM):
            asked.stop = asked.stop or number

    numbers = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # Python allows handlers in the main thread only
    before = {number: signal.signal(number, note) for number in {*numbers}}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: of C


def command(name, **options):
    """Return the command line that runs a script of this repository from the working folder.

    options: its constants, {name: value}; those that are as in the script are left out.
    """
    path = Path(__file__).resolve().parent.parent / name
    source = path.read_text(encoding="utf-8")
    same_drive = path.anchor == Path.cwd().anchor
    words = ["python", os.path.relpath(path) if same_drive else str(path)]
    for key, value in options.items():
        if not re.search(f"^{key} = {re.escape(json.dumps(value))}  #", source, re.MULTILINE):
            words.append(f"--{key}={value}")
    return shlex.join(words)
