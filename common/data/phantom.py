"""Procedural chest radiographs: phantoms, not patients.

They let the whole program run without a network and without a data set. A chest built of
ellipsoids is X-rayed by the Beer-Lambert law and developed as a film: bone and fluid bright,
air dark, the patient's left on the image's right. The two labels change the anatomy, never the
grey levels. Nothing here is medical evidence: no number measured on these images says anything
about patients.

Lengths are in cm, x to the image's right, y down, the origin mid-chest. Sizes are typical adult
ones, adjusted by eye until the films looked right at 28x28.
"""

import torch

LABELS = ("cardiomegaly", "effusion")
SPLITS = {"train": 10_000, "val": 1_000, "test": 2_000}

RAYS = 84  # at least, across a film: at 28 pixels ribs are thinner than a pixel
CHUNK = 16  # images drawn at once: their working set fits into a CPU's cache
PREVALENCE = 0.3  # of each label, drawn independently: 9 % of the images have both

# Linear attenuation in 1/cm at 70 keV, about the mean of a hardened 120 kVp beam: between the 60
# and 80 keV rows of NIST's tables for the ICRU-44 tissues (physics.nist.gov/PhysRefData/
# XrayMassCoef/tab4.html), times density, rounded.
MU_SOFT = 0.205  # 1.06 g/cm3; blood, muscle and pleural fluid differ by a few per cent only
MU_BONE = 0.50  # cortical, 1.92 g/cm3; all bone below is given as its cortical equivalent
MU_LUNG = 0.050  # inflated, 0.26 g/cm3


class Draws:
    """Random numbers for n patients at once, of shape (n, 1, 1) to broadcast over their films."""

    def __init__(self, n, generator, rays):
        self.n, self.generator, self.rays = n, generator, rays  # rays: across a film

    def uniform(self, low, high):
        return low + (high - low) * torch.rand(self.n, 1, 1, generator=self.generator)

    def normal(self, mean, std):
        """Normal, clipped to two standard deviations: anatomy may be unusual, not impossible."""
        return mean + std * torch.randn(self.n, 1, 1, generator=self.generator).clamp_(-2, 2)

    def chance(self, probability):
        """1.0 with this probability, else 0.0."""
        return (self.uniform(0, 1) < probability).float()

    def texture(self, cells):
        """Smooth noise of about unit variance, `cells` bumps wide and high, (n, rays, rays)."""
        coarse = torch.randn(self.n, 1, cells, cells, generator=self.generator) * 1.5
        rays = (self.rays, self.rays)
        return torch.nn.functional.interpolate(coarse, rays, mode="bilinear").squeeze(1)


def chord(x, y, width, height, depth):
    """Return the length in cm of each ray inside an ellipsoid with these half axes at (0, 0).

    Ellipsoids get thinner towards the edge, as organs do; flat shapes would have visible outlines.
    The lower bound of 1e-8 adds less than 0.1 mm. It avoids exact zeros, on which MKL's square root
    is 10x slower.
    """
    inside = 1 - (x / width).square() - (y / height).square()
    return inside.clamp_(min=1e-8).sqrt_() * (2 * depth)


def turn(x, y, degrees):
    """Return coordinates along axes turned clockwise on the film by degrees, a float tensor."""
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    return x * cos + y * sin, y * cos - x * sin


def attenuate(cardiomegaly, effusion, draws):
    """Return the sum of mu * thickness along each ray, of one chest per pair of labels.

    cardiomegaly, effusion: float (n, 1, 1), 0 or 1. Returns float (n, rays, rays), 0 to about 7.
    """
    # Pose: rotation, centre and field of view vary.
    ray = (torch.arange(draws.rays) + 0.5) / draws.rays - 0.5
    field = draws.normal(31.5, 1.3)
    x = ray * field * draws.normal(1, 0.04) + draws.normal(0, 0.9)
    y = ray[:, None] * field + draws.normal(0.2, 1.0)
    x, y = turn(x, y, draws.normal(0, 2.5))
    midline = x - draws.normal(0, 0.4)  # a rotated patient: the heart shifts against the ribs
    breath = draws.normal(0, 1)  # a deep one lowers the diaphragm and narrows the heart

    # Trunk and rib cage: a dome above, below it a cylinder that widens a little.
    ribcage = draws.normal(13.0, 0.7) + 0.2 * breath
    depth = draws.normal(9, 0.8)
    apex = draws.normal(17.5, 0.7)
    above = (draws.normal(4, 0.8) - y).clamp(min=0)
    flare = ribcage + 0.04 * y
    cavity = chord(x, above, flare, apex, depth)
    wall, fat = draws.uniform(2, 6), draws.uniform(1, 3)
    body = chord(x, above, flare + wall, apex + 2.5, depth + fat)
    neck = chord(midline, torch.zeros(()), draws.normal(6.5, 0.6), 1, 6)
    trapezius = chord(x, y + draws.normal(9.5, 0.6), draws.normal(14, 1), 7, 7)
    body = torch.maximum(body, torch.maximum(neck, trapezius))

    # Heart, great vessels and mediastinum displace lung. The cardiothoracic ratio is the heart's
    # width over the rib cage's; above 0.5 it is read as cardiomegaly.
    ratio = draws.normal(0.45, 0.025) + cardiomegaly * draws.normal(0.14, 0.02) - 0.01 * breath
    half = ratio * ribcage
    tilt, round_ = draws.normal(38, 5), draws.normal(0.72, 0.04)
    cos2 = torch.deg2rad(tilt).cos().square()
    long = half / (cos2 + round_.square() * (1 - cos2)).sqrt()  # the tilted ellipse's half axis
    dome_y = draws.normal(8.5, 0.7) + 0.8 * breath
    heart_x, heart_y = turn(midline - 0.36 * half, y - dome_y + 0.42 * round_ * long, tilt)
    heart = chord(heart_x, heart_y, long, round_ * long, 1.1 * round_ * long)
    column_width = (draws.normal(2.6, 0.3) + 0.10 * y).clamp(min=1.8)
    column = chord(midline, torch.zeros(()), column_width, 1, 0.8 * depth)
    arch = chord(midline - 1.9, y + draws.normal(5, 0.6), draws.normal(2, 0.3), 2.2, 4)
    vessels = chord(midline - 0.9, y - draws.normal(0.5, 0.6), draws.normal(4, 0.4), 7, 4.5)
    lung = cavity - torch.maximum(torch.maximum(column, heart), torch.maximum(arch, vessels))

    # The rest comes in pairs, each side drawn separately: no chest is symmetrical.
    bone = torch.zeros_like(x)
    breasts = draws.chance(0.5) * draws.uniform(0.5, 2)
    breast_y = draws.normal(6, 1)
    left_lower = draws.normal(1.3, 0.4)
    which = draws.uniform(0, 1)
    surface = []
    for side in (-1, 1):  # the patient's right, then left
        out = side * x  # distance from the midline, positive on this side

        # Diaphragm: the liver holds the right dome higher.
        top = dome_y + (left_lower if side > 0 else 0)
        arc = draws.normal(4.5, 0.5)
        under = (top + arc - y).clamp(min=0)
        lung = lung - chord(out - 0.42 * ribcage, under, 0.64 * ribcage, arc, 1.15 * depth)
        hilum_y = y - draws.normal(-0.5, 0.7)
        lung = lung - chord(side * midline - 4, hilum_y, 2.2, 3, draws.uniform(0.7, 2))

        # Fluid: the height of its surface on this side; far below the film if there is none.
        affected = effusion * (which < 0.6 if side < 0 else which > 0.4)
        surface.append(top + draws.uniform(-4.5, 0.5) + 99 * (1 - affected))

        shoulder_x, shoulder_y = turn(out - 13, y + draws.normal(6, 0.8), draws.normal(30, 5))
        body = torch.maximum(body, chord(shoulder_x, shoulder_y, 11, 8, 7.5))
        body = body + breasts * chord(out - 7, y - breast_y, 5.5, 4.5, 1)
        collar_x, collar_y = turn(out - 8, y + draws.normal(9.8, 0.6), draws.normal(-14, 5))
        bone = bone + chord(collar_x, collar_y + 0.02 * collar_x.square(), 7, 0.8, 0.8)

    # Fluid rises along the side wall (the meniscus) and gets thinner upwards in front of the lung.
    climb = draws.uniform(2, 4) * (x / flare).square()
    depth_below = y + climb - torch.where(x < 0, *surface)
    lung = lung.clamp(min=0) * (1 - depth_below / 2).clamp(0, 1)

    # Ribs: the posterior ones slope down to the side, the anterior ones up; the beam meets them
    # edge-on near the wall, and the anterior ones end in cartilage, which absorbs little.
    across = x.abs()
    spacing, phase = draws.normal(2.8, 0.15), draws.uniform(0, 3)
    back = y - phase - draws.normal(0.1, 0.04) * across - 0.02 * across.square()
    front = y + phase + draws.normal(0.45, 0.08) * across
    edge_on = cavity / (cavity + 0.5) / (cavity / (2 * depth) + 0.5)
    shell = draws.uniform(0.4, 1.0) * edge_on
    for rib, thickness in ((back, shell), (front, 0.7 * shell * (across > 5))):
        off_centre = (rib / spacing).frac().abs() - 0.5
        bone = bone + chord(off_centre, torch.zeros(()), 0.25, 1, 0.5) * thickness
    discs = 1 + 0.2 * torch.sin(y * (2 * torch.pi / 2.7))
    bone = bone + chord(midline, torch.zeros(()), 1.9, 1, 0.5) * discs

    # Lungs differ in air content, their vessels give them texture, and some have an opacity without
    # a label, so that brightness alone does not determine the labels.
    spot_x, spot_y = x - draws.uniform(-10, 10), y - draws.uniform(-9, 9)
    spot = chord(spot_x, spot_y, draws.uniform(3, 7), draws.uniform(3, 7), 0.5)
    texture = 0.15 * draws.texture(14) + 0.12 * draws.texture(5)
    density = draws.uniform(0.8, 1.7) + texture + draws.chance(0.3) * spot
    trachea = chord(midline + 0.4, (y + 4).clamp(min=0), 0.9, 2, 0.9)
    soft = (body - lung - trachea - bone).clamp(min=0)
    return MU_SOFT * soft + MU_LUNG * density * lung + MU_BONE * bone


def develop(attenuation, draws):
    """Return grey levels, 0 to 1, of the film behind these rays, (n, rays, rays).

    The film's density is a logistic function of log exposure (the Hurter-Driffield curve).
    """
    signal = torch.exp(-attenuation) + draws.uniform(0.006, 0.015)  # scattered radiation
    photons = draws.uniform(3e3, 3e4)  # per ray in the open beam; enough for a normal Poisson noise
    noise = torch.randn(signal.shape, generator=draws.generator)
    signal = signal + (signal / photons).sqrt() * noise
    log_exposure = signal.clamp_(min=1e-4).log_()
    ray = torch.linspace(-1, 1, signal.shape[-1])
    heel = draws.normal(0, 0.1) * ray + draws.normal(0, 0.1) * ray[:, None]  # uneven beam
    density = heel - log_exposure

    # Exposure is set for the patient, so the film's range follows that of the chest.
    sample = density[:, ::5, ::5].flatten(1)
    low, high = torch.quantile(sample, torch.tensor([0.15, 0.85]), dim=1).view(2, -1, 1, 1)
    middle, span = draws.normal(0.42, 0.32), draws.normal(1.45, 0.4)
    film = torch.sigmoid(middle + span * ((density - low) / (high - low) - 0.5))

    # Collimator shutters shadow one or both sides of some films.
    shutter = 1.03 - draws.chance(0.2) * draws.uniform(0, 0.12)
    return film * ((ray - draws.normal(0, 0.03)).abs() < shutter)


def make_split(n, seed, size=28):
    """Draw n phantoms.

    Returns two uint8 arrays: images (n, size, size), 0 black to 255 white, and labels (n, 2), 0 or
    1 in the order of LABELS. The same n, seed and size give the same arrays.
    """
    fine = -(-RAYS // size)  # rays per pixel and direction
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, len(LABELS), generator=generator) < PREVALENCE).to(torch.uint8)
    images = torch.empty(n, size, size, dtype=torch.uint8)
    # Freeing one large block raises glibc's thresholds (mallopt(3), M_MMAP_THRESHOLD): temporaries
    # then reuse memory instead of returning it to the kernel each time, which can take 10x longer.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    # Thousands of short operations: on a busy machine the threads wait for each other at each of
    # them. One thread is nearly as fast, and the result does not depend on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for start in range(0, n, CHUNK):
            has = labels[start : start + CHUNK].float()[:, :, None, None]
            draws = Draws(len(has), generator, size * fine)
            film = develop(attenuate(has[:, 0], has[:, 1], draws), draws)
            pixels = torch.nn.functional.avg_pool2d(film, fine)
            images[start : start + CHUNK] = (pixels * 255).round().to(torch.uint8)
    finally:
        torch.set_num_threads(threads)
    return images.numpy(), labels.numpy()
