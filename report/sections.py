"""The pictures of the report, one function per section; context.py says what they get."""

import math

import numpy as np
import torch
from tqdm import tqdm

from common import sampling
from common.data.labels import draw_labels
from report import membership, plotting
from report.context import EXAMPLES, fewer, per_pixel

BLIND_TILES = 32
GIF_FRAMES, GIF_TILES = 50, 32  # upper limits in the page, which must stay small
# These and all other numbers of images are those of 28x28 pixels; see fewer.
WALKS, WALK_STEPS = 8, 10
TOUR_TILES, TOUR_STOPS, TOUR_STEPS = 8, 4, 15  # TOUR_STEPS frames from one stop to the next
TOUR_MS = 80  # duration of a frame


def collage(context):
    """Random training images beside the first synthetic ones."""
    captions, samples = context.captions, context.samples
    out, options = context.out, context.options
    columns = options.COLLAGE_COLUMNS
    count = min(options.COLLAGE_ROWS * columns, len(samples.images), len(samples.synthetic))
    halves = {
        captions.original: samples.shuffled(slice(count)),
        "synthetic": samples.synthetic[:count],
    }
    cells = [(name, plotting.tile(images, columns)) for name, images in halves.items()]
    heading = f"Reel vs Real: {captions.about}"
    alt = f"{count} {captions.originals} beside {count} synthetic ones, {captions.about}"
    path = out / "real_vs_synthetic.png"
    return {"picture": plotting.save_tiles(path, heading, cells, 2, options.SCALE, alt)}


def blind_test(context):
    """Real and synthetic images mixed, half and half; none of them is in the collage."""
    captions, samples = context.captions, context.samples
    out, options = context.out, context.options
    shown = options.COLLAGE_ROWS * options.COLLAGE_COLUMNS
    size = context.size
    columns, rows = (fewer(count, size, least=4) for count in (8, BLIND_TILES // 8))
    half = columns * rows // 2
    candidates = samples.shuffled(slice(shown, shown + max(100, 20 * half)))
    real = unseen(candidates, samples.shuffled(slice(shown)), half)
    synthetic = samples.synthetic[shown : shown + len(real)]
    count = min(len(real), len(synthetic))
    if count == 0:
        return {}
    random = torch.Generator().manual_seed(options.SEED)
    order = torch.randperm(2 * count, generator=random)
    tiles = torch.cat([real[:count], synthetic[:count]])[order]
    cells = [(f"{n}", plotting.tile(image[None], 1)) for n, image in enumerate(tiles, start=1)]
    heading = f"{captions.name}: which of these are {captions.originals}?\n"
    heading += f"synthetic ones from {captions.when}"
    alt = "an image, from the training set or synthetic"
    path = out / "blind_test.png"
    picture = plotting.save_tiles(path, heading, cells, columns, options.SCALE, alt, below=True)
    is_real = (order < count).tolist()
    return {
        "picture": picture,
        "real": [number for number, real in enumerate(is_real, start=1) if real],
        "synthetic": [number for number, real in enumerate(is_real, start=1) if not real],
    }


def unseen(candidates, shown, count):
    """Return the first candidates that are no near-duplicates of images shown or of each other.

    A near-duplicate is at less than half the usual distance: a reader who has seen one of the two
    recognises the other. All uint8 (N, C, S, S); the result can have fewer than count images.
    """
    limit = membership.nearest_image(candidates[:100], shown)[0].median() / 2
    chosen = shown[:0]
    for image in candidates[: 20 * count].split(1):
        if len(chosen) < count:
            distance, _ = membership.nearest_image(image, torch.cat([shown, chosen]))
            chosen = torch.cat([chosen, image[distance > limit]])
    return chosen


def training(context):
    """The grid of each epoch, the animation, some epochs below one another, and the loss."""
    captions, samples = context.captions, context.samples
    out, options = context.out, context.options
    columns, scale, grids = options.GRID_COLUMNS, options.SCALE, samples.grids
    if not grids:
        return {}
    size, frames = context.size, []
    examples = fewer(EXAMPLES, size, least=4)
    for epoch, grid in grids.items():
        heading = f"{captions.name}\nsynthetic images, epoch {epoch} {captions.of_epochs}"
        path = out / "epochs" / f"epoch_{epoch:04d}.png"
        cells = [("", plotting.tile(grid, columns))]
        plotting.write_png(path, plotting.compose(heading, cells, 1, scale), quiet=True)
        frames.append(plotting.compose(heading, cells, 1, options.GIF_SCALE))
    tqdm.write(f"{out / 'epochs'}: {len(frames)} grids")
    path, greys = out / "training.gif", options.GIF_GREYS
    durations = [options.FRAME_MS] * (len(frames) - 1) + [options.LAST_FRAME_MS]
    plotting.write_gif(path, frames, greys, durations)

    chosen = evenly_spaced(grids, fewer(GIF_FRAMES, size))
    small = [plotting.tile(grids[epoch][:GIF_TILES], columns) for epoch in chosen]
    small = plotting.caption_frames(
        small, [f"epoch {epoch} {captions.of_epochs}" for epoch in chosen]
    )
    alt = f"synthetic images from the same latents, epoch {chosen[0]} to {chosen[-1]}, "
    alt += captions.name
    gif = plotting.animation(path, small, greys, durations[-len(small) :], alt)

    strips = [
        (f"epoch {epoch}", plotting.tile(grids[epoch][:examples], examples))
        for epoch in evenly_spaced(grids, options.PROGRESS_ROWS)
    ]
    strips.append((captions.original, plotting.tile(samples.shuffled(slice(examples)), examples)))
    count = {10: "ten", 5: "five", 4: "four"}[examples]
    heading = f"{captions.name}\nsynthetic images from the same {count} latents"
    alt = f"a row of images, {captions.originals} or synthetic ones of one epoch, {captions.name}"
    strips = plotting.save_tiles(out / "training_progress.png", heading, strips, 1, scale, alt)

    page, rows = {"gif": gif, "strips": strips}, context.saved["history"]
    if rows:
        alt = f"The loss, D(x) and D(G(z)) over {len(rows)} epochs, {captions.name}"
        page["loss"] = plotting.save_curves(
            out / "loss", lambda: draw_loss(rows, captions.name), alt
        )
        page["last"] = rows[-1]
    return page


def evenly_spaced(epochs, count):
    """Return at most count evenly spaced epochs, the first and the last among them."""
    epochs = [*epochs]
    indices = np.linspace(0, len(epochs) - 1, count).round().astype(int)
    return [epochs[index] for index in np.unique(indices)] if count > 1 else epochs[-1:]


def draw_loss(history, name):
    """Plot the loss, D(x) and D(G(z)) over the epochs."""
    figure, (upper, lower) = plotting.over_epochs(f"{name}: training, mean of each epoch")
    plotting.plot(upper, history, "loss", "loss", "C0")
    upper.axhline(2 * math.log(2), color="grey", linewidth=0.8, linestyle="--", label="cannot tell")
    upper.set_ylabel("loss of D (nats)")
    upper.set_ylim(bottom=min(0, upper.get_ylim()[0]))  # other losses can be negative
    plotting.plot(lower, history, "d_real", "D(x), real", "C0")
    plotting.plot(lower, history, "d_fake", "D(G(z)), synthetic", "C1")
    lower.axhline(0.5, color="grey", linewidth=0.8, linestyle="--", label="cannot tell")
    lower.set_ylabel("probability of being real")
    lower.set_ylim(0, 1)
    for axes in (upper, lower):
        plotting.legend(axes)
    return figure


def diversity(context):
    """Many images, the most similar pairs, and pixel statistics, each beside the real ones."""
    captions, samples = context.captions, context.samples
    out, options = context.out, context.options
    synthetic, scale = samples.examined, options.SCALE
    real = samples.shuffled(slice(len(synthetic)))
    size = synthetic.shape[-1]
    columns, rows = (fewer(count, size, least=6) for count in (12, 16))
    shown, examples = synthetic[: columns * rows], fewer(EXAMPLES, size, least=4)
    grid = [("", plotting.tile(shown, columns))]
    heading = f"{captions.name}\nsynthetic images, {captions.when}"
    alt = f"{len(shown)} synthetic images, {captions.about}"
    page = {"n": len(synthetic), "n_real": len(real)}
    page["grid"] = plotting.save_tiles(out / "diversity.png", heading, grid, 1, scale, alt)

    for key, kind, images in (
        ("synthetic", "synthetic", synthetic),
        ("real", captions.original, real),
    ):
        distances, pairs = membership.closest_pairs(images, examples)
        if len(pairs) > 0:
            heading = f"{captions.name}\nthe {kind} images most alike among {len(images):,}"
            heading += f", {captions.when}" if key == "synthetic" else ""
            heading += f"\nbelow each pair, its distance, {plotting.DISTANCE}"
            cells = [
                (f"{distance:.1f}", plotting.tile(images[pair], 1))
                for distance, pair in zip(per_pixel(distances, images), pairs, strict=True)
            ]
            alt = f"two {kind} images that are much alike, one above the other"
            path = out / f"most_alike_{key}.png"
            page[key] = plotting.save_tiles(path, heading, cells, examples, scale, alt, below=True)

    cells = []
    for kind, images in ((captions.original, real), ("synthetic", synthetic)):
        pixels = images.double()
        cells.append((f"mean\n{kind}", tile_of(pixels.mean(0))))
        cells.append((f"std\n{kind}", tile_of(2 * pixels.std(0, correction=0))))
    heading = f"{captions.about}\nmean and twice the standard deviation (std)"
    alt = f"mean and standard deviation of each pixel, {captions.original} and synthetic"
    page["moments"] = plotting.save_tiles(out / "mean_and_std.png", heading, cells, 4, scale, alt)

    greys = {captions.original: real.flatten().numpy(), "synthetic": synthetic.flatten().numpy()}
    bins, title = np.arange(0, 257, 4), f"{captions.about}\nhow often each grey level occurs"
    page["greys"] = plotting.save_curves(
        out / "grey_levels",
        lambda: plotting.histogram(title, greys, bins, "grey level", "pixels (%)"),
        f"How often each grey level occurs in {captions.originals} and in synthetic images",
    )
    return page


def tile_of(pixels):
    """Return numbers (C, S, S) as a tile, rounded to grey levels."""
    return plotting.tile(pixels.round().clamp(0, 255).to(torch.uint8)[None], 1)


def slerp(a, b, t):
    """Return the latents a share t of the way from a to b along a great circle.

    Formula: (sin((1 - t) w) u + sin(t w) v) / sin w, for the directions u = a / |a|, v = b / |b|
    and the angle w between them; the length changes linearly from |a| to |b|. Shapes: (..., D),
    (..., D) and t in [0, 1] -> (..., D). A straight line would pass closer to 0 than random
    latents ever lie. Source: White 2016, section 2.1 (Shoemake 1985).
    """
    length_a, length_b = (x.norm(dim=-1, keepdim=True) for x in (a, b))
    u, v = a / length_a, b / length_b
    angle = (u * v).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine
    # (Anti)parallel directions span no circle: interpolate linearly.
    direction = torch.where(sine > 1e-4, arc, (1 - t) * u + t * v)
    return direction * ((1 - t) * length_a + t * length_b)


def latent_space(context):
    """Walks from one latent to another, and an endless tour through a few latents."""
    captions, generator = context.captions, context.generator
    out, options = context.out, context.options
    random = torch.Generator().manual_seed(options.SEED)
    label_counts, size = context.saved["label_counts"], context.saved["settings"]["SIZE"]
    rows, steps = fewer(WALKS, size), fewer(WALK_STEPS, size, least=4)
    ends = torch.randn(2, rows, generator.latent_dim, generator=random)
    labels = draw_labels(label_counts, rows, random)  # one for the whole walk
    shares = torch.linspace(0, 1, steps).tolist()
    latents = torch.stack([slerp(*ends, t) for t in shares], 1).flatten(0, 1)
    images = sampling.draw(generator, latents, labels.repeat_interleave(steps, 0))
    cells = [("", plotting.tile(images, steps))]
    heading = f"{captions.about}\neach row: a walk from one latent to another"
    alt = f"{rows} rows of synthetic images, each changing gradually into another, "
    alt += captions.about
    walks = plotting.save_tiles(out / "walks.png", heading, cells, 1, options.SCALE, alt)

    shown = fewer(TOUR_TILES, size, least=1)
    stops = torch.randn(TOUR_STOPS, shown, generator.latent_dim, generator=random)
    labels = draw_labels(label_counts, shown, random)
    latents = [
        slerp(stop, following, step / TOUR_STEPS)
        for stop, following in zip(stops, stops.roll(-1, 0), strict=True)
        for step in range(TOUR_STEPS)
    ]
    images = sampling.draw(generator, torch.cat(latents), labels.repeat(len(latents), 1))
    tiles = [plotting.tile(frame, -(-shown // 2)) for frame in images.split(shown)]
    heading = f"{captions.about}\na tour through {TOUR_STOPS} latents and back"
    scale, greys, durations = 2 * options.GIF_SCALE, options.GIF_GREYS, [TOUR_MS] * len(tiles)
    frames = [plotting.compose(heading, [("", tile)], 1, scale) for tile in tiles]
    path = out / "interpolation.gif"
    plotting.write_gif(path, frames, greys, durations)
    frames = plotting.caption_frames(tiles, [""] * len(tiles))
    alt = f"synthetic images that change gradually and without end, {captions.about}"
    gif = plotting.animation(path, frames, greys, durations, alt)
    return {"walks": walks, "gif": gif, "stops": TOUR_STOPS}
