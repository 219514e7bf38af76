"""Whether images were stored as JPEG at their own size, and the same for synthetic images.

JPEG rounds the cosine waves of each square of 8x8 pixels to multiples of a few numbers. A network
does not draw waves so exact, so they would tell every real image from every synthetic one.
"""

import io

import numpy as np
import torch
from PIL import Image

GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue, as JPEG weighs them


def find_quality(images):
    """Return the quality, 10 to 95, at which images were stored as JPEG, or None if they were not.

    It is the lowest for which nine in ten waves lie within a grey level, what rounding the pixels
    leaves, of multiples of that quality's numbers: those of a higher quality are smaller, and may
    divide them. Shapes: uint8 (N, C, S, S), C 1 or 3. Images that were enlarged or made smaller
    later, as for another SIZE, are no longer JPEG in this sense.
    """
    images = images[:: len(images) // 500 + 1].float()
    grey = images[:, 0] if images.shape[1] == 1 else (images * GREY[:, None, None]).sum(1)
    squares = (grey - 128).unfold(1, 8, 8).unfold(2, 8, 8).flatten(0, 2)
    squares = squares[:: len(squares) // 5000 + 1]
    k = torch.arange(8.0)
    cosines = (k[:, None] * (2 * k + 1) * torch.pi / 16).cos() / 2
    cosines[0] = 8**-0.5
    waves = (cosines @ squares @ cosines.T).flatten(1)[:, 1:]  # without the mean of the square

    def distances(quality):
        """From the multiples, in grey levels; near 0 and of small numbers all are near."""
        table = Image.open(encode(Image.new("L", (8, 8)), quality)).quantization[0]
        table = torch.tensor(table[1:])
        seen = (waves.abs() > 2) & (table > 3)
        return (waves - (waves / table).round() * table).abs()[seen]

    fits = (q for q in range(10, 96) if (distances(q) < 1).float().mean() > 0.9)  # nan if none seen
    lowest = next(fits, None)
    # The next ones have nearly the same numbers.
    return lowest and min(range(lowest, lowest + 4), key=lambda q: float(distances(q).mean()))


def compress(images, quality):
    """Return images, uint8 (N, C, S, S), as they are after storing them as JPEG of a quality."""
    pixels = images.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()
    stored = [np.asarray(Image.open(encode(Image.fromarray(each), quality))) for each in pixels]
    stored = torch.from_numpy(np.stack(stored)).view(len(images), *images.shape[2:], -1)
    return stored.permute(0, 3, 1, 2).contiguous().to(images.device)


def encode(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file
