"""Measure a training, and a report beside one, on a computer that other programs keep busy.

    python benchmarks/busy.py
    python benchmarks/busy.py --BUSY=0,1 --SECONDS=2 --REPORT=False

Prints the tables of docs/RESULTS.md, "On a busy computer", in about 12 minutes on 2 cores that are
idle otherwise. A busy program is a loop in Python. Every constant below can be changed here or on
the command line.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

import tools

from common import checkpoint, settings
from common.errors import UserError

# --- Measuring ---
BUSY = "0,1,2,4"  # numbers of busy programs
THREADS = "0,1,2"  # of the training; 0: auto
SECONDS = 12.0  # to train for, of steps alone [0.1 to 10000.0]
REPORT = True  # also measure a report, alone and beside a training [True, False]

# --- Data ---
DATASET = "phantom"  # a 2-D MedMNIST data set or "phantom" (drawn)
DATA_DIR = ""  # folder of the .npz file; empty: a temporary one


def main():
    numbers = [text.split(",") for text in (BUSY, THREADS)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(DATA_DIR).resolve() if DATA_DIR else Path(folder, "data")
        os.chdir(folder)
        speed(data, "data", "1", seconds=0.1)  # draws the data set, if it is not there
        heads = ["auto" if n == "0" else f"{n} threads" for n in numbers[1]]
        tools.print_head("busy programs", *heads)
        for k in numbers[0]:
            with busy(int(k)):
                cells = [speed(data, f"busy-{k}-{n}", n) for n in numbers[1]]
            tools.print_row(k, *cells)
        if REPORT:
            report(data)
        os.chdir(tools.REPO)
    print(f"\nImages per second. {tools.source()}")


@contextlib.contextmanager
def busy(k):
    """Let k other programs compute during the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(k)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start(script, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(tools.REPO / script), *arguments]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def start_training(data, name, threads):
    """Start a training, and return it when it begins its first step."""
    options = [f"--DATASET={DATASET}", f"--DATA_DIR={data}", f"--RUN_NAME={name}", "--EPOCHS=1000"]
    training = start("train_model.py", *options, f"--THREADS={threads}", "--METRIC_IMAGES=0")
    while not Path("models", name, "checkpoint.pt").exists():
        if training.poll() is not None:
            raise UserError(f"train_model.py has failed: {training.stderr.read().strip()}")
        sleep(0.05)
    return training


def stop(training, name):
    """Stop a training. Returns its images and the seconds of its steps so far."""
    training.send_signal(signal.SIGTERM)
    training.communicate()
    return progress(name)


def progress(name):
    saved = checkpoint.load(f"models/{name}/checkpoint.pt", checkpoint.CHECKPOINT)
    seconds = saved["seconds"] + sum(row["seconds"] for row in saved["history"])
    return saved["step"] * saved["settings"]["BATCH_SIZE"], seconds, saved["settings"]["THREADS"]


def speed(data, name, threads, seconds=None):
    """Return the images per second of a training and, for auto, the threads that it took."""
    training = start_training(data, name, threads)
    sleep(SECONDS if seconds is None else seconds)
    images, took, number = stop(training, name)
    told = f"{images / max(took, 1e-9):,.0f}"
    return told + (f" ({number} thread{'s' if number > 1 else ''})" if threads == "0" else "")


def report(data):
    """Print the seconds of a report, and the speed of a training, each alone and together."""
    alone = speed(data, "shown", "0")
    quiet = draw()
    training = start_training(data, "beside", "0")
    sleep(SECONDS)
    training.send_signal(signal.SIGUSR1)  # a checkpoint
    sleep(2)
    images, seconds, _ = progress("beside")
    together = draw()
    more_images, more_seconds, _ = stop(training, "beside")
    beside = (more_images - images) / (more_seconds - seconds)
    print()
    tools.print_head("", "alone", "together")
    tools.print_row("report, s", f"{quiet:.0f}", f"{together:.0f}")
    tools.print_row("training, images per second", alone, f"{beside:,.0f}")


def draw():
    begin = perf_counter()
    _, error = (process := start("generate_report.py", "--RUN_NAME=shown")).communicate()
    if process.returncode:
        raise UserError(f"generate_report.py has failed: {error.strip()}")
    return perf_counter() - begin


if __name__ == "__main__":
    settings.override(globals())
    main()
