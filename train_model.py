"""Train a DCGAN on the 28x28 images of a MedMNIST data set, ChestMNIST by default.

    python train_model.py                                  the real thing
    python train_model.py --DATASET=phantom --EPOCHS=5     a try without a network
    python train_model.py                                  the same again: goes on where it stopped

Every constant below can be changed here or on the command line.
"""

import copy
import csv
import io
import shlex
import signal
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tqdm import tqdm

import checkpoint
import dataset
import files
import hardware
import metrics
import settings
from dcgan import Discriminator, Generator
from settings import UserError

# --- Data ---
DATASET = "chestmnist"  # a 2-D MedMNIST data set, or "phantom": computer-drawn, needs no network
DATA_DIR = "data"  # folder of the .npz files
TRAIN_FRACTION = 1.0  # seeded random part of the training split to use [0.0001 to 1.0]
CONDITIONAL = False  # learn the labels too, to draw images of a chosen finding [True, False]

# --- Training ---
EPOCHS = 50  # passes over the training images; raise it to train a finished run on [1 to 100000]
BATCH_SIZE = 64  # images a step [2 to 65536]
LATENT_DIM = 100  # length of the latent vector z [1 to 10000]
LEARNING_RATE = 1e-4  # step size of Adam, both networks [1e-8 to 1.0]
BETA1 = 0.5  # Adam's decay of the gradient's mean [0.0 to 0.999]
EMA_HALF_LIFE = 10000  # of a weight in the moving average, in images [0 to 1000000000]
SEED = 0  # of the weights, the latents and the order of the images [0 to 2147483647]

# --- Measuring ---
METRIC_IMAGES = 1000  # images compared with real ones after each epoch; 0 for none [0 to 20000]

# --- Hardware ---
DEVICE = "auto"  # auto: CUDA where there is one ["auto", "cpu", "cuda"]
PRECISION = "auto"  # auto: bfloat16 where it is fast ["auto", "float32", "bfloat16"]

# --- Files ---
RUN_NAME = ""  # folder of this run in MODELS_DIR and IMAGES_DIR; empty: the name of the data set
MODELS_DIR = "models"  # checkpoints and logs go here
IMAGES_DIR = "images"  # generate_report.py draws into this folder
CHECKPOINT_MINUTES = 5.0  # longest time between two checkpoints, minutes [0.0 to 10000.0]
SNAPSHOT_EPOCHS = 1  # epochs between two kept generators, the frames of the GIF [1 to 100000]
RESUME = "auto"  # never: set an existing run aside and start over ["auto", "never"]

# A run can go on when these have changed; any other constant would make it a different run.
MAY_CHANGE = {"DATA_DIR", "EPOCHS", "DEVICE", "RUN_NAME", "MODELS_DIR", "IMAGES_DIR"}
MAY_CHANGE |= {"CHECKPOINT_MINUTES", "SNAPSHOT_EPOCHS", "RESUME"}

COLLAPSE = (
    "coverage below 0.1: nearly all samples look alike, a mode collapse. If it stays so, try a "
    "lower LEARNING_RATE, another SEED or more images, under another RUN_NAME."
)
STATISTICS = ["loss_discriminator", "loss_generator", "d_real", "d_fake"]  # means over an epoch


def main(constants):
    """Check all that can be wrong, make a new run or take up the old one, and train it."""
    dataset.check_name(DATASET)
    device = hardware.choose_device(DEVICE)
    folder = files.run_folder(MODELS_DIR, RUN_NAME or DATASET)
    pictures = files.run_folder(IMAGES_DIR, RUN_NAME or DATASET)
    with files.lock(folder):
        saved = find_checkpoint(folder, constants)
        if saved and saved["epoch"] >= EPOCHS:
            print(f"{folder} is finished, after epoch {saved['epoch']}.")
            print("To see it: python generate_report.py. To train it longer: raise EPOCHS.")
            print("To train anew: choose another RUN_NAME.")
            return
        if saved and PRECISION == "auto":
            precision, why = saved["settings"]["PRECISION"], "as this run began"
        else:
            precision, why = hardware.choose_precision(PRECISION, device)
        images, labels, source = dataset.load(DATASET, "train", DATA_DIR, TRAIN_FRACTION, SEED)
        labels = dataset.label_vectors(DATASET, labels) if CONDITIONAL else labels[:, :0].float()
        n, channels = images.shape[:2]
        n_labels = labels.shape[1]  # 0 in the plain mode, where a label vector is empty
        if n < BATCH_SIZE:
            raise UserError(
                f"BATCH_SIZE={BATCH_SIZE}: legal is at least 2 and at most {n}, the "
                f"training images that TRAIN_FRACTION={TRAIN_FRACTION} leaves of {source}"
            )

        torch.manual_seed(SEED)
        parts = build(channels, n_labels, device)
        run = SimpleNamespace(  # checkpoint.py says what each of these is
            settings={**constants, "PRECISION": precision},
            machine=hardware.machine(device),
            channels=channels,
            labels=dataset.tally(labels),
            fingerprint=dataset.fingerprint(images, labels),
            fixed_latents=torch.randn(64, LATENT_DIM),
            epoch=0,
            step=0,
            position=0,
            permutation=torch.randperm(n, device=device),
            sums=torch.zeros(len(STATISTICS), device=device),
            seconds=0.0,
            history=[],
            floor={},
            gaussian={},
        )
        reference = prepare_metrics(images, run)
        if saved:
            if saved["fingerprint"] != run.fingerprint:
                raise UserError(
                    f"{DATA_DIR}/{DATASET}.npz does not hold the images and labels that {folder} "
                    "was trained on. Put the old file back, or choose another RUN_NAME."
                )
            checkpoint.take_up(saved, parts, run, folder / "checkpoint.pt")
        elif RESUME == "never" and (folder.exists() or pictures.exists()):
            print(f"the run that was here is now called {files.set_aside(folder, pictures)}")
        files.make_folder(folder)
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink()

        networks = parts["generator"], parts["discriminator"]
        weights = [sum(p.numel() for p in network.parameters()) for network in networks]
        print(f"data set   {dataset.title(DATASET)} from {source}")
        steps = n // BATCH_SIZE
        print(f"images     {n:,} of 28x28x{channels}, {steps} steps of {BATCH_SIZE} an epoch")
        if CONDITIONAL:
            print(f"labels     {', '.join(dataset.label_names(DATASET))}")
        print(f"device     {hardware.describe(device)}")
        print(f"precision  {precision} ({why})")
        print(f"weights    generator {weights[0]:,}, discriminator {weights[1]:,}")
        print(f"run        {folder}, {f'from epoch {run.epoch + 1} on' if saved else 'a new one'}")
        print(f"pictures   {pictures}, by python generate_report.py")
        if reference:
            print(f"floor      {describe_metrics(run.floor)}: {reference['n']:,} training images")
        train(images.to(device), labels.to(device), parts, run, folder, reference)
        if looks_collapsed(run.history[-1]):
            print(COLLAPSE)
        print(f"{folder} is finished, after epoch {EPOCHS}. Now run: python generate_report.py")


def build(channels, n_labels, device):
    """Return new networks, the moving average and the optimisers, {name: network or optimizer}."""
    layout = {"device": device, "memory_format": torch.channels_last}
    generator = Generator(LATENT_DIM, channels, n_labels).to(**layout)
    discriminator = Discriminator(channels, n_labels).to(**layout)
    adam = {"lr": LEARNING_RATE, "betas": (BETA1, 0.999), "fused": True}
    return {
        "generator": generator,
        "discriminator": discriminator,
        "generator_ema": copy.deepcopy(generator).requires_grad_(False).eval(),
        "optimizer_g": torch.optim.Adam(generator.parameters(), **adam),
        "optimizer_d": torch.optim.Adam(discriminator.parameters(), **adam),
    }


def find_checkpoint(folder, constants):
    """Return the checkpoint to go on from, or None for a new run.

    Raises UserError for one that cannot be gone on from, or not with these constants.
    """
    path = folder / "checkpoint.pt"
    if RESUME == "never":
        return None
    if not path.exists():
        if any(not file.name.startswith(".") for file in folder.glob("*")):
            raise UserError(
                f"{folder} holds files but no checkpoint.pt to go on from. Choose another "
                "RUN_NAME, or set the folder aside with --RESUME=never"
            )
        return None
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    changed = [
        f"{name} was {old!r} and is now {constants[name]!r}"
        for name, old in saved["settings"].items()
        if name in constants and name not in MAY_CHANGE and constants[name] != old
        if (name, constants[name]) != ("PRECISION", "auto")
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(changed)}. Change them "
            "back, choose another RUN_NAME, or set the run aside with --RESUME=never"
        )
    return saved


def prepare_metrics(images, run):
    """Return what metrics.measure compares with, or None if that is too little or not wanted.

    What it says of real images and of a Gaussian goes into the run, to read the numbers against.
    """
    n = min(METRIC_IMAGES, len(images) // 2)
    if n < 20 or (images == images[0]).all():  # five neighbours among so few say nothing
        return None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    reference = metrics.prepare(images, images[order[:n]], SEED)
    run.floor = metrics.measure(reference, images[order[n : 2 * n]]) | {"n": n}
    run.gaussian = metrics.measure(reference, metrics.gaussian_reference(images, n, SEED))
    return reference


def train(images, labels, parts, run, folder, reference):
    """The adversarial loop: from where the run is to its last epoch, with checkpoints on the way.

    images: uint8 (N, C, 28, 28) and labels: float (N, K), both on the device; reference: what
    prepare_metrics returned. A signal ends it with status 130 or 143, after a checkpoint. Raises
    UserError if the losses are no longer finite or a file cannot be written.
    """
    used = len(images) // BATCH_SIZE * BATCH_SIZE  # the rest of a permutation sits an epoch out
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    if run.step == 0:
        checkpoint.save_run(parts, run, folder)  # a disk too full for it shows now, not in an hour
    begun = run.epoch * used + run.position
    last_step = last_save = last_line = time.monotonic()
    with tqdm(total=EPOCHS * used, initial=begun, unit=" images", disable=None) as bar:
        while run.epoch < EPOCHS:
            bar.set_description(f"epoch {run.epoch + 1}/{EPOCHS}", refresh=False)
            while run.position < used:
                chosen = run.permutation[run.position : run.position + BATCH_SIZE]
                real = dataset.to_network(images[chosen])
                run.sums += train_step(real, parts, run.settings["PRECISION"], labels[chosen])
                run.position += BATCH_SIZE
                run.step += 1
                update_average(parts["generator_ema"], parts["generator"], run.step * BATCH_SIZE)

                now = time.monotonic()
                run.seconds += now - last_step
                last_step = now
                bar.update(BATCH_SIZE)
                if now - last_line > (60 if bar.disable else 1):  # seconds
                    bar.set_postfix_str(describe_means(run), refresh=False)
                    if bar.disable:
                        share = f"{run.position / used:.0%} of epoch {run.epoch + 1}/{EPOCHS}"
                        print(f"{share}, {describe_means(run)}")
                    last_line = now
                if signals or now - last_save > 60 * CHECKPOINT_MINUTES:
                    settle_statistics(parts["generator_ema"], run.labels, run.settings["PRECISION"])
                    checkpoint.save_run(parts, run, folder)
                    last_save = now
                if signals:
                    bar.close()
                    again = ["--RESUME=auto"] if RESUME == "never" else []
                    print(f"stopped in epoch {run.epoch + 1}; nothing is lost. To go on:")
                    print(f"  python {shlex.join(sys.argv + again)}")
                    sys.exit(128 + signals[0])
            bar.write(end_epoch(images, parts, run, folder, reference))
            last_save = time.monotonic()


def end_epoch(images, parts, run, folder, reference):
    """Measure and write what is due after an epoch, make ready for the next. Returns a status line.

    The checkpoint comes last: whatever it says is done is on the disk.
    """
    checkpoint.check_finite(parts, run, folder)
    speed = run.position / run.seconds
    row = {"epoch": run.epoch + 1, "step": run.step, "seconds": round(run.seconds, 2)}
    row |= {"images_per_second": round(speed, 1)} | means(run)
    settle_statistics(parts["generator_ema"], run.labels, run.settings["PRECISION"])
    if reference:
        random = torch.Generator().manual_seed(SEED)
        latents = torch.randn(reference["n"], LATENT_DIM, generator=random).to(images.device)
        labels = dataset.draw_labels(run.labels, reference["n"], random).to(images.device)
        with number_format(images.device, run.settings["PRECISION"]):
            synthetic = dataset.draw(parts["generator_ema"], latents, labels).cpu()
        row |= metrics.measure(reference, synthetic)
    run.history.append(row | {"data_set": dataset.title(DATASET)})
    left = timedelta(seconds=round(run.seconds * (EPOCHS - run.epoch - 1)))
    status = f"epoch {run.epoch + 1}/{EPOCHS}, {speed:.0f} images/s, {describe_means(run)}"
    if reference:
        status += f", {describe_metrics(row)}"

    run.epoch += 1
    run.position, run.seconds, run.sums = 0, 0.0, torch.zeros_like(run.sums)
    run.permutation = torch.randperm(len(images), device=images.device)
    if run.epoch % SNAPSHOT_EPOCHS == 0 or run.epoch == EPOCHS:
        snapshot = {key: getattr(run, key) for key in ("epoch", "settings", "channels", "labels")}
        snapshot["generator_ema"] = parts["generator_ema"].state_dict()
        checkpoint.save(folder / f"generator_epoch_{run.epoch:04d}.pt", snapshot)
    write_log(run.history, folder / "log.csv")
    checkpoint.save_run(parts, run, folder)
    status += f", {left} left"
    return f"{status}\n{COLLAPSE}" if looks_collapsed(row) else status


def train_step(real, parts, precision, labels=None):
    """One step of Adam for each network. Returns the STATISTICS as a tensor on the device.

    real: (B, C, 28, 28) in [-1, 1]; labels: float (B, K), theirs, if the networks learn them. The
    discriminator, the detective, minimises -log D(x) - log(1 - D(G(z))); the generator, the
    forger, -log D(G(z)), the non-saturating loss (Goodfellow et al. 2014, section 3). The fakes
    are drawn for the labels of the real images, so that findings that go together stay together.
    """
    generator, discriminator = parts["generator"], parts["discriminator"]
    real = real.contiguous(memory_format=torch.channels_last)
    latents = torch.randn(len(real), LATENT_DIM, device=real.device)

    with number_format(real.device, precision):
        fake = generator(latents, labels)
        logits_real = discriminator(real, labels).float()
        logits_fake = discriminator(fake.detach(), labels).float()
    ones, zeros = torch.ones_like(logits_real), torch.zeros_like(logits_fake)
    loss_d = F.binary_cross_entropy_with_logits(logits_real, ones)
    loss_d = loss_d + F.binary_cross_entropy_with_logits(logits_fake, zeros)
    parts["optimizer_d"].zero_grad()
    loss_d.backward()
    parts["optimizer_d"].step()

    discriminator.requires_grad_(False)  # its own gradients would be a third of the work, unused
    with number_format(real.device, precision):
        logits = discriminator(fake, labels).float()
    loss_g = F.binary_cross_entropy_with_logits(logits, ones)
    parts["optimizer_g"].zero_grad()
    loss_g.backward()
    parts["optimizer_g"].step()
    discriminator.requires_grad_(True)

    d_real, d_fake = logits_real.sigmoid().mean(), logits_fake.sigmoid().mean()
    return torch.stack([loss_d, loss_g, d_real, d_fake]).detach()


def number_format(device, precision):
    """The context in which convolutions are computed in "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def update_average(average, generator, images_seen):
    """Move the weights of the averaged generator towards those of the trained one.

    The half-life is EMA_HALF_LIFE images, and at first a twentieth of the images seen, so that the
    random initial weights are soon forgotten (Karras et al. 2022, EDM, whose ramp-up this is).
    """
    half_life = min(EMA_HALF_LIFE, images_seen / 20)
    keep = 0.5 ** (BATCH_SIZE / half_life) if half_life else 0.0
    for old, new in zip(average.parameters(), generator.parameters(), strict=True):
        old.lerp_(new, 1 - keep)


@torch.no_grad()
def settle_statistics(average, labels, precision):
    """Measure anew what BatchNorm subtracts and divides by in the averaged generator.

    labels: as dataset.tally counts them. The trained generator's statistics do not fit the averaged
    weights, and make images too much alike (Izmailov et al. 2018, section 3.2, of classifiers).
    """
    random = torch.Generator().manual_seed(SEED)
    latents = torch.randn(640, LATENT_DIM, generator=random)  # ten batches, where the mean settles
    vectors = dataset.draw_labels(labels, len(latents), random)
    norms = [layer for layer in average.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count alike
    device = norms[0].weight.device
    average.train()
    with number_format(device, precision):
        for batch in zip(latents.split(64), vectors.split(64), strict=True):
            average(*(tensor.to(device) for tensor in batch))
    average.eval()


def write_log(history, path):
    """Write log.csv whole, one row an epoch, so that it always agrees with the checkpoint."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with files.replacing(path) as file:
        file.write(text.getvalue().encode())


def means(run):
    """The STATISTICS of the unfinished epoch so far, {name: mean over its steps}."""
    steps = run.position // BATCH_SIZE
    values = (run.sums / steps).tolist()
    return {name: round(value, 4) for name, value in zip(STATISTICS, values, strict=True)}


def describe_means(run):
    loss_d, loss_g, d_real, d_fake = means(run).values()
    return f"loss D {loss_d:.3f} G {loss_g:.3f}, D(x) {d_real:.2f}, D(G(z)) {d_fake:.2f}"


def describe_metrics(row):
    precision, recall, coverage = (row[key] for key in ("precision", "recall", "coverage"))
    return f"precision {precision:.2f} recall {recall:.2f} coverage {coverage:.2f}"


def looks_collapsed(row):
    """Whether nearly nothing of the data is covered, when there was time to learn it."""
    return row.get("coverage", 1.0) < 0.1 and row["step"] >= 500


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(settings.override(globals()))
    except KeyboardInterrupt:
        print("\ninterrupted before training began")
        sys.exit(130)
