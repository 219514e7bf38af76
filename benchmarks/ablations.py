"""Train variants of the recipe with several seeds, and compare them with the recipe as shipped.

    python benchmarks/ablations.py                                  all variants, 3 seeds each
    python benchmarks/ablations.py --VARIANTS="as shipped"          the recipe alone
    python benchmarks/ablations.py --DATASET=phantom --EPOCHS=10 --SEEDS=10 --VARIANTS="as shipped"

Prints the tables of docs/RESULTS.md, "Three seeds, and ten" and "Variants". Every run is
train_model.py with the changes of its variant, in its own process with one thread, WORKERS of them
at a time. Finished runs are not repeated and interrupted ones resume; after a
change of the code, choose another OUT.

Every constant below can be changed here or on the command line.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import tools
import torch
import torch.nn.functional as F
from torch import nn

import dcgan
import train_model
from common import checkpoint, files, log, metrics, sampling, settings
from common.data import dataset
from common.errors import UserError
from report import detective, fine_detail, membership

# --- Training ---
DATASET = "pneumoniamnist"  # a 2-D MedMNIST data set, or "phantom"
DATA_DIR = "data"  # folder of the .npz files
EPOCHS = 50  # of every run [1 to 100000]
SEEDS = 3  # runs of every variant, with the seeds 0, 1, ... [1 to 1000]
VARIANTS = "all"  # or names from CHANGES below, separated by commas
WORKERS = 2  # runs at a time, each with one thread [1 to 1000]

# --- Metrics ---
N_IMAGES = 2354  # synthetic and real ones; at most half the training images [20 to 20000]

# --- Files ---
OUT = "images/benchmarks/ablations"  # folder of the runs and results.csv

# --- Set by the program for the processes that it starts ---
SEED = -1  # of the one run to train; -1: all of them [-1 to 1000000]


# Variants of the networks. Their constructors have the parameters of those in dcgan.py, because the
# checkpoint stores them.


class Deeper(dcgan.Generator):
    """Has one more convolution, 3x3 at 7x7 pixels."""

    def __init__(
        self, latent_dim=100, channels=1, labels=0, size=28, widths=(256, 128, 64, 16), jpeg=None
    ):
        super().__init__(latent_dim, channels, labels, size, widths, jpeg=jpeg)
        _, at_7, _, _ = widths
        more = nn.Sequential(
            nn.Conv2d(at_7, at_7, 3, padding=1, bias=False),
            nn.BatchNorm2d(at_7),
            nn.ReLU(inplace=True),
        )
        self.to_7 = nn.Sequential(self.to_7, more.apply(dcgan.initialise))


class WholeAndTexture(dcgan.Discriminator):
    """Has no smaller discriminators."""

    def __init__(self, channels=1, labels=0, size=28, widths=(32, 64, 128), scales=()):
        super().__init__(channels, labels, size, widths, scales)
        self.small = nn.ModuleList()


# The discriminator's target for real images is 0.9, not 1; the generator's is unchanged
# (Salimans et al. 2016, section 3.4)
def one_sided_label_smoothing(real_logits, fake_logits):
    targets, zeros = torch.full_like(real_logits, 0.9), torch.zeros_like(fake_logits)
    loss = F.binary_cross_entropy_with_logits(real_logits, targets)
    return loss + F.binary_cross_entropy_with_logits(fake_logits, zeros)


build = train_model.build  # before a variant replaces it


def larger_weights(*arguments):
    """Return a Model whose weights are drawn from N(0, 0.02), as Radford et al. 2015 draw them."""
    model = build(*arguments)
    for network in (model.generator, model.generator_ema, model.discriminator):
        for parameter in network.parameters():
            if parameter.ndim > 1:  # neither BatchNorm nor biases, which are 0
                parameter.data *= 2
    return model


# {variant: {name in train_model.py: its value in this variant}}
CHANGES = {
    "as shipped": {},
    "plain DCGAN": {
        "Generator": partial(dcgan.Generator, bilinear=False),
        "Discriminator": partial(dcgan.Discriminator, scales=()),
        "R1": 0.0,
        "MATCHING": 0.0,
        "LR_DECAY_START": 1_000_000_000,
        "build": larger_weights,
    },
    "larger weights": {"build": larger_weights, "LR_DECAY_START": 6000, "R1": 0.02},
    "no matching loss": {"MATCHING": 0.0},
    "no gradient penalty": {"R1": 0.0},
    "no smaller discriminators": {"Discriminator": WholeAndTexture},
    "plain discriminator": {"Discriminator": partial(dcgan.Discriminator, scales=())},
    "first width 128": {"Generator": partial(dcgan.Generator, widths=(128, 128, 64, 16))},
    "transposed last stage": {"Generator": partial(dcgan.Generator, bilinear=False)},
    "discriminator twice as wide": {
        "Discriminator": partial(dcgan.Discriminator, widths=(64, 128, 256))
    },
    "LEARNING_RATE 2e-4": {"LEARNING_RATE": 2e-4},
    "BETA1 0": {"BETA1": 0.0},
    "no moving average": {"EMA_HALF_LIFE": 0},
    "generator deeper": {"Generator": Deeper},
    "one-sided label smoothing": {"discriminator_loss": one_sided_label_smoothing},
}
METRICS = dict.fromkeys(["precision", "recall", "coverage", "frechet"], ".2f")  # format specs
METRICS |= {"fine_detail": ".1f", "memorised": ".3f"}
# Accuracy of the fresh detective, by pixels a side and training images of each kind.
DETECTIVES = {"28 px, 200": (28, 200), "28 px": (28, 0), "14 px, 1000": (14, 1000)}
DETECTIVES |= {"14 px": (14, 0), "7 px": (7, 0)}  # 0: all there are
METRICS |= dict.fromkeys(DETECTIVES, ".2f")
# The variants are compared with as many other real images, and with images of the Gaussian that has
# the mean and the covariance of the real pixels.
REFERENCES = ("real vs real", "Gaussian of the pixels")


def main():
    names = list(CHANGES) if VARIANTS == "all" else [name.strip() for name in VARIANTS.split(",")]
    for name in names:
        if name not in CHANGES:
            raise UserError(f"VARIANTS: there is no {name!r}; legal are {', '.join(CHANGES)}")
    if SEED >= 0:
        train(names[0])
        return
    images, _, source = dataset.load(DATASET, "train", DATA_DIR)  # once, not in each process
    if metrics.split_real(images, N_IMAGES) is None:
        raise UserError(f"{source}: too few images for metrics, or all the same")
    jobs = [(name, seed) for seed in range(SEEDS) for name in names]
    with ThreadPoolExecutor(WORKERS) as workers:
        rows = list(workers.map(lambda job: train_in_process(*job), jobs))
    files.write_csv(Path(OUT) / "results.csv", rows)
    print_table(names, rows)


def train_in_process(name, seed):
    """Train and measure a run in its own process, unless it is finished. Returns its row."""
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
    numbers = ", ".join(f"{key} {row[key]:.3g}" for key in METRICS)
    print(f"{name}, seed {seed}: {numbers}\n", end="")  # one write, as several threads print
    return row


def run_folder(name, seed):
    return Path(OUT) / "models" / f"{DATASET}-{EPOCHS}-{name.replace(' ', '-')}-{seed}"


def train(name):
    """Run train_model.py with the changes of a variant, then measure its averaged generator."""
    folder = run_folder(name, SEED)
    constants = {"DATASET": DATASET, "DATA_DIR": DATA_DIR, "EPOCHS": EPOCHS, "SEED": SEED}
    constants |= {"RUN_NAME": folder.name, "MODELS_DIR": folder.parent, "SNAPSHOT_EPOCHS": EPOCHS}
    constants |= {"IMAGES_DIR": Path(OUT) / "images", "DEVICE": "cpu"}
    for key, value in CHANGES[name].items():
        setattr(train_model, key, value)
    tools.train(**constants)

    path = folder / "checkpoint.pt"
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    generator = checkpoint.rebuild_generator(saved, path, architecture=train_model.Generator)
    row = {"variant": name, "seed": SEED} | measure(generator)
    row["collapsed"] = any(log.looks_collapsed(epoch) for epoch in saved["history"])
    files.write(folder / "result.json", json.dumps(row).encode())


def measure(source):
    """Return the METRICS of the images of a generator or of one of the REFERENCES."""
    images, _, _ = dataset.load(DATASET, "train", DATA_DIR)
    held_out, _, _ = dataset.load(DATASET, "test", DATA_DIR)
    chosen, rest = metrics.split_real(torch.arange(len(images)), N_IMAGES)
    real, train_images = images[chosen], images
    if source == "Gaussian of the pixels":
        ours = metrics.gaussian_reference(images, len(real))
    elif source != "real vs real":
        ours = sampling.sample(source, {}, len(real), seed=1)
    else:
        ours = images[rest]
        # Without these, each of which would be a copy of itself.
        train_images = images[~torch.isin(torch.arange(len(images)), rest)]
    numbers = metrics.evaluate(metrics.fit_reference(images, real), ours)
    numbers["fine_detail"] = fine_detail.distance(real, ours)[28]
    numbers["memorised"] = membership.memorisation(ours, train_images, held_out)["share"]
    rows = detective.detective(real, ours)
    for key, (pixels, few) in DETECTIVES.items():
        of_size = [row for row in rows if row["pixels"] == pixels]
        found = [row for row in of_size if row["trained_on"] == few] or of_size  # all come first
        numbers[key] = found[0]["accuracy"]
    return numbers | {"n": len(real)}


def print_table(names, rows):
    """Print a markdown table: the mean and the range of each metric over the seeds."""
    print()
    tools.print_head("", *METRICS, "collapsed")
    for name in names:
        own = [row for row in rows if row["variant"] == name]
        cells = [tools.mean_and_range([row[key] for row in own], METRICS[key]) for key in METRICS]
        tools.print_row(name, *cells, str(sum(row["collapsed"] for row in own)))
    for name in REFERENCES:
        numbers = measure(name)
        tools.print_row(name, *[format(numbers[key], spec) for key, spec in METRICS.items()], "")
    print(
        f"\n{dataset.title(DATASET)}, {EPOCHS} epochs, mean (range) of {SEEDS} seeds; "
        f"N = {numbers['n']:,}, k = {metrics.K}. {tools.source()}"
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    settings.override(globals())
    main()
