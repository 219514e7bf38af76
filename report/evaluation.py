"""The numbers of the report: all metrics, the labels, near-copies and failures."""

import numpy as np
import torch
from matplotlib import colormaps

from common import checkpoint, metrics, sampling, spectrum
from common.data.labels import has_labels, single_labels
from common.errors import UserError
from report import fine_detail, membership, plotting
from report.context import EXAMPLES, fewer, per_pixel

LABEL_IMAGES = 1000  # synthetic images of each label
METRIC_IMAGES = 1000  # for a run that was trained with METRIC_IMAGES=0

# key: (name, which values are better, meaning)
METRICS = {
    "precision": ("Precision", "higher", "share of synthetic images that lie where real ones do"),
    "recall": ("Recall", "higher", "share of real images that lie where synthetic ones do"),
    "coverage": ("Coverage", "higher", "share of real images that have a synthetic one nearby"),
    "density": (
        "Density",
        "higher, up to about 1",
        "mean number of real neighbourhoods that a synthetic image is in, divided by k",
    ),
    "frechet": (
        "Frechet distance",
        "lower",
        "difference of means and covariances; blind to all other structure",
    ),
    "kernel": (
        "Kernel distance",
        "lower",
        "the same with a cubic kernel, which sees skewness too; can be slightly below 0",
    ),
    "shared": (
        "Shared detail",
        "as real images",
        "share of fine detail that is at the same place in every image",
    ),
}
COARSER = ("half", "a quarter of", "an eighth of", "a sixteenth of", "a thirty-second of")
AMPLITUDE = (
    "of synthetic images, over that of real ones: below 1 detail is missing, above 1 there is too "
    "much of it"
)
MEMORISATION = {
    "ratio": (
        "Memorisation ratio",
        "near 1",
        "median distance to the nearest training image, divided by that of held-out images, which "
        "are its reference, too; 0 for copies",
    ),
    "share": (
        "Memorisation share",
        "about 0.01 or lower",
        "share as near to a training image as the nearest hundredth of held-out images",
    ),
}


def describe_metrics(levels):
    """Return {key: (name, which values are better, meaning)} of all metrics.

    levels: sides in pixels of the images that fine detail is measured in, the finest first.
    """
    detail = ["distance between small patches at full resolution: edges and noise"]
    detail += [f"the same at {share} the resolution" for share in COARSER[: len(levels) - 1]]
    detail[-1] += ": brightness and layout"
    described = dict(METRICS)
    for pixels, meaning in zip(levels, detail, strict=True):
        described[f"detail_{pixels}"] = f"Fine detail, {pixels} pixels", "lower", meaning
    for ratio in spectrum.RATIOS:
        waves, low = ratio.split("_")
        kind = "horizontal stripes" if waves == "vertical" else "all detail"
        name = f"Amplitude of {kind}, {spectrum.band_text(low)} cycles per pixel"
        described[ratio] = name, "near 1", AMPLITUDE if ratio == spectrum.RATIOS[0] else ""
    return described | MEMORISATION


def by_label(context):
    """Synthetic images of each label beside real ones, and how well they cover the real ones."""
    captions, samples = context.captions, context.samples
    generator, saved = context.generator, context.saved
    seed = saved["settings"]["SEED"]
    random = torch.Generator().manual_seed(context.options.SEED)
    latents = torch.randn(LABEL_IMAGES, generator.latent_dim, generator=random)
    sets = metrics.split_real(samples.images, LABEL_IMAGES, seed)
    reference = metrics.fit_reference(samples.images, sets[0], seed) if sets else None
    cells, table = [], {}
    examples = fewer(EXAMPLES, context.size, least=4)
    vectors = single_labels(saved["info"], saved["label_counts"])
    # Where no font has the letters of a label, labels go by their number, which the page explains.
    numbered = plotting.fonts_for("".join(vectors)) is None
    for number, (label, vector) in enumerate(vectors.items(), start=1):
        synthetic = sampling.draw(generator, latents, vector.float().expand(len(latents), -1))
        places = has_labels(samples.shuffled_labels, vector).nonzero().flatten()
        real = samples.shuffled(places[: 2 * LABEL_IMAGES])  # all of them may not fit into memory
        row = torch.full_like(synthetic[:examples], 255)  # white where there are too few real ones
        row[: len(real)] = real[:examples]
        name = f"label {number}" if numbered else label
        cells.append((f"{name}, synthetic", plotting.tile(synthetic[:examples], examples)))
        cells.append((f"{name}, {captions.original}", plotting.tile(row, examples)))
        table[label] = {"training": len(places)}
        if reference:
            table[label] |= metrics.coverage_of_label(reference, real, synthetic, seed)
    heading = f"{captions.about}\neach label from the same latents, one a column"
    heading += "; the numbers of labels are those of report.html" if numbered else ""
    alt = f"for each label a row of synthetic images and one of {captions.originals}, "
    alt += captions.about
    path = context.out / "labels.png"
    picture = plotting.save_tiles(path, heading, cells, 2, context.options.SCALE, alt)
    return {"picture": picture, "table": table, "k": metrics.K, "numbered": numbered}


def numbers(context):
    """The metrics over the epochs, and a table of all metrics for the state that is shown."""
    captions, samples, size = context.captions, context.samples, context.size
    page = {"k": metrics.K, "size": size, "finest": f"detail_{size}"}
    page["shrunk"] = metrics.shrink(samples.images[:1]).shape[-1]
    page |= evaluate_all(context)
    measured = [row for row in context.saved["history"] if "coverage" in row]
    if measured and "table" in page:
        page["curves"] = plotting.save_curves(
            context.out / "metrics",
            lambda: draw_metrics(measured, page["table"], page["n"], captions),
            "Precision, recall, coverage, Frechet distance and amplitude of detail by epoch, "
            + captions.name,
        )
        best = max(measured, key=metrics.score)
        page |= {"best": best["epoch"], "best_coverage": best["coverage"]}
    return page


def evaluate_all(context):
    """Compare n synthetic, n other real and n Gaussian images with n real ones by all metrics.

    The images are those that train_model.py evaluates after an epoch, so the synthetic column
    agrees with log.csv. Returns {"n": n, "table": {"synthetic", "real_vs_real", "gaussian":
    {metric: number}}, "metrics": as describe_metrics returns}, or {} if there are too few different
    real images.
    """
    samples, neighbours, saved = context.samples, context.neighbours, context.saved
    generator, settings = context.generator, saved["settings"]
    seed, n = settings["SEED"], settings.get("METRIC_IMAGES") or METRIC_IMAGES
    halves = metrics.split_real(samples.images, n, seed)
    if halves is None:
        return {}
    real, other_real = halves
    n = len(real)
    reference = metrics.fit_reference(samples.images, real, seed)
    sets = {
        "synthetic": sampling.sample(generator, saved["label_counts"], n, seed, settings["DTYPE"]),
        "real_vs_real": other_real,
        "gaussian": metrics.gaussian_reference(samples.images, n, seed),
    }
    table = {}
    for name, images in sets.items():
        table[name] = metrics.evaluate(reference, images)
        features = metrics.features(images, reference["mean"], reference["basis"])
        pair = reference["features"], features
        table[name]["density"] = metrics.density(*pair, reference["radii"])
        table[name]["kernel"] = metrics.kernel_distance(*pair)
        detail = fine_detail.distance(real, images, seed)
        table[name] |= {f"detail_{pixels}": distance for pixels, distance in detail.items()}
    if can_show_copies(neighbours):
        held_out, _ = neighbours.held_out
        gaussian, _ = membership.nearest_image(sets["gaussian"], samples.images)
        table["synthetic"] |= membership.memorisation_scores(neighbours.synthetic[0], held_out)
        table["real_vs_real"] |= membership.memorisation_scores(held_out, held_out)
        table["gaussian"] |= membership.memorisation_scores(gaussian, held_out)
    # On other hardware than that of the training the last digits can differ: show what was logged.
    logged = next((row for row in saved["history"] if row["epoch"] == context.captions.epoch), {})
    table["synthetic"] |= {key: logged[key] for key in table["synthetic"] if key in logged}
    return {"n": n, "table": table, "metrics": describe_metrics([*detail])}


def can_show_copies(neighbours):
    """Whether there are held-out images to tell copies by: not if most are training images too."""
    return neighbours.held_out is not None and neighbours.held_out[0].median() > 0


def draw_metrics(history, table, n, captions):
    """Plot the metrics over the epochs, with what other real images and a Gaussian reach."""
    real, gaussian = table["real_vs_real"], table["gaussian"]
    title = f"{captions.name}\n{n:,} synthetic against {n:,} {captions.originals}\n"
    title += f"dashed: {captions.real_vs_real}"
    figure, (upper, lower, bands) = plotting.over_epochs(title, rows=3)
    for number, key in enumerate(("precision", "recall", "coverage")):
        plotting.plot(upper, history, key, key, f"C{number}")
        upper.axhline(real[key], color=f"C{number}", linewidth=0.8, linestyle="--")
    upper.set_ylabel("share of images")
    upper.set_ylim(0, 1)
    plotting.plot(lower, history, "frechet", "synthetic", "C0")
    dashed = {"color": "C0", "linewidth": 0.8, "linestyle": "--"}
    lower.axhline(real["frechet"], label=captions.real_vs_real, **dashed)
    dotted = {"color": "grey", "linewidth": 1, "linestyle": ":"}
    lower.axhline(gaussian["frechet"], label="Gaussian", **dotted)
    lower.set_ylabel("Frechet distance")
    plotting.logarithmic(lower)
    for number, ratio in enumerate(spectrum.RATIOS[: len(spectrum.BANDS)]):
        colour = colormaps["viridis"](number / len(spectrum.BANDS))  # from coarse to fine
        plotting.plot(bands, history, ratio, spectrum.band_text(ratio[-2:]), colour)
    bands.axhline(1, color="grey", linewidth=0.8)
    bands.set_ylabel("amplitude of stripes,\nsynthetic / real")
    bands.set_ylim(bottom=0)
    for axes in (upper, lower, bands):
        plotting.legend(axes)
    return figure


def copies(context):
    """The images nearest to the training set, all distances, and attacks on membership."""
    captions, samples = context.captions, context.samples
    neighbours, out = context.neighbours, context.out
    page = {"n": len(samples.examined)}
    page["picture"] = draw_pairs(context, out / "copies.png")
    distances = {"synthetic": per_pixel(neighbours.synthetic[0], samples.images)}
    if neighbours.held_out is not None:
        page["n_held_out"] = len(samples.held_out)
        held_out = out / "copies_held_out.png"
        page["held_out"] = draw_pairs(context, held_out, held_out=True)
        distances["held-out"] = per_pixel(neighbours.held_out[0], samples.images)
    if can_show_copies(neighbours):
        page |= membership.memorisation_scores(neighbours.synthetic[0], neighbours.held_out[0])
    highest = max(max(values) for values in distances.values()) or 1.0
    bins = np.linspace(0, highest, 61)
    title = f"{captions.about}\nhow far images are from the training set"
    xlabel = "distance to the nearest training image\n(grey levels, root mean square of the pixels)"
    page["distances"] = plotting.save_curves(
        out / "distances",
        lambda: plotting.histogram(title, distances, bins, xlabel, "images (%)"),
        "Distances of synthetic and held-out images to their nearest training images",
    )
    return page | {"membership": attacks(context)}


def attacks(context):
    """What attacks find out about who is in the training set, {name: as `roc_auc` returns}.

    "images" and "discriminator" are told apart by the synthetic images and by the discriminator of
    the checkpoint. "other" is the first one with other training images in place of the synthetic
    ones, "chance" with other training images in place of the held-out ones. {} if there are too
    few images; without a discriminator if it does not fit.
    """
    samples, seed = context.samples, context.options.SEED
    held_out, synthetic = samples.held_out, samples.examined
    halves = metrics.split_real(samples.images, max(len(synthetic), metrics.MIN_IMAGES), seed)
    if halves is None or held_out is None or len(held_out) < metrics.MIN_IMAGES:
        return {}
    members, others = halves
    found = {
        "images": membership.membership_auc(synthetic, members, held_out),
        "other": membership.membership_auc(others[: len(synthetic)], members, held_out),
        "chance": membership.membership_auc(synthetic, members, others),
    }
    try:
        discriminator = checkpoint.rebuild_discriminator(context.saved, context.checkpoint)
    except UserError:  # dcgan.py has another one now
        return found
    return found | {"discriminator": membership.logit_auc(discriminator, members, held_out)}


def failures(context):
    """The synthetic and the held-out images furthest from the training set."""
    samples, neighbours, out = context.samples, context.neighbours, context.out
    page = {"n": len(samples.examined)}
    page["picture"] = draw_pairs(context, out / "failures.png", furthest=True)
    if neighbours.held_out is not None:
        path = out / "failures_held_out.png"
        page["held_out"] = draw_pairs(context, path, held_out=True, furthest=True)
        limit = neighbours.held_out[0].quantile(0.99)
        page["beyond"] = float((neighbours.synthetic[0] > limit).double().mean())
    return page


def draw_pairs(context, path, held_out=False, furthest=False):
    """Draw the images nearest to the training set, or furthest, each above its nearest image."""
    captions, samples, neighbours = context.captions, context.samples, context.neighbours
    if held_out:
        images, (distances, indices) = samples.held_out, neighbours.held_out
        heading = f"{captions.name}\n{captions.originals} of the {samples.held_out_split} split"
        alt = "above a held-out image"
    else:
        images, (distances, indices) = samples.examined, neighbours.synthetic
        heading = f"{captions.about}\nsynthetic images"
        alt = "above a synthetic image"
    heading += f" {'furthest from' if furthest else 'nearest to'} the training set; "
    heading += "below each, its nearest training image\n"
    heading += f"with their distance, {plotting.DISTANCE}"
    heading += "" if held_out else "; no.: the index in synthetic.npz"
    alt += ", below the training image nearest to it"
    examples = fewer(EXAMPLES, images.shape[-1], least=4)
    order = distances.argsort(descending=furthest, stable=True)[:examples].tolist()
    distances = per_pixel(distances, images)
    cells = []
    for i in order:
        pair = torch.stack([images[i], samples.images[indices[i]]])
        number = "" if held_out else f"\nno. {i}"
        cells.append((f"{distances[i]:.1f}{number}", plotting.tile(pair, 1)))
    scale = context.options.SCALE
    return plotting.save_tiles(path, heading, cells, examples, scale, alt, below=True)
