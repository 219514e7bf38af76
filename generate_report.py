"""Draw what a run has learned: real beside synthetic images, each epoch, an animation, the losses.

    python generate_report.py                          the run trained last
    python generate_report.py --RUN_NAME=phantom       a certain run

Works while a run is still training, too. Every constant below can be changed here or on the
command line.
"""

import contextlib
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
from common import checkpoint, dataset, files, hardware, metrics, runs, sampling, settings
from common.settings import UserError
from report import evaluation, play, plotting, sections

# --- Run ---
RUN_NAME = ""  # folder in MODELS_DIR; empty: the run trained last
MODELS_DIR = "models"  # where train_model.py keeps its runs
DATA_DIR = ""  # folder of the .npz files; empty: the one the run was trained from
IMAGES_DIR = "images"  # the pictures go to IMAGES_DIR/RUN_NAME
EPOCH = "last"  # to draw from: "last", "best" (the one of the highest coverage) or a number
SEED = 0  # of the synthetic images and the choice of real ones [0 to 2147483647]

# --- Parts of the report; one that is off is left out of the page and draws no pictures ---
COLLAGE = True  # "Reel vs Real": real images beside synthetic ones [True, False]
BLIND_TEST = True  # real and synthetic images mixed, for the reader to tell apart [True, False]
TRAINING = True  # each epoch, the GIF, the losses [True, False]
BY_LABEL = True  # images of each label, if the run has learned labels [True, False]
NUMBERS = True  # what the metrics say, over the epochs and of the epoch shown [True, False]
DIVERSITY = True  # many images, the most alike among them, means and grey levels [True, False]
COPIES = True  # the images nearest to the training set [True, False]
LATENT_SPACE = True  # walks between latents [True, False]
FAILURES = True  # the images furthest from the training set [True, False]
PLAY = True  # a page of its own, play.html, to play with both networks [True, False]

# --- Pictures ---
SCALE = 6  # pixels of a picture an image pixel, but for GIFs; 6 is fine for print [1 to 10]
COLLAGE_ROWS = 8  # of each half of the collage [1 to 50]
COLLAGE_COLUMNS = 8  # of each half of the collage [1 to 50]
GRID_ROWS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
GRID_COLUMNS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
PROGRESS_ROWS = 8  # epochs in training_progress.png, spread over the run [1 to 100]
GIF_SCALE = 2  # screen pixels an image pixel in the GIF [1 to 10]
GIF_GREYS = 64  # grey levels in the GIFs; fewer make smaller files [2 to 256]
FRAME_MS = 200  # time a frame of the GIF is shown, milliseconds [20 to 60000]
LAST_FRAME_MS = 3000  # the same for the last frame, milliseconds [20 to 60000]

# --- Synthetic images ---
N_SYNTHETIC = 1000  # images in synthetic/synthetic.npz [1 to 100000]
N_EXAMINED = 1000  # the first of them, looked through for doubles, copies, failures [1 to 3000]

# Where files lie is no one's business but the user's.
LEFT_OUT = {"DATA_DIR", "MODELS_DIR", "IMAGES_DIR", "RUN_NAME", "RESUME", "CHECKPOINT_MINUTES"}
LEFT_OUT |= {"COLLAPSE"}  # a sentence that train_model.py prints, no setting


def main(constants):
    options = SimpleNamespace(**constants)
    folder = runs.find_run(MODELS_DIR, RUN_NAME)
    out = runs.run_folder(IMAGES_DIR, folder.name)
    run = read_run(folder)  # all of it, so that nothing is written for a run that cannot be read
    archive_foreign(out, run.grids)

    parts = {
        "collage": (COLLAGE, sections.collage),
        "blind_test": (BLIND_TEST, sections.blind_test),
        "training": (TRAINING, sections.training),
        "by_label": (BY_LABEL and run.last["label_counts"], evaluation.by_label),
        "numbers": (NUMBERS, evaluation.numbers),
        "diversity": (DIVERSITY, sections.diversity),
        "copies": (COPIES, evaluation.copies),
        "latent_space": (LATENT_SPACE, sections.latent_space),
        "failures": (FAILURES, evaluation.failures),
    }
    page = {}
    for name, (wanted, draw) in tqdm(parts.items(), "drawing", unit=" parts", disable=None):
        if wanted:
            page[name] = draw(run, out, options)
    if not run.grids:
        print("no epoch is finished yet: the grids, the GIF and the losses have to wait")
    write_synthetic(run, out)
    page["play"] = play.write(run, folder / "checkpoint.pt", out) if PLAY else None
    write_page(page, run, out / "report.html")


def read_run(folder):
    """Read a run and the images it was trained on, and draw from its generators.

    Returns a namespace: what the report is about in words (name, original, originals, when, about,
    of_epochs, why, source, held_out_split), the checkpoint (last, trained, history, row), uint8
    images (N, C, 28, 28) (images, held_out, synthetic, examined, grids), the training images'
    label vectors (labels), what is nearest to them (near_synthetic, near_held_out) and the
    generator shown: draw(latents, labels, precision). Raises UserError.
    """
    last = checkpoint.load(folder / "checkpoint.pt", checkpoint.CHECKPOINT)
    trained, history, epoch = last["settings"], last["history"], last["epoch"]
    snapshots = runs.find_snapshots(folder)
    chosen = runs.choose_epoch(EPOCH, snapshots, history) if EPOCH != "last" else None
    images, labels, source = load_images(trained, last["data_sha256"])

    drawn_from, path = last, folder / "checkpoint.pt"
    latents = last["fixed_latents"][: GRID_ROWS * GRID_COLUMNS]
    grids = {}  # epoch: the images drawn from the same latents after that epoch
    for number, snapshot in tqdm(snapshots.items(), "reading", unit=" epochs", disable=None):
        saved = checkpoint.load(snapshot, checkpoint.SNAPSHOT)
        grids[number] = sample(saved, snapshot, latents)
        if number == chosen:
            drawn_from, path = saved, snapshot

    of_epochs = f"of {trained['EPOCHS']}"
    when, why = f"epoch {chosen or epoch} {of_epochs}", "the last one of the run"
    if chosen:
        why = "that of the highest coverage" if EPOCH == "best" else "the one that was asked for"
    elif last["images_seen"] > 0:
        when = f"in epoch {epoch + 1} {of_epochs}, unfinished"
        why = "the latest state of the run, in the middle of an epoch"
    elif epoch == 0:
        when, why = "before the first step", "nothing is trained yet"
    finished = chosen or (epoch if last["images_seen"] == 0 else None)

    random = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(images), generator=random)
    latents = torch.randn(N_SYNTHETIC, trained["LATENT_DIM"], generator=random)
    synthetic = sample(drawn_from, path, latents)
    examined = synthetic[:N_EXAMINED]
    held_out, split = load_held_out(trained, images)
    name = dataset.title(trained["DATASET"])
    compared = NUMBERS or COPIES or FAILURES
    return SimpleNamespace(
        name=name,
        original="phantom" if trained["DATASET"] == "phantom" else "real",
        originals="phantoms" if trained["DATASET"] == "phantom" else "real images",
        when=when,
        why=why,
        about=f"{name}, {when}",
        of_epochs=of_epochs,
        last=last,
        trained=trained,
        history=history,
        row=next((row for row in history if row["epoch"] == finished), {}),
        source=Path(source).name,  # with the path of the file its reader has nothing to do
        official="MD5 agrees" in source,
        images=images,
        labels=labels,
        order=order,
        held_out=held_out,
        held_out_split=split,
        grids=grids,
        synthetic=synthetic,
        examined=examined,
        near_synthetic=metrics.nearest_image(examined, images) if compared else None,
        near_held_out=metrics.nearest_image(held_out, images) if compared and split else None,
        draw=partial(sample, drawn_from, path),
        generator=checkpoint.rebuild_generator(drawn_from, path),
    )


def load_images(trained, fingerprint):
    """Return (images, label vectors or None, source): what a run was trained on.

    Raises UserError if it is no longer there.
    """
    folder = DATA_DIR or trained["DATA_DIR"]
    name, fraction, seed = trained["DATASET"], trained["TRAIN_FRACTION"], trained["SEED"]
    images, labels, source = dataset.load(name, "train", folder, fraction, seed)
    labels = dataset.encode_labels(name, labels) if trained.get("CONDITIONAL") else None
    if dataset.sha256(images, labels) != fingerprint:
        raise UserError(
            f"{source}: these are not the images that the run was trained on. Give the "
            "folder of the right file as --DATA_DIR"
        )
    return images, labels, source


def load_held_out(trained, images):
    """Return (images, split): at most N_EXAMINED of the test or else the validation split.

    (None, "") if neither holds images like the training ones.
    """
    path = Path(DATA_DIR or trained["DATA_DIR"]) / f"{trained['DATASET']}.npz"
    random = torch.Generator().manual_seed(SEED)
    for split in ("test", "val"):
        with contextlib.suppress(UserError):
            held_out, _ = dataset.read_split(path, split, trained["DATASET"])
            if held_out.shape[1:] == images.shape[1:]:
                order = torch.randperm(len(held_out), generator=random)
                return held_out[order[:N_EXAMINED]], split
    return None, ""


def archive_foreign(out, grids):
    """Keep the pictures of a former run of the same name apart, should any be there."""
    ours = {f"epoch_{epoch:04d}.png" for epoch in grids}
    if any(path.name not in ours for path in (out / "epochs").glob("epoch_*.png")):
        print(f"{out} holds pictures of another run; it is now called {runs.archive(out)}")


def sample(saved, path, latents, labels=None, dtype="float32"):
    """Draw one image for each latent with the moving-average generator of a checkpoint.

    latents: (N, latent_dim); labels: float (N, K), if the run has learned labels, by default as
    frequent as in the training set; precision: of the convolutions, "float32" or "bfloat16".
    Returns uint8 (N, C, 28, 28). Raises UserError if the checkpoint does not fit.
    """
    if labels is None:
        random = torch.Generator().manual_seed(SEED)
        labels = dataset.draw_labels(saved["label_counts"], len(latents), random)
    generator = checkpoint.rebuild_generator(saved, path)
    with hardware.autocast(torch.device("cpu"), dtype):
        return sampling.draw(generator, latents, labels)


def write_synthetic(run, out):
    """Write the synthetic images for use elsewhere, and a sheet that shows the first of them."""
    path = out / "synthetic" / "synthetic.npz"
    with files.atomic_write(path) as file:
        np.savez_compressed(file, images=dataset.to_hwc(run.synthetic))
    print(f"{path}: {len(run.synthetic)} images")
    heading = f"{run.name}\nsynthetic images, {run.when}"
    sheet = [("", plotting.tile(run.synthetic[:1000], columns=40))]
    path = out / "synthetic" / "contact_sheet.png"
    plotting.write_png(path, plotting.compose(heading, sheet, columns=1, scale=1))


def digits(number):
    """A number as a reader wants it: three digits that tell something, at most four decimals."""
    size = abs(number)
    return f"{number:,.0f}" if size >= 100 else f"{number:#.3g}" if size >= 0.1 else f"{number:.4f}"


def write_page(page, run, path):
    """Fill the template: one file with all pictures in it, to be read without a network."""
    speeds = [row["images_per_second"] for row in run.history if "images_per_second" in row]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["digits"] = digits
    template = (Path(__file__).parent / "report" / "report.html.jinja").read_text(encoding="utf-8")
    content = (
        environment.from_string(template)
        .render(
            page,
            parts=page.keys(),
            run=run,
            info=dataset.INFO[run.trained["DATASET"]],
            settings={k: v for k, v in run.trained.items() if k not in LEFT_OUT},
            machine=run.last.get("machine", {}),
            seconds=timedelta(seconds=round(sum(row.get("seconds", 0) for row in run.history))),
            speed=sum(speeds) / len(speeds) if speeds else None,
        )
        .encode()
    )
    with files.atomic_write(path) as file:
        file.write(content)
    print(f"{path}: {len(content) / 1e6:.1f} MB, the page to open in a browser")


if __name__ == "__main__":
    try:
        main(settings.override(globals()))
    except KeyboardInterrupt:
        print("\ninterrupted; each file is either whole or as it was before")
        sys.exit(130)
