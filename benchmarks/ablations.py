"""What each choice of the recipe is worth: train variants of it with several seeds and compare.

    python benchmarks/ablations.py                                  all variants, 3 seeds each
    python benchmarks/ablations.py --VARIANTS="as shipped"          the recipe alone
    python benchmarks/ablations.py --DATASET=phantom --EPOCHS=10 --SEEDS=10 --VARIANTS="as shipped"

Every run is a real train_model.py with one thing changed, in a process of its own with one thread,
WORKERS of them at a time. What is finished is not trained again, and what was interrupted goes on;
after a change of the code, choose another OUT.

Every constant below can be changed here or on the command line.
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare

import dcgan
import train_model
from common import checkpoint, dataset, files, metrics, sampling, settings
from common.settings import UserError

# --- Training ---
DATASET = "pneumoniamnist"  # a 2-D MedMNIST data set, or "phantom"
DATA_DIR = "data"  # folder of the .npz files
EPOCHS = 50  # of every run [1 to 100000]
SEEDS = 3  # runs of every variant, with the seeds 0, 1, ... [1 to 1000]
VARIANTS = "all"  # names from the table below, joined by commas
WORKERS = 2  # runs at a time, each with one thread [1 to 1000]

# --- Measuring ---
N_IMAGES = 2354  # synthetic and real ones; at most half the training images [20 to 20000]

# --- Files ---
OUT = "images/benchmarks/ablations"  # folder of the runs and results.csv

# --- Set by the program, for the processes it starts ---
SEED = -1  # of the one run to train; -1: all of them [-1 to 1000000]


class FromSeven(dcgan.Generator):
    """Begins with a linear layer at 7x7 pixels, as tutorials for 28x28 pixels do."""

    def __init__(self, latent_dim, *sizes):
        super().__init__(latent_dim, *sizes)
        self.project = nn.Linear(latent_dim, 128 * 7 * 7, bias=False)
        dcgan.initialise(self.project)
        self.draw = self.draw[3:]

    def forward(self, latents, labels=None):
        return self.draw(self.project(latents).view(len(latents), 7, 7, -1).permute(0, 3, 1, 2))


class FullResolution(dcgan.Discriminator):
    """Begins with a convolution at 28x28 pixels."""

    def __init__(self, channels, *labels):
        super().__init__(channels, *labels)
        first = [nn.Conv2d(channels, 16, 3, padding=1), nn.LeakyReLU(0.2, True)]
        first += [nn.Conv2d(16, 32, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)]
        for module in first:
            dcgan.initialise(module)
        self.judge = nn.Sequential(*first, *self.judge[2:])


class Shifted(dcgan.Discriminator):
    """Sees all images shifted by up to 2 pixels (Zhao et al. 2020, section 3)."""

    def forward(self, images, *labels):
        places = torch.arange(28)
        down, right = torch.randint(5, (2, len(images), 1)) + places
        each = torch.arange(len(images))[:, None, None]
        images = F.pad(images, (2, 2, 2, 2), mode="replicate").permute(0, 2, 3, 1)
        images = images[each, down[:, :, None], right[:, None, :]]
        return super().forward(images.permute(0, 3, 1, 2), *labels)


class BatchSpread(dcgan.Discriminator):
    """Is told how much the features vary over a batch (Karras et al. 2018, section 3)."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.judge[-1] = nn.Linear(129 * 16, 1)
        dcgan.initialise(self.judge[-1])
        self.judge[-2] = AppendSpread()


class AppendSpread(nn.Module):
    def forward(self, features):
        spread = features.var(0, unbiased=False).add(1e-8).sqrt().mean()
        spread = spread.expand(len(features), 1, *features.shape[2:])
        return torch.cat([features, spread], dim=1).flatten(1)


def smoothed(logits, target):
    """Cross-entropy that asks for 0.9 instead of 1 (Salimans et al. 2016, section 3.4)."""
    return F.binary_cross_entropy_with_logits(logits, 0.9 * target)


class Deeper(dcgan.Generator):
    """Has one more convolution, 3x3 at 7x7 pixels."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        more = nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU(True)
        for module in more:
            dcgan.initialise(module)
        self.draw = nn.Sequential(*self.draw[:5], *more, *self.draw[5:])


# What is changed: a constant of train_model.py, or a name in it and what takes its place.
RECIPES = {
    "as shipped": {},
    "generator from 7x7 pixels": {"Generator": FromSeven},
    "discriminator twice as wide": {
        "Discriminator": partial(dcgan.Discriminator, widths=(64, 128, 256))
    },
    "discriminator from 28x28 pixels": {"Discriminator": FullResolution},
    "LEARNING_RATE 2e-4": {"LEARNING_RATE": 2e-4},
    "BETA1 0": {"BETA1": 0.0},
    "no moving average": {"EMA_HALF_LIFE": 0},
    "generator deeper": {"Generator": Deeper},
    "real images are 0.9 real": {"F": SimpleNamespace(binary_cross_entropy_with_logits=smoothed)},
    "images shifted": {"Discriminator": Shifted},
    "spread of the batch": {"Discriminator": BatchSpread},
}
NUMBERS = dict.fromkeys(["precision", "recall", "coverage", "frechet"], ".2f")  # how to write them
NUMBERS |= {"fine_detail": ".1f", "memorised": ".3f"}


def main():
    names = list(RECIPES) if VARIANTS == "all" else [name.strip() for name in VARIANTS.split(",")]
    for name in names:
        if name not in RECIPES:
            raise UserError(f"VARIANTS: there is no {name!r}; legal are {', '.join(RECIPES)}")
    if SEED >= 0:
        train(names[0])
        return
    dataset.load(DATASET, "train", DATA_DIR)  # fetched or drawn once, not by each worker
    jobs = [(name, seed) for seed in range(SEEDS) for name in names]
    with ThreadPoolExecutor(WORKERS) as workers:
        rows = list(workers.map(lambda job: train_apart(*job), jobs))
    train_model.write_log(rows, Path(OUT) / "results.csv")
    print_table(names, rows)


def train_apart(name, seed):
    """Train and measure a run in a process of its own, unless it is there. Returns its row."""
    result = run_folder(name, seed) / "result.json"
    if not result.exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, *sys.argv[1:], f"--VARIANTS={name}", f"--SEED={seed}"]
        log = run_folder(name, seed).with_suffix(".txt")
        files.make_folder(log.parent)
        with open(log, "a") as output:
            done = subprocess.run(command, env=environment, stdout=output, stderr=output)
        if done.returncode:
            raise UserError(f"{name}, seed {seed}, failed with status {done.returncode}: see {log}")
    row = json.loads(result.read_text())
    numbers = ", ".join(f"{key} {row[key]:.3g}" for key in NUMBERS)
    print(f"{name}, seed {seed}: {numbers}\n", end="")  # in one piece, whoever else prints
    return row


def run_folder(name, seed):
    return Path(OUT) / "models" / f"{DATASET}-{EPOCHS}-{name.replace(' ', '-')}-{seed}"


def train(name):
    """Run train_model.py with one thing changed, then measure its last moving average."""
    folder = run_folder(name, SEED)
    constants = {"DATASET": DATASET, "DATA_DIR": DATA_DIR, "EPOCHS": EPOCHS, "SEED": SEED}
    constants |= {"RUN_NAME": folder.name, "MODELS_DIR": folder.parent, "SNAPSHOT_EPOCHS": EPOCHS}
    constants |= {"IMAGES_DIR": Path(OUT) / "images", "DEVICE": "cpu"}
    for key, value in RECIPES[name].items():
        setattr(train_model, key, value)
    arguments = [f"--{key}={value}" for key, value in constants.items()]
    train_model.main(settings.override(vars(train_model), arguments))

    saved = checkpoint.load(folder / "checkpoint.pt", checkpoint.CHECKPOINT)
    generator = train_model.Generator(train_model.LATENT_DIM, saved["channels"], 0).eval()
    checkpoint.restore(generator, saved["generator_ema"], folder / "checkpoint.pt")
    row = {"variant": name, "seed": SEED} | measure(generator)
    row["collapsed"] = any(train_model.looks_collapsed(epoch) for epoch in saved["history"])
    with files.atomic_write(folder / "result.json") as file:
        file.write(json.dumps(row).encode())


def measure(generator=None):
    """Return the NUMBERS of a generator's images, by default those of other real images."""
    images, _, _ = dataset.load(DATASET, "train", DATA_DIR)
    held_out, _, _ = dataset.load(DATASET, "test", DATA_DIR)
    n = min(N_IMAGES, len(images) // 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    real, known = images[order[:n]], images
    if generator:
        random = torch.Generator().manual_seed(1)
        ours = sampling.draw(generator, torch.randn(n, train_model.LATENT_DIM, generator=random))
    else:
        ours = images[order[n : 2 * n]]
        known = images[torch.cat([order[:n], order[2 * n :]])]  # or they would be their own copies
    numbers = metrics.evaluate(metrics.fit_reference(images, real), ours)
    numbers["fine_detail"] = metrics.fine_detail(real, ours)[28]
    numbers["memorised"] = metrics.memorisation(ours, known, held_out)["share"]
    return numbers | {"n": n}


def print_table(names, rows):
    """Print a markdown table: the mean of each number over the seeds, and its range."""
    heads = ["", *NUMBERS, "collapsed"]
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        cells = [compare.mean([row[key] for row in own], form) for key, form in NUMBERS.items()]
        print(f"| {name} | {' | '.join(cells)} | {sum(row['collapsed'] for row in own)} |")
    floor = measure()
    cells = [compare.mean([floor[key]], form) for key, form in NUMBERS.items()]
    print(f"| other real images | {' | '.join(cells)} | |")
    print(
        f"\n{dataset.title(DATASET)}, {EPOCHS} epochs, mean (range) of {SEEDS} seeds; "
        f"N = {floor['n']:,}, k = {metrics.K}. {compare.machine(torch.device('cpu'))}.\n\n"
        f"    python {shlex.join(sys.argv)}"
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    settings.override(globals())
    main()
