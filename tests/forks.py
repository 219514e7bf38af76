"""Scripts in forks of this process, where they can crash, hang or be killed."""

import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def start(command, output="output.txt", environment=()):
    """Start a script in a fork. Returns the number of the process; it writes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        sys.argv = command
        runpy.run_path(str(REPO / command[0]), run_name="__main__")
        status = 0
    except SystemExit as stop:  # as the interpreter does: a text is an error message
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child, output="output.txt", seconds=120):
    """Wait for a fork, at most so long. Returns (status, text); a signal is a negative status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            text = Path(output).read_text(errors="replace")
            return os.waitstatus_to_exitcode(status), text
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, "it hangs"


def run(command):
    return finish(start(command))
