"""Measure the time and the memory of a training by the number and the size of images.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --SIZES=640 --PIXELS=28,64,128,224

Prints the tables of docs/RESULTS.md, "Costs" (the first command) and "Larger images" (the second).
For each number and size, noise is written into a temporary folder as chestmnist.npz, and
train_model.py is run on it for one epoch, with all its other constants at their defaults. The time
in which a step fetches its images, and an epoch computes its metrics, is measured separately, in
this process. Prints markdown, keeps no files. For Linux and macOS.

Every constant below can be changed here or on the command line.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import recipes
import tools
import torch

import train_model
from common import hardware, metrics, settings
from common.data import dataset
from common.errors import UserError

# --- Measuring ---
SIZES = "5000,20000,78468"  # numbers of training images; the last is that of ChestMNIST
PIXELS = "28"  # heights and widths of the images: 28, 64, 128, 224
REPEATS = 5  # of each measurement in this process; the median is reported [1 to 1000]


def main():
    sizes, pixels = tools.whole_numbers("SIZES", SIZES), tools.whole_numbers("PIXELS", PIXELS)
    if not {*pixels} <= {*dataset.SIZES}:
        raise UserError(f"PIXELS={PIXELS}: legal are {', '.join(map(str, dataset.SIZES))}")
    if min(sizes) < 2 * train_model.BATCH_SIZE:
        raise UserError(f"SIZES={SIZES}: legal are at least {2 * train_model.BATCH_SIZE}")
    device = hardware.choose_device(train_model.DEVICE)

    heads = ["images", "pixels", "steps", "s per epoch", "s per 1,000 images", "images/s"]
    heads += ["ms per step", "data handling", "metrics", "s to first step", "after imports"]
    heads += ["peak memory, MB"]
    # First all runs of train_model.py: the peak memory that Linux reports of a process is at least
    # that of the process that started it, and this one is still small.
    runs = {(n, side): train(noise(n, side)) for n in sizes for side in pixels}
    tools.print_head(*heads)
    for (n, side), (row, imported, first_step, peak) in runs.items():
        images = noise(n, side)
        fetching, measuring = time_fetching(images, device), time_metrics(images, device)
        steps = int(row["step"])
        step = float(row["seconds"]) / steps
        epoch = float(row["seconds"]) + measuring
        line = [f"{n:,}", f"{side}", f"{steps:,}", f"{epoch:.1f}", f"{1000 * epoch / n:.2f}"]
        line += [f"{train_model.BATCH_SIZE / step:,.0f}"]
        line += [f"{1000 * step:.1f}", f"{fetching / step:.2%}", f"{measuring / epoch:.2%}"]
        line += [f"{first_step:.1f}", f"{first_step - imported:.1f}", f"{peak:,.0f}"]
        tools.print_row(*line)
    print(
        "\nOne epoch each: its steps and its metrics. Data handling: share of a step that fetches "
        "and converts images. Metrics: share of an epoch. To first step: from the start of the "
        "process to the first step, and from the end of the imports. Images/s: in the steps. "
        f"{tools.source(device)}"
    )


def noise(n, side=28):
    return np.random.default_rng(n).integers(256, size=(n, side, side), dtype=np.uint8)


def train(images):
    """Run train_model.py for an epoch on images, uint8 (N, S, S).

    Returns the row of its log.csv, the seconds until its imports are done, those until its first
    step, and its peak memory in MB.
    """
    size = images.shape[-1]
    name = dataset.sized("chestmnist", size)
    with tempfile.TemporaryDirectory() as folder:
        arrays = {}
        for split, part in {"train": images, "val": images[:64], "test": images[:64]}.items():
            arrays[f"{split}_images"] = part
            arrays[f"{split}_labels"] = np.zeros((len(part), 14), np.uint8)
        (Path(folder) / "data").mkdir()
        np.savez(Path(folder) / "data" / f"{name}.npz", **arrays)

        script = Path(train_model.__file__)  # run as usual, and a file marks the end of its imports
        code = f"import runpy, sys; sys.path.insert(0, {str(script.parent)!r}); "
        code += "import train_model; open('imported', 'x').close(); "
        code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
        command = [sys.executable, "-c", code, "--DATASET=chestmnist", "--EPOCHS=1"]
        command += [f"--SIZE={size}"]
        begin = perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        seconds, run = [], Path(folder) / "models" / name
        # train_model.py writes its first checkpoint just before the first step.
        for marker in (Path(folder) / "imported", run / "checkpoint.pt"):
            while not marker.exists():
                if process.poll() is not None:
                    raise UserError("train_model.py has failed; its error is above")
                sleep(0.01)
            seconds.append(perf_counter() - begin)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise UserError("train_model.py has failed; its error is above")
        with open(run / "log.csv", newline="") as file:
            return next(csv.DictReader(file)), *seconds, tools.megabytes(usage)


def time_fetching(images, device):
    """Return the seconds in which a step fetches and converts its images."""
    images = torch.from_numpy(images)[:, None].to(device)
    batches = torch.randperm(len(images), device=device).split(train_model.BATCH_SIZE)[:100]

    def fetch():
        for chosen in batches:
            pixels = dataset.to_network(images[chosen])
            last = pixels.contiguous(memory_format=torch.channels_last)
        last[0, 0, 0, 0].item()  # waits for a GPU

    return median_seconds(fetch) / len(batches)


def time_metrics(images, device):
    """Return the seconds in which an epoch draws images and compares them with real ones."""
    real = torch.from_numpy(images)[:, None]
    halves = metrics.split_real(real, train_model.METRIC_IMAGES)
    if halves is None:  # train_model.py computes no metrics
        return 0.0
    reference = metrics.fit_reference(real, halves[0])
    ours = recipes.ours(images[:1000], device, seed=0)
    shape = (reference["n"], ours["latent_dim"])
    latents = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    draw = ours["draw"]
    return median_seconds(lambda: metrics.evaluate(reference, torch.from_numpy(draw(latents))))


def median_seconds(function):
    seconds = []
    for _ in range(REPEATS):
        begin = perf_counter()
        function()
        seconds.append(perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    settings.override(globals())
    main()
