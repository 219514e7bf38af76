"""What the tests share: data, runs that are trained once, and ways to run a script."""

import os

# Bit for bit, two processes, forks: the tests are of the CPU, on a computer with a GPU too. Those
# marked "gpu" start processes that see it.
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks

import contextlib
import inspect
import itertools
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch.optim.optimizer import register_optimizer_step_post_hook

import dcgan
from common.data import dataset
from common.errors import UserError
from report import detective

# The threads of processes that share a few cores wait for each other, up to 70 times as long.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

REPO = Path(__file__).resolve().parent.parent
REAL_DATA = [REPO / "data", REPO.parent / "shared" / "data"]  # where PneumoniaMNIST may lie


def run_script(script, *arguments):
    """Run a script as `python script arguments` does, but without a new process.

    Returns its exit status and the message of a UserError.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    message, status = "", 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        rows = [(pixels, few, 10) for pixels, few, _ in detective.ROWS]  # steps; else a minute
        patch.setattr(detective, "ROWS", rows)
        patch.syspath_prepend(str((REPO / script).parent))
        try:
            runpy.run_path(str(REPO / script), run_name="__main__")
        except SystemExit as stop:  # as the interpreter does: a text is an error message
            message = stop.code if isinstance(stop.code, str) else ""
            status = 1 if message else stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return status, message


NARROW = {
    "generator": {"widths": (64, 48, 32, 16), "bilinear": False, "gain": 1},
    "discriminator": {"widths": (16, 32, 64), "scales": ()},
}


@contextlib.contextmanager
def networks(generator, discriminator):
    """As if the networks in dcgan.py had other default arguments."""
    with pytest.MonkeyPatch.context() as patch:
        for network, new in ((dcgan.Generator, generator), (dcgan.Discriminator, discriminator)):
            names = inspect.signature(network).parameters  # each has a default
            defaults = [new.get(name, names[name].default) for name in names]
            patch.setattr(network.__init__, "__defaults__", tuple(defaults))
        yield


def refusal(action, *arguments):
    """Return the one line in which an action is refused."""
    with pytest.raises(UserError) as refused:
        action(*arguments)
    message = str(refused.value)
    assert message.startswith("error: ") and message.isprintable()
    return message


def write_phantoms(phantom_dir, n, **changes):
    """Write n phantoms of each split to data/phantom.npz. Returns what is in that file."""
    with np.load(phantom_dir / "phantom.npz") as file:
        arrays = {name: array[:n] for name, array in file.items()} | changes
    Path("data").mkdir(exist_ok=True)
    np.savez("data/phantom.npz", **arrays)
    return arrays


def rewrite(path, content):
    """Put bytes, or what torch.save makes of an object, in the place of a file."""
    Path(path).unlink()  # it may be a link to a file on the shelf
    if isinstance(content, bytes):
        Path(path).write_bytes(content)
    else:
        torch.save(content, path)


@contextlib.contextmanager
def signal_in_step(step, number, rank="0"):
    """Send this process a signal in the middle of a step of its training, as Ctrl-C would.

    That is between the discriminator's update and the generator's. rank: the process to send it to,
    where torchrun has started several.
    """
    updates = itertools.count(1)  # two a step

    def after_update(*_):
        if os.environ.get("RANK", "0") == rank and next(updates) == 2 * step - 1:
            signal.raise_signal(number)

    hook = register_optimizer_step_post_hook(after_update)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Let Ctrl-C interrupt the scripts; a shell's background jobs would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """A DATA_DIR with the whole phantom data set in it, drawn once for all tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by the processes that run tests
    folder /= "phantom"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "phantom.npz").exists():
            dataset.write_phantom(folder / "phantom.npz")
    return folder


@pytest.fixture(scope="session")
def real_dir():
    """A DATA_DIR with the real PneumoniaMNIST, or a skip."""
    for folder in REAL_DATA:
        if (folder / "pneumoniamnist.npz").exists():
            return folder
    pytest.skip("PneumoniaMNIST is not here: put pneumoniamnist.npz into data/ to run this test")


@pytest.fixture(scope="session")
def gpu_environment():
    """The environment of a process that sees the GPU, or a skip."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment.pop("CUDA_VISIBLE_DEVICES")
    environment |= {} if GPUS is None else {"CUDA_VISIBLE_DEVICES": GPUS}
    code = "import torch; raise SystemExit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], env=environment).returncode:
        pytest.skip("torch finds no GPU here")
    return environment


@pytest.fixture(scope="session")
def small_run(phantom_dir):
    """The arguments of a run on 200 phantoms: 3 steps per epoch."""
    return ["--DATASET=phantom", f"--DATA_DIR={phantom_dir}", "--TRAIN_FRACTION=0.02"]


@pytest.fixture
def small(tmp_path, monkeypatch, small_run):
    """The same, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return list(small_run)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, small_run):
    """Return the MODELS_DIR of a small run with further arguments, trained once for all tests."""
    kept = {}

    def take(*arguments):
        if arguments not in kept:
            folder = tmp_path_factory.mktemp("shelf")
            with contextlib.chdir(folder):
                assert run_script("train_model.py", *small_run, *arguments)[0] == 0
            kept[arguments] = folder / "models"
        return kept[arguments]

    return take


@pytest.fixture
def train(small, shelf):
    """Do what `python train_model.py arguments` does on 200 phantoms, but quickly, from the shelf.

    Returns the arguments of a small run, to go on with it.
    """

    def put(*arguments, name="phantom"):
        # Links and no copies: every program replaces its files and changes none in place.
        shutil.copytree(shelf(*arguments) / "phantom", f"models/{name}", copy_function=os.link)
        return small

    return put


@pytest.fixture(scope="session")
def reported(tmp_path_factory, shelf):
    """A folder with a small run of two epochs and the report on it."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(shelf("--EPOCHS=2"), folder / "models")
    with contextlib.chdir(folder):
        assert run_script("generate_report.py")[0] == 0
    return folder


@pytest.fixture
def run(capfd):
    """Run a script as `python script arguments` does, but without a new process.

    Returns its exit status and all it printed, with the message of a UserError.
    """

    def run_and_read(script, *arguments):
        capfd.readouterr()
        status, message = run_script(script, *arguments)
        printed = capfd.readouterr()
        return SimpleNamespace(status=status, text=printed.out + printed.err + message)

    return run_and_read


@pytest.fixture
def start():
    """Start a script in a process of its own; what still runs at the end of the test is ended."""
    processes = []

    def start_script(script, *arguments, **options):
        command = [sys.executable, str(REPO / script), *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield start_script
    for process in processes:
        if process.poll() is None:
            process.terminate()  # torchrun then ends its processes, which a kill would leave alone
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
        process.kill()
        process.wait()
