"""What the tests share: a data set, a folder for each test, and a way to run a script."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dcgan
from common import dataset

REPO = Path(__file__).resolve().parent.parent
REAL_DATA = [REPO / "data", REPO.parent / "shared" / "data"]  # where PneumoniaMNIST may lie


def signal_in_step(step, number, monkeypatch):
    """Send this process a signal in the middle of a step of its training, as Ctrl-C would."""
    forward, calls = dcgan.Generator.forward, []

    def forward_with_signal(generator, *inputs):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(number)
        return forward(generator, *inputs)

    monkeypatch.setattr(dcgan.Generator, "forward", forward_with_signal)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """A DATA_DIR with the whole phantom data set in it, drawn once for all tests."""
    folder = tmp_path_factory.mktemp("phantom")
    dataset.write_phantom(folder / "phantom.npz")
    return folder


@pytest.fixture(scope="session")
def real_dir():
    """A DATA_DIR with the real PneumoniaMNIST, or a skip."""
    for folder in REAL_DATA:
        if (folder / "pneumoniamnist.npz").exists():
            return folder
    pytest.skip("PneumoniaMNIST is not here: put pneumoniamnist.npz into data/ to run this test")


@pytest.fixture
def small(tmp_path, monkeypatch, phantom_dir):
    """An empty working folder, and the arguments of a run on 200 phantoms: 3 steps an epoch."""
    monkeypatch.chdir(tmp_path)
    return ["--DATASET=phantom", f"--DATA_DIR={phantom_dir}", "--TRAIN_FRACTION=0.02"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a script as `python script arguments` does, but without a new process.

    Returns its exit status and all it printed, with the message of a UserError.
    """

    def run_script(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.syspath_prepend(str((REPO / script).parent))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        message, status = "", 0
        try:
            runpy.run_path(str(REPO / script), run_name="__main__")
        except SystemExit as stop:  # as the interpreter does: a text is an error message
            message = stop.code if isinstance(stop.code, str) else ""
            status = 1 if message else stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        printed = capfd.readouterr()
        return SimpleNamespace(status=status, text=printed.out + printed.err + message)

    return run_script


@pytest.fixture
def start():
    """Start a script in a process of its own, to be killed; what still runs at the end is."""
    processes = []

    def start_script(script, *arguments, **streams):
        command = [sys.executable, str(REPO / script), *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | streams
        processes.append(subprocess.Popen(command, text=True, **streams))
        return processes[-1]

    yield start_script
    for process in processes:
        process.kill()
        process.wait()
