"""A fresh detective: how well does a new small CNN tell synthetic images from real ones?

A classifier two-sample test (Lopez-Paz and Oquab 2017, section 3). It sees what precision, recall
and coverage cannot, the texture. `section` draws what it finds for the report; the rest are pure
functions on tensors, and the global random state stays as it is.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.nn import functional as F

from common import hardware, metrics, sampling, spectrum
from report import membership, plotting
from report.context import EXAMPLES, fewer

# (pixels a side, training images of each kind, steps of Adam); None: all there are. With few images
# the accuracy does not reach 1.00 at once, so that generators can be told apart. Of larger images
# 28 stands for their own size, and 14 and 7 for 16 and 8 where they are multiples of 32.
ROWS = [
    (28, None, 900),
    (28, 50, 300),
    (28, 200, 300),
    (28, 1000, 300),
    (14, None, 800),
    (14, 1000, 800),
    (7, None, 800),
    (7, 1000, 800),
]
BATCH_SIZE = 64  # half of it real
LEARNING_RATE = 2e-3
MIN_IMAGES = 20  # of each kind; a fifth of them is the test set


def detective(real, synthetic, seed=0, with_few=True):
    """Train new CNNs to tell synthetic from real images and return how often they are right.

    Each is trained on 80 % of both sets, or on a few images of it, and tested on the other 20 %; at
    all their pixels, and at 14 and 7 or 16 and 8 (means of squares, rounded to whole grey levels).
    Shapes: two uint8 (N, C, S, S), of which as many are used as the smaller one has -> a list of
    dicts: "pixels", "trained_on" (images of each kind), "accuracy", its 95 % interval "low" to
    "high" (Wilson 1927) and "auc", all in [0, 1]; and "network", "real" and "synthetic", the CNN
    and the float images in [-1, 1] that it was tested on. 0.5 is chance, what another set of real
    images gets; lower is better. Rows that want more training images than there are are left out.
    with_few: whether to train on few images, too. Raises ValueError for fewer than MIN_IMAGES.
    """
    n = min(len(real), len(synthetic))
    if n < MIN_IMAGES:
        raise ValueError(f"at least {MIN_IMAGES} images of each kind wanted, not {n}")
    random = torch.Generator().manual_seed(seed)
    sets = [x[torch.randperm(len(x), generator=random)[:n]] for x in (real, synthetic)]
    n_train = round(0.8 * n)
    size, jobs = real.shape[-1], []
    for pixels, few, steps in ROWS:
        if few is not None and (few >= n_train or not with_few):
            continue
        pixels = size if pixels == 28 else pixels * (size // (size // 28)) // 28
        with torch.random.fork_rng(devices=[]):  # here, as all threads share its state
            torch.manual_seed(seed)
            network = build(real.shape[1], pixels)
        jobs.append((network, pixels, few or n_train, steps))

    def fill(job):
        network, pixels, trained_on, steps = job
        taught = [shrink(images[:trained_on], pixels) for images in sets]
        train(network, *taught, steps, seed, stop)
        tests = [shrink(images[n_train:], pixels) for images in sets]
        row = {"pixels": pixels, "trained_on": trained_on} | test(network, *tests)
        return row | {"network": network, "real": tests[0], "synthetic": tests[1]}

    stop, threads = threading.Event(), torch.get_num_threads()
    torch.set_num_threads(1)  # small CNNs side by side are faster than one with all threads
    with ThreadPoolExecutor(threads) as workers:
        try:
            return list(workers.map(fill, jobs))
        finally:
            stop.set()  # after an error or Ctrl-C, the others would go on to their last step
            torch.set_num_threads(threads)


def shrink(images, pixels):
    """uint8 (N, C, S, S) -> float (N, C, pixels, pixels) in [-1, 1], still in 256 grey levels."""
    levels = F.avg_pool2d(images.float(), images.shape[-1] // pixels).round()
    return (levels / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def build(channels, pixels):
    """Return a new CNN, images (N, C, pixels, pixels) in [-1, 1] -> logits (N, 1)."""
    layers, inputs = [], channels
    if (fold := pixels // 28) > 1:  # as fast as 28 pixels, and no pixel is lost
        layers, inputs = [nn.PixelUnshuffle(fold)], channels * fold**2
        pixels //= fold
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        layers += [nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]
        inputs = width
    side = min(4, -(-pixels // 4))
    # Where the maps are twice as large, both do the same, and the first is faster.
    pool = nn.AvgPool2d(2) if pixels == 8 * side else nn.AdaptiveAvgPool2d(side)
    layers += [pool, nn.Flatten(), nn.Linear(inputs * side * side, 1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(network, real, synthetic, steps, seed, stop):
    """Train a new CNN on float images (N, C, S, S): logits above 0 mean synthetic.

    stop: a threading.Event that ends it early.
    """
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    dtype = hardware.choose_dtype("auto", real.device)
    real, synthetic = (x.to(getattr(torch, dtype)) for x in (real, synthetic))
    half = BATCH_SIZE // 2
    targets = torch.cat([torch.zeros(half), torch.ones(half)])
    orders = [endless_permutations(len(x), steps * half, random) for x in (real, synthetic)]
    for step in range(steps):
        if stop.is_set():
            break
        # Constant for the first half of the steps, then falling to 0.
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - step / steps))
        places = slice(step * half, (step + 1) * half)
        batch = torch.cat([real[orders[0][places]], synthetic[orders[1][places]]])
        with hardware.autocast(real.device, dtype):
            verdicts = network(batch).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(verdicts.float(), targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
    network.eval()


def endless_permutations(n, count, random):
    """Return `count` indices below n: one random permutation after the other."""
    return torch.cat([torch.randperm(n, generator=random) for _ in range(-(-count // n))])[:count]


def test(network, real, synthetic):
    """Return {"accuracy", "low", "high", "auc"} of a CNN on as many real as synthetic images."""
    real, synthetic = logits(network, real), logits(network, synthetic)
    right, n = int((real <= 0).sum() + (synthetic > 0).sum()), len(real) + len(synthetic)
    low, high = wilson_interval(right, n)
    auc = membership.roc_auc(synthetic, real)["auc"]
    return {"accuracy": right / n, "low": low, "high": high, "auc": auc}


@torch.no_grad()
def logits(network, images):
    """Return the logits (N,) of float images (N, C, S, S); above 0 means synthetic."""
    return torch.cat([network(batch).squeeze(1) for batch in images.split(256)])


def wilson_interval(right, n, z=1.96):
    """Return the 95 % interval of the share right / n (Wilson 1927)."""
    share, extra = right / n, z * z / n
    half = z * (share * (1 - share) / n + extra / n / 4) ** 0.5
    return (share + extra / 2 - half) / (1 + extra), (share + extra / 2 + half) / (1 + extra)


def input_gradient(network, images):
    """Return where a CNN looks: |d logit / d pixel|, averaged over images and channels.

    Shapes: float (N, C, S, S) in [-1, 1] -> (S, S). Range: [0, inf).
    """
    images = images.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(images).sum(), images)
    return gradient.abs().mean((0, 1))


def section(context):
    """How often a new CNN is right, what it is right and wrong about, and where it looks.

    None if there are too few images.
    """
    captions, out, options = context.captions, context.out, context.options
    seed, scale = options.SEED, options.SCALE
    halves = metrics.split_real(context.samples.images, options.N_DETECTIVE, seed)
    if halves is None or len(halves[0]) < MIN_IMAGES:
        return None
    real, other_real = halves
    synthetic = sampling.sample(context.generator, context.saved["label_counts"], len(real), seed)
    rows = detective(real, synthetic, seed)
    # Other real images it can only guess; the rows with all images, the strictest, show it.
    reference = detective(real, other_real, seed, with_few=False)
    chance = {(row["pixels"], row["trained_on"]): row["accuracy"] for row in reference}
    page = {"n": len(real)}
    page["rows"] = [(row, chance.get((row["pixels"], row["trained_on"]))) for row in rows]
    page["jpeg"] = getattr(context.generator, "jpeg", None)

    # Show images of the test set that the CNN of the first row is surest of.
    first, size = rows[0], real.shape[-1]
    examples = fewer(EXAMPLES, size, least=4)
    of_synthetic = logits(first["network"], first["synthetic"])
    of_real = logits(first["network"], first["real"])
    pictures = {
        "surest": ("synthetic", of_synthetic.argsort(descending=True), "that it is surest of"),
        "best": ("synthetic", of_synthetic.argsort(), "that look most real to it"),
        "accused": ("real", of_real.argsort(descending=True), "that look most synthetic to it"),
    }
    for key, (kind, order, what) in pictures.items():
        chosen, values = order[:examples], of_synthetic if kind == "synthetic" else of_real
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
        gradient = input_gradient(first["network"], first[kind])
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
