"""Writes play.html: the run's own generator and discriminator, to play with in a browser.

The page holds everything that it needs and asks for nothing: a script that computes the networks
(play.js), their weights, pictures of the epochs, a few training images for the game.
"""

import base64
import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from common import checkpoint, files, log, sampling
from common.data import dataset
from common.data.labels import is_multilabel, label_names
from common.errors import UserError
from report import export_js, plotting, sections
from report.context import environment

FOLDER = Path(__file__).parent
LARGEST = 64  # pixels; above that a browser would need seconds for an image

DIRECTIONS = 6  # sliders
PCA_LATENTS = 10_000
EFFECT_LATENTS = 32  # over which the effect of a slider is averaged
EFFECT_STEP = 2.0  # standard deviations, to both sides

MAX_EPOCHS, LEARN_LATENTS = 60, 16  # in the pictures of the epochs
MAX_SPRITE = 1_000_000  # bytes; there are fewer epochs in a larger picture
REAL_IMAGES = 40  # training images in the game, at most
SEED = 0  # of the latents that are looked at; what the page draws is new each time


def play(context):
    """Write play.html. Returns {"file": its name}, or None if it cannot compute the networks."""
    saved = context.saved
    name = saved["settings"]["DATASET"]
    if context.size > LARGEST:
        tqdm.write(f"no play.html: above {LARGEST} pixels a browser needs seconds for an image")
        return None
    try:
        data = collect(context)
    except export_js.UnknownLayer as error:
        tqdm.write(f"no play.html: play.js cannot compute {error}, which this run's networks do")
        return None
    except UserError as error:  # dcgan.py has another discriminator now: the rest needs none
        tqdm.write(f"no play.html: {error}")
        return None
    html = render(
        data,
        captions=context.captions,
        samples=context.samples,
        saved=saved,
        phantom=name == "phantom",
        info=saved["info"],
        own=name not in dataset.NAMES,
        is_official=dataset.is_official(context.data),
    )
    path = context.out / "play.html"
    files.write(path, html.encode())
    tqdm.write(f"{path}: {len(html.encode()) / 1e6:.1f} MB, a page to play with")
    return {"file": path.name}


def collect(context):
    """Return all that play.js needs, as plain values for JSON. Raises UnknownLayer, UserError."""
    captions, samples, saved = context.captions, context.samples, context.saved
    discriminator = checkpoint.rebuild_discriminator(saved, context.checkpoint)
    generator, label_counts = context.generator, saved["label_counts"]
    random = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, generator.latent_dim, generator=random)
    labels = [label_counts["rows"][:1].float()] if label_counts else []
    with torch.no_grad():
        image = generator(latent, *labels)
        shown = dataset.to_network(dataset.to_pixels(image))  # a screen has 256 grey levels
        logits = torch.as_tensor(discriminator(shown, *labels)).flatten()
    directions, share, effects = find_directions(generator, labels)
    return {
        "generator": export_js.describe(generator, latent, *labels),
        "discriminator": export_js.describe(discriminator, shown, *labels),
        "original": captions.original,
        "originals": captions.originals,
        "allEpochs": saved["settings"]["EPOCHS"],
        "shape": [image.shape[2], image.shape[3], image.shape[1]],
        "labels": describe_labels(saved["info"], label_counts),
        "directions": directions,
        "share": share,
        "effects": effects,
        # What PyTorch draws and says: the page compares itself with it when it opens.
        "check": {
            "latent": latent[0].tolist(),
            "pixels": export_js.to_rows(dataset.to_pixels(image)).tolist(),
            "logits": logits.tolist(),
        },
        "learn": describe_epochs(samples.grids, saved["history"]),
        "game": describe_game(samples, context.page.get("detective")),
    }


def describe_labels(info, label_counts):
    """Return the labels that a run has learned: names, which occur together and how often.

    None if it has learned none.
    """
    if not label_counts:
        return None
    return {
        "names": label_names(info),
        "several": is_multilabel(info),
        "rows": label_counts["rows"].tolist(),
        "counts": label_counts["counts"].tolist(),
    }


# --- The sliders ---


def find_directions(generator, labels):
    """Return the latent directions that change the image most.

    Principal components of the first feature maps over many latents, and the directions in the
    latent space that lead along them: latents regressed on the components (Harkonen et al. 2020,
    section 2.2). They are made orthonormal, so that a step along one is measured in standard
    deviations of the latents, and moves no other slider.

    labels: [] or the label vector (1, K) of all latents, in a list. Returns unit vectors as lists,
    the share of the features' variance that the components carry, and what each direction does to
    the image: the mean change of each pixel, int8 in base64.
    """
    random = torch.Generator().manual_seed(SEED)
    latents = torch.randn(PCA_LATENTS, generator.latent_dim, generator=random)
    batches = latents.split(sampling.CHUNK)
    features = torch.cat(
        [
            export_js.first_activation(generator, batch, *expand(labels, batch)).flatten(1)
            for batch in batches
        ]
    )
    count = min(DIRECTIONS, generator.latent_dim, features.shape[1])
    features -= features.mean(0)
    torch.manual_seed(SEED)  # pca_lowrank takes no generator
    _, spread, components = torch.pca_lowrank(features, 2 * count, center=False, niter=2)
    along = features @ components[:, :count]
    # Components are uncorrelated and latents have mean 0, so each is regressed on its own.
    directions, _ = torch.linalg.qr(latents.T @ along)
    share = spread[:count].square().sum() / features.square().sum()
    return (
        directions.T.tolist(),
        float(share),
        [effect(generator, direction, labels, random) for direction in directions.T],
    )


def expand(labels, batch):
    return [vector.expand(len(batch), -1) for vector in labels]


def effect(generator, direction, labels, random):
    """What a step along a direction changes on average, largest change 127. Returns base64."""
    latents = torch.randn(EFFECT_LATENTS, len(direction), generator=random)
    latents -= (latents @ direction)[:, None] * direction
    with torch.inference_mode():
        low, high = (
            generator(latents + step * direction, *expand(labels, latents)).mean(1)
            for step in (-EFFECT_STEP, EFFECT_STEP)
        )
    change = (high - low).mean(0)
    change = (127 * change / change.abs().max().clamp(min=1e-9)).round().to(torch.int8)
    return export_js.base64_of(change)


# --- The epochs ---


def describe_epochs(grids, rows):
    """Return the history and a picture of the same latents in each epoch; None without epochs.

    The picture has a row for each of the epochs shown, and a column for each latent.
    """
    if not grids:
        return None
    most = MAX_EPOCHS
    while True:
        chosen = sections.evenly_spaced(grids, most)
        images = torch.stack([grids[epoch][:LEARN_LATENTS] for epoch in chosen])
        pixels = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (E H, L W, C)
        picture = plotting.png(pixels.expand(-1, -1, 3).numpy(), optimize=True)
        if len(picture) <= MAX_SPRITE or most <= 10:
            break
        most //= 2
    history = [
        {key: row[key] for key in ("epoch", *log.STATISTICS)} | {"text": tell(row, before)}
        for before, row in zip([None, *rows], rows, strict=False)
    ]
    return {
        "picture": plotting.embed(picture, "png"),
        "latents": images.shape[1],
        "epochs": chosen,
        "history": history,
    }


def tell(row, before=None):
    """What happens in an epoch, in words, from its row of the history and the one before."""
    real, fake = row["d_real"], row["d_fake"]
    lead = real - fake
    if log.looks_collapsed(row):
        return (
            f"Collapse: nearly all forgeries look alike (coverage {row['coverage']:.2f}). The "
            "forger repeats the one picture that sells."
        )
    if lead > 0.8:
        text = "The detective is too strong: always sure, it hardly shows the forger what to mend"
    elif lead < 0.15:
        text = "The detective can hardly tell them apart: forger and detective are in balance"
    elif lead < 0.5:
        text = "The detective is ahead but often in doubt, so the forger can learn from it"
    else:
        text = "The detective is clearly ahead; the forger is easily caught, but can still learn"
    if before:
        change = lead - (before["d_real"] - before["d_fake"])
        trend = "has grown" if change > 0 else "has shrunk"
        text += f". Its lead {trend} since epoch {before['epoch']}" if abs(change) > 0.02 else ""
    return f"{text}. On average it gives originals {real:.0%} and forgeries {fake:.0%}."


# --- The game ---


def describe_game(samples, detective):
    """Return the training images of the game: the last in the order whose first the collage shows.

    detective: that section of the report, if it has one. Its first row is told.
    """
    images, labels = samples.shuffled(slice(-REAL_IMAGES, None)), samples.shuffled_labels
    row = detective and detective["rows"][0][0]
    return {
        "real": export_js.base64_of(images.permute(0, 2, 3, 1)),
        "count": len(images),
        "labels": None if labels is None else labels[-REAL_IMAGES:].int().tolist(),
        "fresh": row and {"accuracy": row["accuracy"], "images": 2 * len(row["real"])},
    }


# --- The page ---


def render(data, **facts):
    """Fill the template. data: what collect returned."""
    script, style = (read(name) for name in ("play.js", "play.css"))
    hashes = {"script_hash": hash_of(script), "style_hash": hash_of(style), "version": version()}
    facts |= {"data": data, "json": script_json(data), "script": script, "style": style}
    return environment().get_template("play.html.jinja").render(facts, **hashes)


def version():
    """What tells pages of one version of the templates from those of another."""
    return hash_of("".join(map(read, ("play.html.jinja", "play.js", "play.css"))))


def read(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def script_json(data):
    """Data as JSON that is safe inside a script element and in JavaScript, whatever the names."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII: no line separators of Unicode
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def hash_of(text):
    """The hash by which a Content-Security-Policy lets a script or a style in."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
