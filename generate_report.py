"""Draw what a run has learned: real beside synthetic images, each epoch, an animation, the loss.

    python generate_report.py                          the run trained last
    python generate_report.py --RUN_NAME=phantom       a certain run

Works while a run is still training, too. Every constant below can be changed here or on the
command line.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out
from common import script

if __name__ == "__main__":
    script.prepare()  # before torch, which takes seconds
    if hasattr(os, "nice"):  # a training on the same cores keeps most of its speed, not a third
        os.nice(max(0, 3 - os.nice(0)))  # once, as a notebook may draw several

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from common import checkpoint, files, runs, sampling
from common.data import dataset
from common.data.labels import draw_labels
from common.errors import UserError
from common.threads import choose_threads
from report import detective, evaluation, membership, play, plotting, sections
from report.context import Captions, Context, Neighbours, Samples, environment, fewer, fewer_tiles

# --- Run ---
RUN_NAME = ""  # folder in MODELS_DIR; empty: the run trained last
MODELS_DIR = "models"  # where train_model.py keeps its runs
DATA_DIR = ""  # folder of the .npz files; empty: the one the run was trained from
IMAGES_DIR = "images"  # the report goes to IMAGES_DIR/RUN_NAME
EPOCH = "last"  # the generator to show: "last", "best" (highest score) or the number of an epoch
SEED = 0  # of the synthetic images and the choice of real ones [0 to 2147483647]

# --- Sections of the page; one that is off draws no pictures ---
COLLAGE = True  # "Reel vs Real": real images beside synthetic ones [True, False]
BLIND_TEST = True  # real and synthetic images mixed, for the reader to tell apart [True, False]
TRAINING = True  # each epoch, the GIF, the loss [True, False]
BY_LABEL = True  # images of each label, if the run has learned labels [True, False]
NUMBERS = True  # all metrics of the epoch shown, and the main ones of all epochs [True, False]
DETECTIVE = True  # new small CNNs learn to tell synthetic from real; a minute [True, False]
DIVERSITY = True  # many images, near-duplicates, means and grey levels [True, False]
COPIES = True  # the images nearest to the training set, attacks on membership [True, False]
LATENT_SPACE = True  # walks between latents [True, False]
FAILURES = True  # the images furthest from the training set [True, False]
PLAY = True  # a page of its own, play.html, to play with both networks [True, False]

# --- Pictures; these numbers are for 28 pixels, larger images are fewer and enlarged less ---
SCALE = 6  # screen pixels per image pixel, except in GIFs; 6 is fine for print [2 to 10]
COLLAGE_ROWS = 8  # of each half of the collage [1 to 50]
COLLAGE_COLUMNS = 8  # of each half of the collage [1 to 50]
GRID_ROWS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
GRID_COLUMNS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
PROGRESS_ROWS = 10  # epochs in training_progress.png; of more, evenly spaced ones [1 to 100]
GIF_SCALE = 2  # screen pixels per image pixel in training.gif; interpolation.gif: twice [1 to 10]
GIF_GREYS = 64  # grey levels in the GIFs; fewer make smaller files [2 to 256]
FRAME_MS = 200  # duration of a frame of the GIF, milliseconds [20 to 60000]
LAST_FRAME_MS = 3000  # duration of the last frame, milliseconds [20 to 60000]

# --- Synthetic images ---
N_SYNTHETIC = 1000  # images in synthetic/synthetic.npz [1 to 100000]
N_EXAMINED = 1000  # of these, searched for near-duplicates, copies and failures [1 to 3000]
N_DETECTIVE = 2000  # further ones, for DETECTIVE; at most half the training images [100 to 20000]

# --- Hardware ---
THREADS = 0  # 0: what is faster now, by the cores that are idle [0 to 1024]

# Settings of the training that the page leaves out: where files are is private.
HIDDEN = {"DATA_DIR", "MODELS_DIR", "IMAGES_DIR", "RUN_NAME", "RESUME", "CHECKPOINT_MINUTES"}
HIDDEN |= {"CUDA_GRAPHS"}


def main(constants):
    folder = runs.find_run(MODELS_DIR, RUN_NAME)
    out = runs.run_folder(IMAGES_DIR, folder.name)

    # Read all of the run before writing, so that an unreadable one leaves no half report.
    saved = checkpoint.load(folder / "checkpoint.pt", checkpoint.CHECKPOINT)
    snapshots = runs.find_snapshots(folder)
    captions = describe(saved, snapshots)
    options = fewer_tiles(SimpleNamespace(**constants), saved["settings"]["SIZE"])
    images, labels, data = runs.load_training_images(saved, DATA_DIR)
    generator, grids = load_generators(saved, folder, snapshots, captions.epoch, options)
    samples = draw_samples(images, labels, data, generator, saved, grids)
    neighbours = find_neighbours(samples) if NUMBERS or COPIES or FAILURES else None

    # Draw the sections and write the page.
    page = {}
    paths = {"checkpoint": folder / "checkpoint.pt", "data": data, "out": out}
    inputs = {"generator": generator, "saved": saved, "options": options, "page": page}
    context = Context(captions, samples, neighbours, **inputs, **paths)
    parts = {  # name: (wanted, section)
        "collage": (COLLAGE, sections.collage),
        "blind_test": (BLIND_TEST, sections.blind_test),
        "training": (TRAINING, sections.training),
        "by_label": (BY_LABEL and saved["label_counts"], evaluation.by_label),
        "numbers": (NUMBERS, evaluation.numbers),
        "detective": (DETECTIVE, detective.section),
        "diversity": (DIVERSITY, sections.diversity),
        "copies": (COPIES, evaluation.copies),
        "latent_space": (LATENT_SPACE, sections.latent_space),
        "failures": (FAILURES, evaluation.failures),
        "play": (PLAY, play.play),
    }
    with files.lock(out, doing="drawing", constant="IMAGES_DIR"):
        archive_other_run(out, saved["epoch"])
        files.remove_leftovers(out)
        for name, (wanted, section) in tqdm(parts.items(), "drawing", disable=None):
            part = section(context) if wanted else None
            if part is not None:
                page[name] = part
        if not grids:
            print("no epoch is finished yet: the grids, the GIF and the loss have to wait")
        write_synthetic(context)
        write_page(context)


def describe(saved, snapshots):
    """Return the Captions. snapshots: {epoch: path}. Raises UserError for an unknown EPOCH."""
    trained = saved["settings"]
    phantom, size = trained["DATASET"] == "phantom", trained["SIZE"]
    pixels = "" if size == 28 else f", {size}x{size}"
    of_epochs = f"of {trained['EPOCHS']}"
    epoch = None
    if EPOCH != "last":
        epoch = runs.choose_epoch(EPOCH, snapshots, saved["history"])
        when = f"epoch {epoch} {of_epochs}"
        best = "the one with the highest product of coverage and amplitude of detail"
        why = best if EPOCH == "best" else "the one that was asked for"
    elif saved["images_seen"] > 0:
        when = f"in epoch {saved['epoch'] + 1} {of_epochs}, unfinished"
        why = "the latest state of the run, in the middle of an epoch"
    elif saved["epoch"] > 0:
        epoch = saved["epoch"]
        when, why = f"epoch {epoch} {of_epochs}", "the last one of the run"
    else:
        when, why = "before the first step", "nothing is trained yet"
    return Captions(
        name=dataset.title(saved["info"]) + pixels,
        original="phantom" if phantom else "real",
        originals="phantoms" if phantom else "real images",
        epoch=epoch,
        when=when,
        why=why,
        of_epochs=of_epochs,
    )


def load_held_out(data, like):
    """Return at most N_EXAMINED images of the test or else the validation split, and its name.

    (None, "") if both are empty, as in a file of generate_images.py. Raises UserError if they are
    damaged or have other channels than `like`.
    """
    for split in ("test", "val"):
        images, _ = dataset.read_split(data, split, may_be_empty=True)
        if len(images) > 0:
            dataset.check_channels(data, split, images, like.shape[1])
            random = torch.Generator().manual_seed(SEED)
            order = torch.randperm(len(images), generator=random)
            return images[order[:N_EXAMINED]], split
    print(f"{data.path} has no test or validation images: nothing is compared with them")
    return None, ""


def load_generators(saved, folder, snapshots, shown, options):
    """Return the generator of the epoch shown, and the grid of each epoch.

    snapshots: {epoch: path}; shown: an epoch, or None for the state of checkpoint.pt. A grid is
    uint8 images (N, C, S, S), from the same latents in each epoch. Raises UserError.
    """
    generator = checkpoint.rebuild_generator(saved, folder / "checkpoint.pt")
    latents = saved["fixed_latents"][: options.GRID_ROWS * options.GRID_COLUMNS]
    choose_threads(THREADS, lambda: draw(generator, latents, saved["label_counts"]))
    grids = {}
    for epoch, path in tqdm(snapshots.items(), "reading", unit=" epochs", disable=None):
        snapshot = checkpoint.load(path, checkpoint.SNAPSHOT)
        if snapshot["model_args"] != saved["model_args"]:
            raise UserError(f"{path} is of another run. Move it away.")
        of_epoch = checkpoint.rebuild_generator(snapshot, path)
        grids[epoch] = draw(of_epoch, latents, snapshot["label_counts"])
        if epoch == shown:
            generator = of_epoch
    return generator, grids


def draw(generator, latents, label_counts):
    """Draw one image for each latent, with labels as frequent as among the training images."""
    random = torch.Generator().manual_seed(SEED)
    labels = draw_labels(label_counts, len(latents), random)
    return sampling.draw(generator, latents, labels)


def draw_samples(images, labels, data, generator, saved, grids):
    """Return the Samples: the given images, held-out images of the file, and synthetic images."""
    random = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(images), generator=random)
    latents = torch.randn(N_SYNTHETIC, generator.latent_dim, generator=random)
    synthetic = draw(generator, latents, saved["label_counts"])
    held_out, split = load_held_out(data, images)
    return Samples(
        images=images,
        order=order,
        shuffled_labels=None if labels is None else labels[order],
        held_out=held_out,
        held_out_split=split,
        synthetic=synthetic,
        examined=synthetic[:N_EXAMINED],
        grids=grids,
    )


def find_neighbours(samples):
    """Return the Neighbours of the samples."""
    train, held_out = samples.images, samples.held_out
    return Neighbours(
        synthetic=membership.nearest_image(samples.examined, train),
        held_out=None if held_out is None else membership.nearest_image(held_out, train),
    )


def archive_other_run(out, epochs):
    """Archive the folder of pictures if it shows an epoch after the last of this run."""
    if (out / "checkpoint.pt").exists():  # MODELS_DIR is IMAGES_DIR, so it is this run
        return
    ours = {f"epoch_{epoch:04d}.png" for epoch in range(1, epochs + 1)}  # snapshots may be gone
    if any(path.name not in ours for path in (out / "epochs").glob("epoch_*.png")):
        print(f"{out} holds pictures of another run; it is now called {runs.archive(out)}")


def write_synthetic(context):
    """Write the synthetic images for use elsewhere, and a contact sheet of the first of them."""
    captions, samples, out = context.captions, context.samples, context.out
    path = out / "synthetic" / "synthetic.npz"
    with files.atomic_write(path) as file:
        np.savez_compressed(file, images=dataset.to_hwc(samples.synthetic))
    print(f"{path}: {len(samples.synthetic)} images")
    heading = f"{captions.name}\nsynthetic images, {captions.when}"
    columns, rows = (fewer(count, context.size) for count in (40, 25))
    sheet = [("", plotting.tile(samples.synthetic[: columns * rows], columns))]
    path = out / "synthetic" / "contact_sheet.png"
    plotting.write_png(path, plotting.compose(heading, sheet, columns=1, scale=1))


def digits(number):
    """Format a number with three significant digits, but at most four decimals."""
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:#.3g}" if size >= 0.1 else f"{number:.4f}"


def write_page(context):
    """Fill the template: one file that contains all pictures and needs no network."""
    saved, path = context.saved, context.out / "report.html"
    trained, history = saved["settings"], saved["history"]
    name = trained["DATASET"]
    seconds = sum(row.get("seconds", 0) for row in history) + saved["seconds"]
    jinja = environment()
    jinja.filters["digits"] = digits
    html = jinja.get_template("report.html.jinja").render(
        context.page,
        parts=context.page.keys(),
        captions=context.captions,
        samples=context.samples,
        saved=saved,
        trained=trained,
        info=saved["info"],
        own=name not in dataset.NAMES,
        source=f"{context.data.path.name}, {dataset.provenance(context.data)}",
        is_official=dataset.is_official(context.data),
        settings={key: value for key, value in trained.items() if key not in HIDDEN},
        seconds=timedelta(seconds=round(seconds)),
        speed=saved["step"] * trained["BATCH_SIZE"] / seconds if seconds else None,
    )
    files.write(path, html.encode())
    print(f"{path}: {len(html.encode()) / 1e6:.1f} MB, the page to open in a browser")


if __name__ == "__main__":
    script.run(main, globals(), memory=["N_SYNTHETIC", "N_EXAMINED"])
