"""What each part of the report shows: pictures drawn, numbers measured, ready for the page.

Every public function takes the same three things and returns a dict for the template. run: the
namespace that read_run in generate_report.py returns; out: the folder of the pictures; options: the
constants of generate_report.py as a namespace.
"""

import numpy as np
import torch
from tqdm import tqdm

from common import dataset, metrics
from report import plotting

EXAMPLES = 10  # pairs of images in a row
BLIND_TILES = 32
GIF_FRAMES, GIF_TILES = 50, 32  # at most, in the page: it must stay small
WALKS, WALK_STEPS = 8, 10
LOOP_TILES, LOOP_STOPS, LOOP_STEPS = 8, 4, 15  # LOOP_STEPS frames from one stop to the next
LOOP_MS = 80  # time a frame is shown


def collage(run, out, options):
    """Training images beside as many synthetic ones, neither chosen by hand."""
    count = min(options.COLLAGE_ROWS * options.COLLAGE_COLUMNS, len(run.images), len(run.synthetic))
    halves = {run.original: run.images[run.order[:count]], "synthetic": run.synthetic[:count]}
    cells = [(name, plotting.tile(x, options.COLLAGE_COLUMNS)) for name, x in halves.items()]
    heading = f"Reel vs Real: {run.name}, {run.when}"
    alt = f"{count} {run.originals} beside {count} synthetic ones, {run.about}"
    path = out / "real_vs_synthetic.png"
    return {"picture": plotting.save_tiles(path, heading, cells, 2, options.SCALE, alt)}


def blind_test(run, out, options):
    """Half the tiles are real, in an order drawn from the seed; none was in the collage."""
    shown = options.COLLAGE_ROWS * options.COLLAGE_COLUMNS
    real = unseen(run.images[run.order[shown:]], run.images[run.order[:shown]], BLIND_TILES // 2)
    synthetic = run.synthetic[shown : shown + len(real)]
    count = min(len(real), len(synthetic))
    if count == 0:
        return {}
    random = torch.Generator().manual_seed(options.SEED)
    order = torch.randperm(2 * count, generator=random)
    tiles = torch.cat([real[:count], synthetic[:count]])[order]
    cells = [(f"{n}", plotting.tile(image[None], 1)) for n, image in enumerate(tiles, start=1)]
    heading = f"{run.name}: which of these are {run.originals}?\nsynthetic ones from {run.when}"
    alt = "an image, from the training set or synthetic"
    path = out / "blind_test.png"
    picture = plotting.save_tiles(path, heading, cells, 8, options.SCALE, alt, below=True)
    is_real = (order < count).tolist()
    return {
        "picture": picture,
        "real": [number for number, real in enumerate(is_real, start=1) if real],
        "synthetic": [number for number, real in enumerate(is_real, start=1) if not real],
    }


def unseen(candidates, shown, count):
    """Return the first images that are no near-duplicates of images shown, nor of each other.

    A near-duplicate is nearer than half of what is usual: whoever has seen the one would know the
    other. All uint8 (N, C, 28, 28); there may be fewer than count.
    """
    limit = metrics.nearest_image(candidates[:100], shown)[0].median() / 2
    chosen = shown[:0]
    for image in candidates[: 20 * count].split(1):
        if len(chosen) < count:
            distance, _ = metrics.nearest_image(image, torch.cat([shown, chosen]))
            chosen = torch.cat([chosen, image[distance > limit]])
    return chosen


def training(run, out, options):
    """The grids of all epochs, the strips, the animation and the losses."""
    columns, scale = options.GRID_COLUMNS, options.SCALE
    if not run.grids:
        return {}
    frames, tiles = [], {epoch: plotting.tile(grid, columns) for epoch, grid in run.grids.items()}
    for epoch, picture in tiles.items():
        heading = f"{run.name}\nsynthetic images, epoch {epoch} {run.of_epochs}"
        path = out / "epochs" / f"epoch_{epoch:04d}.png"
        plotting.write_png(path, plotting.compose(heading, [("", picture)], 1, scale), quiet=True)
        frames.append(plotting.compose(heading, [("", picture)], 1, options.GIF_SCALE))
    tqdm.write(f"{out / 'epochs'}: {len(frames)} grids")
    path, greys = out / "training.gif", options.GIF_GREYS
    durations = [options.FRAME_MS] * (len(frames) - 1) + [options.LAST_FRAME_MS]
    plotting.write_gif(path, frames, greys, durations)

    chosen = evenly_spaced(run.grids, GIF_FRAMES)
    small = [plotting.tile(run.grids[epoch][:GIF_TILES], columns) for epoch in chosen]
    small = plotting.film(small, [f"epoch {epoch} {run.of_epochs}" for epoch in chosen])
    alt = f"synthetic images from the same latents, epoch {chosen[0]} to {chosen[-1]}, {run.name}"
    gif = plotting.animation(path, small, greys, durations[-len(small) :], alt)

    strips = [
        (f"epoch {epoch}", plotting.tile(run.grids[epoch][:EXAMPLES], EXAMPLES))
        for epoch in evenly_spaced(run.grids, options.PROGRESS_ROWS)
    ]
    real = run.images[run.order[:EXAMPLES]]
    strips.append((run.original, plotting.tile(real, EXAMPLES)))
    heading = f"{run.name}\nsynthetic images from the same ten latents"
    alt = f"synthetic images from the same latents in a row for each epoch, {run.name}"
    strips = plotting.save_tiles(out / "training_progress.png", heading, strips, 1, scale, alt)

    page, rows = {"gif": gif, "strips": strips}, run.history
    if rows:
        alt = f"Losses and the discriminator's opinions over {len(rows)} epochs, {run.name}"
        page["losses"] = plotting.save_curves(
            out / "losses", lambda: draw_losses(rows, run.name), alt
        )
        page["last"] = rows[-1]
    return page


def evenly_spaced(epochs, count):
    """Return at most count epochs, evenly spread, the first and the last among them."""
    epochs = [*epochs]
    places = np.linspace(0, len(epochs) - 1, count).round().astype(int)
    return [epochs[place] for place in np.unique(places)] if count > 1 else epochs[-1:]


def draw_losses(history, name):
    """Plot losses and the discriminator's opinions over epochs."""
    figure, (upper, lower) = plotting.over_epochs(f"{name}: training, mean of each epoch")
    plotting.plot(upper, history, "loss_discriminator", "discriminator", "C0")
    plotting.plot(upper, history, "loss_generator", "generator", "C1")
    upper.set_ylabel("loss (nats)")
    upper.set_ylim(bottom=0)
    plotting.plot(lower, history, "d_real", "D(x), real", "C0")
    plotting.plot(lower, history, "d_fake", "D(G(z)), synthetic", "C1")
    lower.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", label="cannot tell")
    lower.set_ylabel("probability of being real")
    lower.set_ylim(0, 1)
    for axes in (upper, lower):
        plotting.legend(axes)
    return figure


def diversity(run, out, options):
    """Many images, the most alike among them, and means and spreads beside the real ones."""
    synthetic, scale = run.examined, options.SCALE
    real = run.images[run.order[: len(synthetic)]]
    grid = [("", plotting.tile(synthetic[:192], 12))]
    heading = f"{run.name}\nsynthetic images, {run.when}"
    alt = f"{min(192, len(synthetic))} synthetic images, {run.about}"
    page = {"n": len(synthetic), "n_real": len(real)}
    page["grid"] = plotting.save_tiles(out / "diversity.png", heading, grid, 1, scale, alt)

    for key, images, kind in (
        ("near_duplicates", synthetic, "synthetic"),
        ("real", real, run.original),
    ):
        distances, pairs = metrics.closest_pairs(images, EXAMPLES)
        if len(pairs) > 0:
            heading = f"{run.name}\nthe {kind} images most alike among {len(images):,}"
            heading += f", {run.when}" if key == "near_duplicates" else ""
            cells = [
                (f"{distance:.1f}", plotting.tile(images[pair], 1))
                for distance, pair in zip(per_pixel(distances, images), pairs, strict=True)
            ]
            alt = f"two {kind} images that are much alike, one above the other"
            path = out / f"most_alike_{'synthetic' if key == 'near_duplicates' else 'real'}.png"
            page[key] = plotting.save_tiles(path, heading, cells, EXAMPLES, scale, alt, below=True)

    cells = []
    for kind, images in ((run.original, real), ("synthetic", synthetic)):
        x = images.double()
        cells.append((f"mean\n{kind}", picture_of(x.mean(0))))
        cells.append((f"standard deviation\n{kind}", picture_of(2 * x.std(0, correction=0))))
    heading = f"{run.name}, {run.when}\nmean and standard deviation (doubled)"
    alt = f"mean and standard deviation of each pixel, {run.original} and synthetic"
    page["moments"] = plotting.save_tiles(out / "mean_and_std.png", heading, cells, 4, scale, alt)

    sets = {run.original: real.flatten().numpy(), "synthetic": synthetic.flatten().numpy()}
    page["greys"] = plotting.save_curves(
        out / "grey_levels",
        lambda: plotting.histogram(
            f"{run.name}, {run.when}", sets, np.arange(0, 257, 4), "grey level", "pixels (%)"
        ),
        f"How often each grey level occurs in {run.original} and in synthetic images",
    )
    return page


def picture_of(pixels):
    """One image (C, 28, 28) of numbers as a picture."""
    return plotting.tile(pixels.round().clamp(0, 255).to(torch.uint8)[None], 1)


def per_pixel(distances, images):
    """Distances over all pixels as root mean squares per pixel, in grey levels."""
    return (distances / images[0].numel() ** 0.5).tolist()


def slerp(a, b, t):
    """Return the latents a share t of the way from a to b along a great circle.

    Formula: (sin((1 - t) w) u + sin(t w) v) / sin w, for the directions u = a / |a|, v = b / |b|
    and the angle w between them; the length goes evenly from |a| to |b|. Shapes: (..., D), (..., D)
    and t in [0, 1] -> (..., D). A straight line would pass nearer to 0 than latents ever lie.
    Source: White 2016, section 2.1 (Shoemake 1985).
    """
    length_a, length_b = (x.norm(dim=-1, keepdim=True) for x in (a, b))
    u, v = a / length_a, b / length_b
    angle = (u * v).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine
    direction = torch.where(sine > 1e-4, arc, (1 - t) * u + t * v)  # nearly one line: no circle
    return direction * ((1 - t) * length_a + t * length_b)


def one_label_each(run, n, random):
    """Label vectors to keep while the latents change; empty if the run has learned none."""
    return dataset.draw_labels(run.last["label_counts"], n, random)


def latent_space(run, out, options):
    """Walks from one latent to another, and an endless tour through a few."""
    random = torch.Generator().manual_seed(options.SEED)
    width = run.trained["LATENT_DIM"]
    ends = torch.randn(2, WALKS, width, generator=random)
    steps = torch.linspace(0, 1, WALK_STEPS).tolist()
    walks = torch.stack([slerp(*ends, t) for t in steps], 1).flatten(0, 1)
    drawn = run.draw(walks, one_label_each(run, WALKS, random).repeat_interleave(WALK_STEPS, 0))
    cells = [("", plotting.tile(drawn, WALK_STEPS))]
    heading = f"{run.name}, {run.when}\neach row: a walk from one latent to another"
    alt = f"{WALKS} rows of synthetic images, each changing gradually into another, {run.about}"
    walks = plotting.save_tiles(out / "walks.png", heading, cells, 1, options.SCALE, alt)

    stops = torch.randn(LOOP_STOPS, LOOP_TILES, width, generator=random)
    path = [
        slerp(stops[i], stops[(i + 1) % LOOP_STOPS], step / LOOP_STEPS)
        for i in range(LOOP_STOPS)
        for step in range(LOOP_STEPS)
    ]
    drawn = run.draw(torch.cat(path), one_label_each(run, LOOP_TILES, random).repeat(len(path), 1))
    pictures = [plotting.tile(images, LOOP_TILES // 2) for images in drawn.split(LOOP_TILES)]
    heading = f"{run.name}, {run.when}\na tour through {LOOP_STOPS} latents and back"
    scale, greys, durations = 2 * options.GIF_SCALE, options.GIF_GREYS, [LOOP_MS] * len(path)
    frames = [plotting.compose(heading, [("", picture)], 1, scale) for picture in pictures]
    path = out / "interpolation.gif"
    plotting.write_gif(path, frames, greys, durations)
    frames = plotting.film(pictures, [""] * len(pictures))
    alt = f"synthetic images that change gradually and without end, {run.about}"
    return {"walks": walks, "gif": plotting.animation(path, frames, greys, durations, alt)} | {
        "stops": LOOP_STOPS
    }
