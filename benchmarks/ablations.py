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
from common import checkpoint, files, hardware, log, metrics, sampling, settings
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


class FromFour(dcgan.Generator):
    """Begins at 4x4 pixels, with the first of the widths, as Radford et al. 2015 do."""

    def __init__(
        self,
        latent_dim=100,
        channels=1,
        labels=0,
        size=28,
        widths=(256, 128, 48, 16),
        bilinear=True,
        gain=4,
        jpeg=None,
    ):
        super().__init__(latent_dim, channels, labels, size, widths, bilinear, gain, jpeg)
        at_4, at_7, *_ = widths
        self.start, self.stages = 4, ["to_7", *self.stages]
        self.project = nn.Linear(self.project.in_features, 4 * 4 * at_4, bias=False)
        self.at_start = nn.Sequential(nn.BatchNorm2d(at_4), nn.ReLU(inplace=True))
        self.to_7 = nn.Sequential(
            nn.ConvTranspose2d(at_4, at_7, 4, 2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(at_7),
            nn.ReLU(inplace=True),
        )
        for module in (self.project, self.at_start, self.to_7):
            module.apply(dcgan.initialise)


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


def two_passes(real, labels, model, dtype, penalty=0.0):
    """train_model.train_step with a loss of G's own, -log D(G(z)), and the D that has just learned.

    Source: Goodfellow et al. 2014, section 3, and Radford et al. 2015.
    """
    generator, discriminator = model.generator, model.discriminator
    real = real.contiguous(memory_format=torch.channels_last).detach().requires_grad_(penalty > 0)
    latents = torch.randn(len(real), train_model.LATENT_DIM, device=real.device)
    with hardware.autocast(real.device, dtype):
        fake = generator(latents, labels)
        real_logits = discriminator(real, labels).float()
        fake_logits = discriminator(fake.detach(), labels).float()
    loss = discriminator_loss = train_model.discriminator_loss(real_logits, fake_logits)
    if penalty:
        loss = loss + penalty * train_model.gradient_penalty(real, real_logits)
    model.optimizer_d.zero_grad()
    loss.backward()
    model.optimizer_d.step()

    discriminator.requires_grad_(False)
    with hardware.autocast(real.device, dtype):
        logits = discriminator(fake, labels).float()
    loss = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    if train_model.MATCHING:
        loss = loss + train_model.MATCHING * train_model.matching_loss(real, fake)
    model.optimizer_g.zero_grad()
    loss.backward()
    model.optimizer_g.step()
    discriminator.requires_grad_(True)
    d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
    return torch.stack([discriminator_loss, d_real, d_fake]).detach()


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
        "Generator": partial(FromFour, widths=(256, 128, 64, 16), bilinear=False, gain=1),
        "Discriminator": partial(dcgan.Discriminator, scales=()),
        "train_step": two_passes,
        "BETA1": 0.5,
        "R1": 0.0,
        "MATCHING": 0.0,
        "LR_DECAY_START": 1_000_000_000,
        "build": larger_weights,
    },
    "two passes": {"train_step": two_passes, "BETA1": 0.5},
    "two passes, from 4x4": {"Generator": FromFour, "train_step": two_passes, "BETA1": 0.5},
    "generator from 4x4": {"Generator": FromFour},
    "gain 1": {"Generator": partial(dcgan.Generator, gain=1)},
    "larger weights": {"build": larger_weights, "LR_DECAY_START": 6000, "R1": 0.02},
    "no matching loss": {"MATCHING": 0.0},
    "no gradient penalty": {"R1": 0.0},
    "no smaller discriminators": {"Discriminator": WholeAndTexture},
    "plain discriminator": {"Discriminator": partial(dcgan.Discriminator, scales=())},
    "transposed convolutions": {"Generator": partial(dcgan.Generator, bilinear=False)},
    "discriminator twice as wide": {
        "Discriminator": partial(dcgan.Discriminator, widths=(64, 128, 256))
    },
    "LEARNING_RATE 2e-4": {"LEARNING_RATE": 2e-4},
    "BETA1 0.5": {"BETA1": 0.5},
    "no moving average": {"EMA_HALF_LIFE": 0},
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
