"""The report's section on the fresh detective: what a new CNN can tell synthetic images by."""

import torch

from common import detective as test
from common import metrics, sampling, spectrum
from report import plotting
from report.context import EXAMPLES, fewer


def detective(context):
    """How often a new CNN is right, what it is right and wrong about, and where it looks."""
    captions, out, options = context.captions, context.out, context.options
    seed, scale = options.SEED, options.SCALE
    halves = metrics.split_real(context.samples.images, options.N_DETECTIVE, seed)
    if halves is None or len(halves[0]) < test.MIN_IMAGES:
        return {}
    real, other_real = halves
    synthetic = sampling.sample(context.generator, context.saved["label_counts"], len(real), seed)
    rows = test.detective(real, synthetic, seed)
    reference = test.detective(real, other_real, seed)
    page = {"n": len(real), "rows": list(zip(rows, reference, strict=True))}

    # Show images of the test set that the CNN of the first row is surest of.
    first, size = rows[0], real.shape[-1]
    examples = fewer(EXAMPLES, size, least=4)
    doubts = test.logits(first["network"], first["synthetic"])
    accused = test.logits(first["network"], first["real"])
    pictures = {
        "surest": ("synthetic", doubts.argsort(descending=True), "that it is surest of"),
        "best": ("synthetic", doubts.argsort(), "that look most real to it"),
        "accused": ("real", accused.argsort(descending=True), "that look most synthetic to it"),
    }
    for key, (kind, order, what) in pictures.items():
        chosen, values = order[:examples], doubts if kind == "synthetic" else accused
        tiles = ((first[kind][chosen] + 1) * 127.5).round().to(torch.uint8)
        cells = [
            (f"{probability:.2f}", plotting.tile(tile[None], 1))
            for probability, tile in zip(values[chosen].sigmoid().tolist(), tiles, strict=True)
        ]
        images = "synthetic images" if kind == "synthetic" else captions.originals
        heading = f"{captions.about}\nfresh CNN: the {images} {what}; below, its P(synthetic)"
        path = out / f"detective_{key}.png"
        alt = f"one of the {images} {what}, a fresh CNN"
        page[key] = plotting.save_tiles(path, heading, cells, examples, scale, alt, below=True)

    # Show where it looks, and which frequencies are too strong or too weak.
    cells = []
    for kind in ("synthetic", "real"):
        gradient = test.input_gradient(first["network"], first[kind])
        brightness = (255 * gradient / gradient.max()).round().to(torch.uint8)
        name = "synthetic" if kind == "synthetic" else captions.original
        cells.append((name, plotting.tile(brightness[None, None], 1)))
    heading = f"{captions.about}\nwhere the fresh CNN looks: mean gradient of its logit"
    alt = "mean absolute gradient of the CNN's logit with respect to each pixel; white is largest"
    path = out / "detective_gradient.png"
    page["gradient"] = plotting.save_tiles(path, heading, cells, 2, scale, alt)
    curves = {
        captions.original: spectrum.amplitude_spectrum(real),
        f"other {captions.originals}": spectrum.amplitude_spectrum(other_real),
        "synthetic": spectrum.amplitude_spectrum(synthetic),
    }
    page["spectrum"] = plotting.save_curves(
        out / "spectrum",
        lambda: draw_spectrum(f"{captions.about}\namplitude by spatial frequency", curves, size),
        f"Amplitude by spatial frequency, {captions.originals} and synthetic images",
    )
    page |= {"size": size, "diagonal": len(curves["synthetic"]) - 1}
    page["finest"] = float(curves["synthetic"][-1] / curves[captions.original][-1])
    return page


def draw_spectrum(title, curves, size):
    """Plot amplitudes, {label: (K + 1,)}, relative to those of the first curve."""
    first, *others = curves.items()
    figure, axes = plotting.one_plot(title)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle="--", label=first[0])
    for label, amplitudes in others:
        axes.plot((amplitudes / first[1]).tolist(), label=label)
    last = len(first[1]) - 1
    axes.set(xlabel=f"periods in {size} pixels", ylabel=f"amplitude / {first[0]}", xlim=(0, last))
    axes.set_xticks(range(0, last + 1, 2 * round(size / 28)))
    axes.set_ylim(bottom=0)
    plotting.legend(axes)
    return figure
