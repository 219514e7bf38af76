"""How every script starts and ends: output streams, signals, too little memory."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, refusal

import train_model
from common import checkpoint, errors, script, settings


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# A script that starts as ours do, but without torch: a hundred of them take seconds.

SCRIPT = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from common import script

script.prepare()
LINES = 3  # to print [0 to 100000]
LOADING, WORKING, DEAF, COMPILED = "", "", False, False

if "load" in sys.argv:
    sys.argv.remove("load")
    print("ready")
    try:
        import time; time.sleep(20)
    except:  # as in the __init__ of medmnist
        pass

def main(constants):
    for number in range(LINES):
        print("line", number)
        print("progress", number, file=sys.stderr)
    open("done", "w").close()
    if WORKING:
        print("ready")
        import time
        while True:
            try:
                time.sleep(20)
            except BaseException:
                if COMPILED:
                    raise ValueError("no such matrix")
                if not DEAF:
                    raise
            print("went on")

script.GRACE_SECONDS = 0.5
script.run(main, globals())
"""


@pytest.fixture
def begin():
    """Start that script, in a process of its own."""
    processes = []

    def begin_script(*arguments, **streams):
        Path("script.py").write_text('"""Prints."""\n' + SCRIPT)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | streams
        command = [sys.executable, "script.py", *arguments]
        processes.append(subprocess.Popen(command, text=True, **streams))
        return processes[-1]

    yield begin_script
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py", "generate_images.py"])
def test_missing_packages_are_said_in_a_line(script):
    command = [sys.executable, "-S", str(REPO / script)]  # -S: without site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "lacks torch, torchvision," in done.stderr and "requirements.txt" in done.stderr


def test_all_packages_of_the_requirements_are_looked_for():
    lines = (REPO / "requirements.txt").read_text().splitlines()
    imported = {"PIL" if line.startswith("Pillow") else line.split(">=")[0] for line in lines}
    assert {*script.PACKAGES} == imported


# Output streams


def to(path, mode):
    return {"stdout": os.open(path, mode), "stderr": os.open(path, mode)}


OUTPUTS = {
    "a full disk": lambda: to("/dev/full", os.O_WRONLY),
    "stdout closed": lambda: {"preexec_fn": lambda: os.close(1)},
    "stderr closed": lambda: {"preexec_fn": lambda: os.close(2)},
    "all closed": lambda: {"preexec_fn": lambda: [os.close(number) for number in (0, 1, 2)]},
    "only to be read": lambda: to("/dev/null", os.O_RDONLY),
}


@pytest.mark.parametrize("streams", OUTPUTS.values(), ids=OUTPUTS)
def test_a_script_does_not_die_of_its_output(begin, streams):
    process = begin("--LINES=2000", **streams())
    assert process.wait(timeout=60) == 0
    assert Path("done").exists()


@pytest.mark.parametrize("streams", OUTPUTS.values(), ids=OUTPUTS)
def test_its_status_is_right_even_if_its_message_cannot_be_shown(begin, streams):
    assert begin("--LINES=-1", **streams()).wait(timeout=60) == 1


def test_a_script_does_not_die_of_a_reader_that_leaves(begin):
    process = begin("--LINES=20000")
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert Path("done").exists()


def test_files_never_get_the_number_of_a_closed_stream(begin):
    """Else what a library writes to stderr would go into a checkpoint."""
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from common import script; "
    code += "script.prepare(); print(open('file', 'w').fileno(), file=open('number', 'w'))"
    subprocess.run([sys.executable, "-c", code], check=True, **OUTPUTS["all closed"]())
    assert int(Path("number").read_text()) > 2


class Notebook:
    """The stream of a notebook: no reconfigure, no descriptor."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode("ascii").decode()

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [Notebook(), None], ids=["a notebook's", "none"])
def test_any_stream_will_do(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", script.Output(stream))
    print("Äpfel\ud800")
    assert stream is None or stream.text == "\\xc4pfel\\ud800\n"


# Signals


def told(process, *signals):
    """Send signals to a process that says it is ready. Returns its status and its last lines."""
    while process.stdout.readline() != "ready\n":
        pass
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)  # or the kernel would make one of two
    return process.wait(timeout=60), [line for line in process.stdout.read().split("\n") if line]


INTERRUPTED = "interrupted; every file is complete, or as it was before"


@pytest.mark.parametrize("arguments", [["load"], ["--WORKING=True"]], ids=["loading", "working"])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_ctrl_c_ends_a_script_with_one_line(begin, arguments, times):
    status, lines = told(begin(*arguments), *[signal.SIGINT] * times)
    assert status in (130, -signal.SIGINT)  # the same to a shell; Python gives up its handlers last
    assert lines in (["interrupted"], [INTERRUPTED])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_a_script_that_swallows_the_exception(begin, number, status):
    assert told(begin("--WORKING=True", "--DEAF=True"), number)[0] == status


def test_a_signal_in_compiled_code_that_makes_another_error_of_it_shows_no_traceback(begin):
    options = ["--WORKING=True", "--COMPILED=True"]
    assert told(begin(*options), signal.SIGTERM) == (143, [])
    assert told(begin(*options), signal.SIGINT) == (130, [INTERRUPTED])


def test_sigterm_ends_a_script_with_its_status(begin):
    assert told(begin("--WORKING=True"), signal.SIGTERM) == (143, [])


@pytest.mark.parametrize("arguments", [["load"], ["--WORKING=True"]], ids=["loading", "working"])
def test_a_warning_of_the_scheduler_ends_nothing(begin, arguments):
    status, _ = told(begin(*arguments), signal.SIGUSR1, signal.SIGINT)
    assert status == 130


@pytest.mark.parametrize("script", ["train_model.py", "generate_report.py", "generate_images.py"])
def test_ctrl_c_ends_a_script_while_torch_is_loading(start, script):
    process = start(script)
    maps = Path(f"/proc/{process.pid}/maps")
    while "torch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "\ninterrupted\n"
    assert process.returncode == 130
    assert list(Path().iterdir()) == []


@pytest.fixture
def main(small, monkeypatch):
    """train_model.main on a few phantoms, as a notebook calls it; returns its exit status."""
    for name, value in vars(train_model).copy().items():
        if name.isupper():
            monkeypatch.setattr(train_model, name, value)

    def run_main(*arguments):
        arguments = [*small, "--METRIC_IMAGES=0", "--EPOCHS=1", *arguments]
        try:
            train_model.main(settings.override(vars(train_model), arguments))
        except SystemExit as stop:
            return stop.code
        return 0

    return run_main


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGUSR1, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_writes_a_checkpoint_and_the_handlers_are_put_back(
    main, monkeypatch, number, status
):
    seen, steps, save_run, loss = [], [], checkpoint.save_run, train_model.discriminator_loss

    def save(run, progress, *others):
        seen.append(progress.images_seen)
        save_run(run, progress, *others)

    def loss_with_signal(*logits):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(number)
        return loss(*logits)

    monkeypatch.setattr(train_model, "discriminator_loss", loss_with_signal)
    monkeypatch.setattr(checkpoint, "save_run", save)
    before = [signal.signal(each, lambda *_: None) for each in SIGNALS]
    ours = [signal.getsignal(each) for each in SIGNALS]
    try:
        assert main() == status
        assert [signal.getsignal(each) for each in SIGNALS] == ours
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)
    assert seen == ([0, 128, 0] if status == 0 else [0, 128])


def test_training_works_in_a_thread(main):
    results = []
    thread = threading.Thread(target=lambda: results.append(main()))
    thread.start()
    thread.join()
    assert results == [0]


# Memory


def raising(error):
    def allocate():
        raise error

    return allocate


SHORT = {
    "Python": lambda: [0] * 2**60,
    "NumPy": lambda: np.empty(2**55),
    "torch": lambda: torch.empty(2**55),
    "CUDA": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "C++": raising(RuntimeError("std::bad_alloc")),
    "a system call": raising(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
}


@pytest.mark.parametrize("allocate", SHORT.values(), ids=SHORT)
def test_too_little_memory_is_said_with_the_constants_to_lower(allocate):
    message = refusal(errors.short_of_memory("BATCH_SIZE", "N_IMAGES")(allocate))
    assert "too little memory. Lower BATCH_SIZE or N_IMAGES" in message


def test_other_errors_are_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="invalid"), errors.short_of_memory("BATCH_SIZE"):
        torch.zeros(3).view(2)


@pytest.mark.parametrize(
    ("place", "name", "constant"),
    [
        (train_model, "discriminator_loss", "BATCH_SIZE"),
        (train_model.metrics, "evaluate", "METRIC_IMAGES"),
        (train_model.metrics, "fit_reference", "METRIC_IMAGES"),
    ],
)
def test_training_names_what_needs_the_memory(main, monkeypatch, place, name, constant):
    monkeypatch.setattr(place, name, lambda *_: torch.empty(2**55))
    message = main("--METRIC_IMAGES=50")
    assert f"error: there is too little memory. Lower {constant}, or close" in message
