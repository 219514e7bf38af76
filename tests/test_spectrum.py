"""The spectrum finds detail that is too weak or too strong, and at which frequency."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

from common import log, metrics, runs, spectrum
from common.data import dataset, phantom

RIBS = spectrum.BANDS.index(0.15)  # the band that the faults below are planted in


@pytest.fixture(scope="module", params=[28, 64])
def films(request):
    pixels, _ = phantom.make_split(1500 if request.param == 28 else 800, 1, request.param)
    return torch.from_numpy(pixels)[:, None]


def ratios(images, films):
    """(2, 5): vertical waves and all waves, in five bands, over those of the films."""
    return spectrum.band_amplitudes(images) / spectrum.band_amplitudes(films)


def add(films, wave):
    return (films + wave).round().clamp(0, 255).to(torch.uint8)


def unmoved(ratios, but=()):
    keep = [number for number in range(5) if number not in but]
    return ratios[:, keep].flatten().tolist() == pytest.approx([1] * 2 * len(keep), abs=0.06)


def test_other_films_have_the_same_amplitude_in_every_band(films):
    half = len(films) // 2
    assert unmoved(ratios(films[:half], films[half:]))


def test_white_noise_has_its_standard_deviation_in_every_band():
    noise = 128 + 20 * torch.randn(500, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    amplitudes = spectrum.band_amplitudes(noise.round().to(torch.uint8))
    assert amplitudes == pytest.approx(torch.full((2, 5), 20.0).double(), rel=0.02)


def test_images_without_detail_have_that_of_rounding():
    grey = torch.full((10, 1, 28, 28), 77, dtype=torch.uint8)
    assert spectrum.band_amplitudes(grey) == pytest.approx(np.full((2, 5), 1 / 12**0.5), abs=1e-6)


def test_a_blur_weakens_a_band_the_more_the_finer_it_is(films):
    blurred = scipy.ndimage.gaussian_filter(films.double().numpy(), (0, 0, 0.7, 0.7))
    for row in ratios(torch.from_numpy(blurred).round().to(torch.uint8), films):
        assert row[0] > 0.9 and row[-1] < 0.5
        assert (row.diff() < 0).all()


def test_a_missing_band_is_missed_and_no_other(films):
    waves = scipy.fft.dctn(films.double().numpy(), axes=(2, 3))
    k = np.arange(films.shape[-1]) / (2 * films.shape[-1])
    radius = np.hypot(k[:, None], k)
    waves[:, :, (radius >= 0.15) & (radius < 0.22)] = 0
    without = torch.from_numpy(scipy.fft.idctn(waves, axes=(2, 3))).round()
    found = ratios(without.clamp(0, 255).to(torch.uint8), films)
    assert (found[:, RIBS] < 0.65).all()  # not 0: the window lets a part of the neighbours in
    assert (found.argmin(dim=1) == RIBS).all()
    assert (found[:, [0, 4]] > 0.9).all()


def test_noise_shows_where_there_is_little_else(films):
    noise = 6 * torch.randn(films.shape, generator=torch.Generator().manual_seed(0))
    found = ratios(add(films, noise), films)
    assert (found[:, -1] > 1.2).all()
    assert unmoved(found, but=[2, 3, 4])
    assert (found.diff() > 0).all()


def test_a_checkerboard_moves_the_finest_band_and_no_other(films):
    x = torch.arange(films.shape[-1])
    found = ratios(add(films, 8.0 * (-1) ** (x[:, None] + x)), films)
    assert (found[:, -1] > 1.2).all()
    assert unmoved(found, but=[4])


def test_vertical_waves_are_those_of_horizontal_stripes(films):
    phases = torch.rand(len(films), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    upright = 6 * (2 * torch.pi * (0.1875 * torch.arange(films.shape[-1]) + phases)).cos()
    level, upright = (ratios(add(films, wave), films) for wave in (upright.mT, upright))
    assert level[0, RIBS] > level[1, RIBS] > 1.05
    assert upright[1, RIBS] > 1.05
    assert unmoved(level, but=[RIBS]) and unmoved(upright, but=[RIBS])
    assert upright[0, RIBS] == pytest.approx(1, abs=0.01)


def test_a_pattern_that_all_images_share_is_told_from_noise_of_their_own(films):
    random = torch.Generator().manual_seed(0)
    own, shared = (6 * torch.randn(n, *films.shape[1:], generator=random) for n in (len(films), 1))
    real = spectrum.shared_detail(films)
    assert abs(spectrum.shared_detail(films[:20]) - real) < 0.05, "it does not depend on n"
    noisy, patterned = (spectrum.shared_detail(add(films, noise)) for noise in (own, shared))
    assert noisy < 0.6 * real < 0.2 and patterned > 0.4
    assert spectrum.shared_detail(films[:1].expand_as(films)) == pytest.approx(1)
    assert spectrum.shared_detail(torch.zeros_like(films)) <= 0
    ratios = spectrum.band_ratios(add(films, shared), spectrum.band_amplitudes(add(films, own)))
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values()), "the bands do not see it"


def test_the_worst_band_is_the_one_furthest_from_1_on_either_side():
    row = dict.fromkeys(spectrum.RATIOS, 1.0) | {"vertical_15": 0.6, "all_32": 1.9}
    assert spectrum.worst_band(row) == ("all_32", 1.9)
    assert spectrum.worst_band(row | {"all_32": 1.5}) == ("vertical_15", 0.6)
    assert spectrum.worst_band({"epoch": 1}) is None


def test_the_best_epoch_is_not_the_one_with_the_strongest_blur(films):
    real, other = films[: len(films) // 2], films[len(films) // 2 :]
    blurred = scipy.ndimage.gaussian_filter(other.double().numpy(), (0, 0, 1.0, 1.0))
    sharp = metrics.evaluate(metrics.fit_reference(films, real), other[: len(real)])
    images = torch.from_numpy(blurred).round().to(torch.uint8)[: len(real)]
    blurry = metrics.evaluate(metrics.fit_reference(films, real), images)
    assert blurry["coverage"] > sharp["coverage"] - 0.05  # it hardly sees it
    assert metrics.score(blurry) < 0.6 * metrics.score(sharp)
    history = [
        {"epoch": n, "step": 500 * n} | row for n, row in enumerate((sharp, blurry), start=1)
    ]
    assert runs.choose_epoch("best", {1: "a", 2: "b"}, history) == 1
    assert not log.warnings(history[0])
    (warning,) = log.warnings(history[1])
    assert "too smooth" in warning and "0.32 to 0.71 cycles per pixel" in warning


def test_the_spectrum_shows_a_wave_at_its_frequency():
    x = torch.arange(28)
    stripes = 100 + 50 * torch.cos(2 * torch.pi * 7 * x / 28).expand(1, 1, 28, 28)
    found = spectrum.amplitude_spectrum(stripes.round().to(torch.uint8))
    assert len(found) == 21
    assert found[3:].argmax() + 3 == 7
    board = (255 * ((x[:, None] + x) % 2)).expand(1, 1, 28, 28).to(torch.uint8)
    assert spectrum.amplitude_spectrum(board)[3:].argmax() + 3 == 20


def test_real_halves_agree(real_dir):
    images = dataset.load("pneumoniamnist", folder=real_dir)[0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert unmoved(ratios(images[order[:2300]], images[order[2300:4600]]))
