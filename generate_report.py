"""Draw what a run has learned: real beside synthetic images, each epoch, an animation, the losses.

    python generate_report.py                          the run trained last
    python generate_report.py --RUN_NAME=phantom       a certain run

Works while a run is still training, too. Every constant below can be changed here or on the
command line.
"""

import sys

import imageio.v3 as imageio
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torchvision.utils import make_grid

import checkpoint
import dataset
import files
import settings
from dcgan import Generator
from settings import UserError

# --- Run ---
RUN_NAME = ""  # folder in MODELS_DIR; empty: the run trained last
MODELS_DIR = "models"  # where train_model.py keeps its runs
DATA_DIR = ""  # folder of the .npz files; empty: the one the run was trained from
IMAGES_DIR = "images"  # the pictures go to IMAGES_DIR/RUN_NAME
EPOCH = "last"  # to draw from: "last", "best" (the one of the highest coverage) or a number
SEED = 0  # of the synthetic images and the choice of real ones [0 to 2147483647]

# --- Pictures ---
SCALE = 3  # screen pixels an image pixel, but for the GIF [1 to 10]
COLLAGE_ROWS = 8  # of each half of the collage [1 to 50]
COLLAGE_COLUMNS = 8  # of each half of the collage [1 to 50]
GRID_ROWS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
GRID_COLUMNS = 8  # of the grid of an epoch, which the GIF shows too [1 to 8]
PROGRESS_ROWS = 8  # epochs in training_progress.png, spread over the run [1 to 100]
GIF_SCALE = 2  # screen pixels an image pixel in the GIF [1 to 10]
GIF_GREYS = 64  # grey levels in the GIF; fewer make a smaller file [2 to 256]
FRAME_MS = 200  # time a frame of the GIF is shown, milliseconds [20 to 60000]
LAST_FRAME_MS = 3000  # the same for the last frame, milliseconds [20 to 60000]

# --- Synthetic images ---
N_SYNTHETIC = 1000  # images in synthetic/synthetic.npz [1 to 100000]

# Told apart by colour-blind readers too (Okabe and Ito).
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"


def main():
    folder = checkpoint.find_run(MODELS_DIR, RUN_NAME)
    out = files.run_folder(IMAGES_DIR, folder.name)

    # First read everything, so that nothing is written for a run that cannot be read.
    last = checkpoint.load(folder / "checkpoint.pt", checkpoint.CHECKPOINT)
    trained = last["settings"]
    name, of_epochs = dataset.title(trained["DATASET"]), f"of {trained['EPOCHS']}"
    if last["position"] == 0:
        when = f"epoch {last['epoch']} {of_epochs}"
    else:
        when = f"in epoch {last['epoch'] + 1} {of_epochs}, unfinished"
    snapshots = checkpoint.find_snapshots(folder)
    drawn_from, path = last, folder / "checkpoint.pt"
    if EPOCH != "last":
        epoch = checkpoint.choose_epoch(EPOCH, snapshots, last["history"])
        path, when = snapshots[epoch], f"epoch {epoch} {of_epochs}"
        drawn_from = checkpoint.load(path, checkpoint.SNAPSHOT)
    images = load_images(trained, last["fingerprint"])
    random = torch.Generator().manual_seed(SEED)
    real = images[torch.randperm(len(images), generator=random)[: COLLAGE_ROWS * COLLAGE_COLUMNS]]
    latents = torch.randn(N_SYNTHETIC, trained["LATENT_DIM"], generator=random)
    synthetic = sample(drawn_from, path, latents)
    grids = {}  # epoch: the images drawn from the same latents after that epoch
    for epoch, path in snapshots.items():
        latents = last["fixed_latents"][: GRID_ROWS * GRID_COLUMNS]
        grids[epoch] = sample(checkpoint.load(path, checkpoint.SNAPSHOT), path, latents)

    set_aside_foreign(out, grids)
    heading = f"Reel vs Real: {name}, {when}"
    original = "phantoms" if trained["DATASET"] == "phantom" else "real"
    halves = [(original, real), ("synthetic", synthetic[: len(real)])]
    collage = compose(heading, halves, COLLAGE_COLUMNS, side_by_side=True)
    write_png(out / "real_vs_synthetic.png", collage)

    frames = []
    for epoch, grid in grids.items():
        heading = f"{name}\nsynthetic images, epoch {epoch} {of_epochs}"
        picture = compose(heading, [("", grid)], GRID_COLUMNS)
        write_png(out / "epochs" / f"epoch_{epoch:04d}.png", picture, quiet=True)
        frames.append(compose(heading, [("", grid)], GRID_COLUMNS, scale=GIF_SCALE))
    if frames:
        print(f"{out / 'epochs'}: {len(frames)} grids")
        spread = np.linspace(0, len(grids) - 1, PROGRESS_ROWS).round().astype(int)
        chosen = np.unique(np.array([*grids])[spread])
        strips = [(f"epoch {epoch}", grids[epoch][:10]) for epoch in chosen]
        heading = f"{name}\nsynthetic images from the same ten latents"
        strips.append((original, real[:10]))
        write_png(out / "training_progress.png", compose(heading, strips, columns=10))
        write_gif(out / "training.gif", frames)
        write_png(out / "losses.png", draw_losses(last["history"], name))
        if last["floor"]:
            write_png(out / "metrics.png", draw_metrics(last, name))
    else:
        print("no epoch is finished yet: the grids, the GIF and the losses have to wait")

    with files.replacing(out / "synthetic" / "synthetic.npz") as file:
        np.savez_compressed(file, images=synthetic.permute(0, 2, 3, 1).squeeze(-1).numpy())
    print(f"{out / 'synthetic' / 'synthetic.npz'}: {len(synthetic)} images")
    heading = f"{name}\nsynthetic images, {when}"
    sheet = compose(heading, [("", synthetic[:1000])], columns=40, scale=1)
    write_png(out / "synthetic" / "contact_sheet.png", sheet)


def load_images(trained, fingerprint):
    """Return the images that a run was trained on. Raises UserError if they are others now."""
    folder = DATA_DIR or trained["DATA_DIR"]
    name, fraction, seed = trained["DATASET"], trained["TRAIN_FRACTION"], trained["SEED"]
    images, _, source = dataset.load(name, "train", folder, fraction, seed)
    if dataset.fingerprint(images) != fingerprint:
        raise UserError(
            f"{source}: these are not the images that the run was trained on. Give the "
            "folder of the right file as --DATA_DIR"
        )
    return images


def set_aside_foreign(out, grids):
    """Keep the pictures of a former run of the same name apart, should any be there."""
    ours = {f"epoch_{epoch:04d}.png" for epoch in grids}
    if any(path.name not in ours for path in (out / "epochs").glob("epoch_*.png")):
        print(f"{out} holds pictures of another run; it is now called {files.set_aside(out)}")


def sample(saved, path, latents):
    """Draw one image for each latent with the moving-average generator of a checkpoint.

    latents: (N, latent_dim). Returns uint8 (N, C, 28, 28). Raises UserError if the two do not fit.
    """
    generator = Generator(latents.shape[1], saved["channels"]).eval()
    checkpoint.restore(generator, saved["generator_ema"], path)
    return dataset.draw(generator, latents)


def compose(heading, blocks, columns, side_by_side=False, scale=None):
    """Draw blocks of tiled images under a heading. Returns uint8 (height, width, 3).

    blocks: list of (caption, uint8 images (N, C, 28, 28)), below each other by default.
    0 is always black and 255 always white, whatever the images hold.
    """
    scale = scale or SCALE
    tiles = []
    for caption, images in blocks:
        grid = make_grid(images, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()
        tiles.append((caption, grid.repeat(scale, axis=0).repeat(scale, axis=1)))
    line, margin = 26, 16  # pixels
    top = margin + line * (heading.count("\n") + 1)
    above = line if any(caption for caption, _ in tiles) else 4
    widths = [grid.shape[1] for _, grid in tiles]
    heights = [above + grid.shape[0] for _, grid in tiles]
    if side_by_side:
        width, height = sum(widths) + margin * (len(tiles) + 1), top + max(heights) + margin
    else:
        width, height = max(widths) + 2 * margin, top + sum(heights) + margin
    width = max(width, 480)  # room for the heading

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(
        margin / width, 1 - margin / height, heading, fontsize=12, va="top", linespacing=1.5
    )
    x, y = margin, top
    for (caption, grid), block_width, block_height in zip(tiles, widths, heights, strict=True):
        figure.text(x / width, 1 - (y + above - 4) / height, caption, fontsize=11, va="bottom")
        figure.figimage(grid, x - scale, height - y - block_height)  # the rim of the grid is white
        x, y = (x + block_width + margin, y) if side_by_side else (x, y + block_height)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def draw_losses(history, name):
    """Plot losses and the discriminator's opinions over epochs. Returns uint8 (H, W, 3)."""
    figure, (upper, lower) = draw_axes(f"{name}: training, mean of each epoch")
    plot(upper, history, "loss_discriminator", "discriminator", BLUE)
    plot(upper, history, "loss_generator", "generator", VERMILION)
    upper.set_ylabel("loss (nats)")
    upper.set_ylim(bottom=0)
    plot(lower, history, "d_real", "D(x), real", BLUE)
    plot(lower, history, "d_fake", "D(G(z)), synthetic", VERMILION)
    lower.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", label="cannot tell")
    lower.set_ylabel("probability of being real,\nas the discriminator sees it")
    lower.set_ylim(0, 1)
    return finish(figure)


def draw_metrics(last, name):
    """Plot what was measured, and what real images would reach. Returns uint8 (H, W, 3)."""
    history, floor, gaussian = last["history"], last["floor"], last["gaussian"]
    n = f"{floor['n']:,}"
    title = f"{name}\n{n} synthetic against {n} training images; dashed: {n} other training images"
    figure, (upper, lower) = draw_axes(title)
    for key, colour in (("precision", BLUE), ("recall", VERMILION), ("coverage", GREEN)):
        plot(upper, history, key, key, colour)
        upper.axhline(floor[key], color=colour, linewidth=0.8, linestyle="--")
    upper.set_ylabel("share of images")
    upper.set_ylim(0, 1)
    plot(lower, history, "frechet", "synthetic", BLUE)
    lower.axhline(floor["frechet"], color=BLUE, linewidth=0.8, linestyle="--", label="training")
    lower.axhline(gaussian["frechet"], color="grey", linewidth=0.8, linestyle=":", label="Gaussian")
    lower.set_ylabel("Frechet distance")
    lower.set_yscale("log")
    return finish(figure)


def draw_axes(title):
    """Return a figure and its two axes, one above the other, over the same epochs."""
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    axes[0].set_title(title)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def plot(axes, history, key, label, colour):
    marker = "o" if len(history) < 15 else None
    rows = [row for row in history if key in row]
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row[key] for row in rows], label=label, color=colour, marker=marker)


def finish(figure):
    """Return a figure's pixels, uint8 (H, W, 3)."""
    for axes in figure.axes:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def write_png(path, picture, quiet=False):
    with files.replacing(path) as file:
        file.write(imageio.imwrite("<bytes>", picture, extension=".png"))
    if not quiet:
        print(path)


def write_gif(path, frames):
    """Write an endless animation that rests on its last frame."""
    if all((frame == frame[:, :, :1]).all() for frame in frames):
        step = 255 / (GIF_GREYS - 1)
        frames = [((frame[:, :, 0] / step).round() * step).astype(np.uint8) for frame in frames]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    if len(frames) == 1:  # which imageio hands to Pillow as a picture, and that has one duration
        durations = LAST_FRAME_MS
    content = imageio.imwrite("<bytes>", frames, extension=".gif", duration=durations, loop=0)
    with files.replacing(path) as file:
        file.write(content)
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    settings.override(globals())
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted; each file is either whole or as it was before")
        sys.exit(130)
