"""What the report measures of the synthetic images: all metrics, copies and failures.

The public functions take and return what those in sections.py do.
"""

import numpy as np
import torch

from common import dataset, metrics
from report import plotting
from report.sections import EXAMPLES, per_pixel

LABEL_IMAGES = 1000  # drawn of each label

# key: (name, what is better, what it tells)
METRICS = {
    "precision": ("Precision", "higher", "share of synthetic images that lie where real ones do"),
    "recall": ("Recall", "higher", "share of real images that lie where synthetic ones do"),
    "coverage": ("Coverage", "higher", "share of real images that have a synthetic one near"),
    "density": (
        "Density",
        "higher, up to about 1",
        "how many real neighbourhoods a synthetic image is in, on average, over k",
    ),
    "frechet": (
        "Frechet distance",
        "lower",
        "how far apart means and covariances are; blind to all other structure",
    ),
    "kernel": (
        "Kernel distance",
        "lower",
        "the same question with a cubic kernel, which sees skewness too; by chance below 0",
    ),
    "detail_28": (
        "Fine detail, 28 pixels",
        "lower",
        "distance between small patches at full resolution: edges and noise",
    ),
    "detail_14": ("Fine detail, 14 pixels", "lower", "the same at half the resolution"),
    "detail_7": ("Fine detail, 7 pixels", "lower", "the same at a quarter: brightness and layout"),
    "ratio": (
        "Memorisation ratio",
        "near 1",
        "median distance to the nearest training image, over that of held-out images; 0 is copies",
    ),
    "share": (
        "Memorisation share",
        "lower, floor or less",
        "share as near to a training image as the nearest hundredth of held-out images",
    ),
}


def by_label(run, out, options):
    """Images of each label from the same latents, real ones below, and how well they cover them."""
    random = torch.Generator().manual_seed(options.SEED)
    latents = torch.randn(LABEL_IMAGES, run.trained["LATENT_DIM"], generator=random)
    seed, images = run.trained["SEED"], run.images
    varied = len(images) >= 40 and not (images == images[0]).all()
    reference = (
        metrics.fit_reference(images, images[run.order[:LABEL_IMAGES]], seed) if varied else None
    )
    cells, table = [], {}
    for label, vector in dataset.single_labels(
        run.trained["DATASET"], run.last["label_counts"]
    ).items():
        synthetic = run.draw(latents, vector.float().expand(len(latents), -1))
        real = images[run.order][dataset.has_labels(run.labels[run.order], vector)]
        few = torch.full_like(synthetic[:EXAMPLES], 255)  # white where there are no more real ones
        few[: len(real)] = real[:EXAMPLES]
        cells.append((f"{label}, synthetic", plotting.tile(synthetic[:EXAMPLES], EXAMPLES)))
        cells.append((f"{label}, {run.original}", plotting.tile(few, EXAMPLES)))
        of_label = {"training": len(real)}
        if reference:
            of_label |= metrics.coverage_of_label(reference, real, synthetic, seed)
        table[label] = of_label
    heading = f"{run.name}, {run.when}\neach label from the same latents, one a column"
    alt = f"for each label a row of synthetic images, and one of {run.originals}, {run.about}"
    path = out / "labels.png"
    picture = plotting.save_tiles(path, heading, cells, 2, options.SCALE, alt)
    return {"picture": picture, "table": table, "k": metrics.K}


def numbers(run, out, options):
    """What was measured over the epochs, and all metrics for the epoch that is shown."""
    page = {"metrics": METRICS, "k": metrics.K}
    measured = [row for row in run.history if "coverage" in row]
    table, n = measure(run)
    if table:
        page |= {"table": table, "n": n}
    if measured and table:
        alt = f"Precision, recall, coverage and Frechet distance over the epochs, {run.name}"
        page["curves"] = plotting.save_curves(
            out / "metrics", lambda: draw_metrics(measured, table, n, run), alt
        )
        best = max(measured, key=lambda row: row["coverage"])
        page |= {"best": best["epoch"], "best_coverage": best["coverage"]}
    return page


def measure(run):
    """Return ({"synthetic", "floor", "gaussian": {metric: number}}, n), or ({}, n) for too little.

    The images are those that train_model.py measures with after an epoch, so that the numbers are
    those of log.csv.
    """
    trained, images = run.trained, run.images
    n = min(trained.get("METRIC_IMAGES") or 1000, len(images) // 2)
    if n < 20 or (images == images[0]).all():  # five neighbours among so few say nothing
        return {}, n
    seed = trained["SEED"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    real, reference = images[order[:n]], metrics.fit_reference(images, images[order[:n]], seed)
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, trained["LATENT_DIM"], generator=random)
    labels = dataset.draw_labels(run.last["label_counts"], n, random)
    sets = {
        "synthetic": run.draw(latents, labels, trained["DTYPE"]),
        "floor": images[order[n : 2 * n]],
        "gaussian": metrics.gaussian_reference(images, n, seed),
    }
    table = {}
    for name, others in sets.items():
        table[name] = metrics.evaluate(reference, others)
        ours = metrics.features(others, reference["mean"], reference["basis"])
        near = reference["features"], ours
        table[name]["density"] = metrics.density(*near, reference["radii"])
        table[name]["kernel"] = metrics.kernel_distance(*near)
        for pixels, distance in metrics.fine_detail(real, others, seed).items():
            table[name][f"detail_{pixels}"] = distance
    if run.near_held_out is not None and run.near_held_out[0].median() > 0:
        usual = run.near_held_out[0]
        table["synthetic"] |= metrics.memorisation_scores(run.near_synthetic[0], usual)
        table["floor"] |= metrics.memorisation_scores(usual, usual)
        near = metrics.nearest_image(sets["gaussian"], images)[0]
        table["gaussian"] |= metrics.memorisation_scores(near, usual)
    # Where training was on other hardware, its last digits may differ: the log is what counts.
    logged = {key: run.row[key] for key in table["synthetic"] if key in run.row}
    table["synthetic"] |= logged
    return table, n


def draw_metrics(history, table, n, run):
    """Plot what was measured over the epochs, and what real images would reach."""
    floor, gaussian = table["floor"], table["gaussian"]
    title = f"{run.name}\n{n:,} synthetic against {n:,} {run.originals}; dashed: {n:,} others"
    figure, (upper, lower) = plotting.over_epochs(title)
    for number, key in enumerate(("precision", "recall", "coverage")):
        plotting.plot(upper, history, key, key, f"C{number}")
        upper.axhline(floor[key], color=f"C{number}", linewidth=0.8, linestyle="--")
    upper.set_ylabel("share of images")
    upper.set_ylim(0, 1)
    plotting.plot(lower, history, "frechet", "synthetic", "C0")
    lower.axhline(floor["frechet"], color="C0", linewidth=0.8, linestyle="--", label=run.original)
    grey = {"color": "grey", "linewidth": 1, "linestyle": ":"}
    lower.axhline(gaussian["frechet"], label="Gaussian", **grey)
    lower.set_ylabel("Frechet distance")
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter("{x:g}")
    for axes in (upper, lower):
        plotting.legend(axes)
    return figure


def copies(run, out, options):
    """The images nearest to the training set, and how near others are."""
    page = {"n": len(run.examined), "split": run.held_out_split}
    sets = {"synthetic": per_pixel(run.near_synthetic[0], run.images)}
    page["picture"] = nearest_panel(run, out / "copies.png", options, "synthetic", furthest=False)
    if run.held_out is not None:
        path = out / "copies_held_out.png"
        page["held_out"] = nearest_panel(run, path, options, "held-out", furthest=False)
        page["n_held_out"] = len(run.held_out)
        sets["held-out"] = per_pixel(run.near_held_out[0], run.images)
        if run.near_held_out[0].median() > 0:
            page |= metrics.memorisation_scores(run.near_synthetic[0], run.near_held_out[0])
    highest = max(max(values) for values in sets.values()) or 1.0
    bins = np.linspace(0, highest, 61)
    page["distances"] = plotting.save_curves(
        out / "distances",
        lambda: plotting.histogram(
            f"{run.name}, {run.when}",
            sets,
            bins,
            "distance to the nearest training image\n(grey levels, root mean square of the pixels)",
            "images (%)",
        ),
        "How far synthetic and held-out images are from their nearest training images",
    )
    return page


def failures(run, out, options):
    """The images furthest from any training image, beside held-out images as far out."""
    picture = nearest_panel(run, out / "failures.png", options, "synthetic", furthest=True)
    page = {"n": len(run.examined), "picture": picture}
    if run.held_out is not None:
        path = out / "failures_held_out.png"
        page["held_out"] = nearest_panel(run, path, options, "held-out", furthest=True)
        limit = run.near_held_out[0].quantile(0.99)
        page["beyond"] = float((run.near_synthetic[0] > limit).double().mean())
    return page


def nearest_panel(run, path, options, kind, furthest):
    """Draw the images nearest to the training set, or furthest from it, above its nearest."""
    ours = kind == "synthetic"
    images = run.examined if ours else run.held_out
    distances, places = run.near_synthetic if ours else run.near_held_out
    order = distances.argsort(descending=furthest, stable=True)[:EXAMPLES]
    distances = per_pixel(distances, images)
    cells = []
    for i in order.tolist():
        number = f"\nno. {i}" if ours else ""
        pair = torch.stack([images[i], run.images[places[i]]])
        cells.append((f"{distances[i]:.1f}{number}", plotting.tile(pair, 1)))
    name = "synthetic" if ours else f"held-out ({run.held_out_split})"
    extreme = "furthest from" if furthest else "nearest to"
    heading = f"{run.name}, {run.when if ours else 'real images'}\n{name} images {extreme} the "
    heading += "training set; below, its nearest"
    alt = f"above a {name} image, below the training image nearest to it"
    scale = options.SCALE
    return plotting.save_tiles(path, heading, cells, EXAMPLES, scale, alt, below=True)
