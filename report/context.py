"""What every section of the report gets: one Context, and how many images of a size it shows.

A section is a function section(context) that writes its pictures to context.out and returns a dict
for report.html.jinja, or None if there is nothing to show.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jinja2
import torch

from common import metrics
from common.data.dataset import DataFile

EXAMPLES = 10  # images, or pairs of images, in a row


@dataclass(frozen=True)
class Captions:
    """What headings, captions and the page call things."""

    name: str  # the data set, "ChestMNIST"
    original: str  # one of its images: "real" or "phantom"
    originals: str  # several of them: "real images" or "phantoms"
    epoch: int | None  # the one shown; None in the middle of an epoch and before the first
    when: str  # the same in words, "epoch 3 of 50"
    why: str  # reason for showing it, "the last one of the run"
    of_epochs: str  # "of 50"

    @property
    def about(self):
        return f"{self.name}, {self.when}"

    @property
    def real_vs_real(self):
        return f"{self.original} vs {self.original}"


@dataclass(frozen=True)
class Samples:
    """The images that the report shows and evaluates, uint8 (N, C, S, S)."""

    images: torch.Tensor  # all training images, in the order in which training loads them
    order: torch.Tensor  # a random order of them
    shuffled_labels: torch.Tensor | None  # their label vectors (N, K), if the run is conditional
    held_out: torch.Tensor | None  # images that the run was not trained on, if there are any
    held_out_split: str  # the split they are from, "test" or "val"
    synthetic: torch.Tensor  # what synthetic.npz holds
    examined: torch.Tensor  # the first of them, compared with all training images
    grids: dict  # {epoch: synthetic images}, from the same latents after each epoch

    def shuffled(self, places):
        """Return the images at these places of the order; all at once may not fit into memory."""
        return self.images[self.order[places]]


@dataclass(frozen=True)
class Neighbours:
    """Nearest training images: (distances, indices), as membership.nearest_image returns them."""

    synthetic: tuple  # of samples.examined
    held_out: tuple | None  # of samples.held_out


@dataclass(frozen=True)
class Context:
    """What a section draws and measures, and where it writes."""

    captions: Captions
    samples: Samples
    neighbours: Neighbours | None  # None if no section that needs them is on
    generator: torch.nn.Module  # of the epoch shown
    saved: dict  # the content of checkpoint.pt
    checkpoint: Path  # that file
    data: DataFile  # that holds the training images
    out: Path  # the folder that pictures are written to
    options: SimpleNamespace  # the constants of generate_report.py
    page: dict  # what the sections before returned, {name: dict}

    @property
    def size(self):
        """Height and width of an image in pixels."""
        return self.samples.images.shape[-1]


def fewer(count, size, least=2):
    """Return how many images of this size to show, in a row or column, for count of 28 pixels.

    So a grid of them has about as many pixels, and the page as many bytes.
    """
    return max(min(count, least), -(-count * 28 // size))


def fewer_tiles(options, size):
    """Return the options of generate_report.py with the numbers that `fewer` gives at this size."""
    for name in ("COLLAGE_ROWS", "COLLAGE_COLUMNS"):
        setattr(options, name, fewer(getattr(options, name), size, least=3))
    for name in ("GRID_ROWS", "GRID_COLUMNS", "PROGRESS_ROWS"):
        setattr(options, name, fewer(getattr(options, name), size))
    for name in ("SCALE", "GIF_SCALE"):
        setattr(options, name, fewer(getattr(options, name), size, least=1))
    return options


def per_pixel(distances, images):
    """Convert distances of membership.py to root mean squares per pixel, in grey levels."""
    return (distances / metrics.shrink(images[:1]).numel() ** 0.5).tolist()


def environment():
    """Return the Jinja environment of both pages."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
