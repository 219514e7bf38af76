"""What the metrics mean, on images with a planted fault, and that their arithmetic is right."""

import itertools

import numpy as np
import prdc
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from common import metrics, spectrum
from common.data import dataset
from report import fine_detail, membership

N = 2300  # half of PneumoniaMNIST


def noise(images, grey_levels, seed=0):
    """The images with normal noise of this standard deviation."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)) * grey_levels
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def normal(n, width=8, seed=0):
    """Features as good as any: independent normal ones."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def flat(*greys):
    """Images of one grey each; their distances are 28 times those of the greys."""
    return torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)


def neighbourhoods(real, synthetic):
    """(precision, recall, density, coverage), the real radii computed once."""
    radii = metrics.neighbour_radii(real)
    return (
        metrics.precision(real, synthetic, radii),
        metrics.recall(real, synthetic),
        metrics.density(real, synthetic, radii),
        metrics.coverage(real, synthetic, radii),
    )


@pytest.fixture(scope="module", params=["phantom", "pneumoniamnist"])
def halves(request):
    """Two random halves of a data set's training images: as good as a synthetic set can be."""
    folder = request.getfixturevalue("phantom_dir" if request.param == "phantom" else "real_dir")
    images = dataset.load(request.param, folder=folder)[0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return images[order[:N]], images[order[N : 2 * N]]


@pytest.fixture(scope="module")
def project(halves):
    """Images -> features along the principal components of both halves."""
    basis = metrics.fit_features(torch.cat(halves))
    return lambda images: metrics.features(images, *basis)


@pytest.fixture
def few(phantom_dir):
    """300 phantoms, for what does not need many."""
    return dataset.load("phantom", "val", phantom_dir)[0][:300]


# What the numbers mean


def test_two_halves_of_the_real_images_are_as_good_as_can_be(halves, project):
    real, other = (project(half) for half in halves)
    precision, recall, density, coverage = neighbourhoods(real, other)
    assert precision > 0.8 and recall > 0.8
    assert 0.9 < density < 1.1
    assert coverage == pytest.approx(1 - 2**-metrics.K, abs=0.02), "expected by Naeem et al. 2020"
    assert metrics.frechet_distance(real, other) < 0.01 * real.var(0).sum()
    assert abs(metrics.kernel_distance(real, other)) < 0.01


def test_a_collapse_keeps_precision_and_loses_recall_and_coverage(halves, project):
    real, other = halves
    collapsed = noise(other[:20].repeat(N // 20, 1, 1, 1), grey_levels=1)
    precision, recall, _, coverage = neighbourhoods(project(real), project(collapsed))
    assert precision > 0.7
    assert recall < 0.05
    assert coverage < 0.1


def test_images_from_a_gaussian_have_a_low_frechet_distance_and_are_bad(halves, project):
    """Why one number is never enough: the Gaussian beats another half of the real images at it."""
    real, other = halves
    gaussian = project(metrics.gaussian_reference(torch.cat(halves), N))
    real, other = project(real), project(other)
    distance = metrics.frechet_distance(real, gaussian)
    assert distance < 1.2 * metrics.frechet_distance(real, other)
    precision, _, density, coverage = neighbourhoods(real, gaussian)
    assert precision < 0.6
    assert density < 0.4
    assert coverage < 0.6


def test_faint_noise_is_seen_by_the_fine_detail_and_by_nothing_else(halves, project):
    real, other = halves
    noisy = noise(other, grey_levels=5)
    one, two, three = (images[:1500] for images in (real, other, noisy))  # enough, and quicker
    usual, found = fine_detail.distance(one, two), fine_detail.distance(one, three)
    assert found[28] > 3 * usual[28]
    assert found[7] == pytest.approx(usual[7], rel=0.1), "noise is finer than this"

    real, other, noisy = project(real), project(other), project(noisy)
    usual, found = neighbourhoods(real, other), neighbourhoods(real, noisy)
    assert found == pytest.approx(usual, abs=0.05)
    more = metrics.frechet_distance(real, noisy) - metrics.frechet_distance(real, other)
    assert abs(more) < 0.001 * real.var(0).sum()


def test_copies_of_training_images_are_found_and_new_real_images_are_not(halves):
    train, others = halves
    held_out, new = others[: N // 2], others[N // 2 :]
    found = membership.memorisation(train[:500], train, held_out)
    assert found == {"ratio": 0, "share": 1}
    found = membership.memorisation(noise(train[:500], grey_levels=2), train, held_out)
    assert found["ratio"] < 0.5 and found["share"] > 0.9
    found = membership.memorisation(new, train, held_out)
    assert 0.9 < found["ratio"] < 1.1
    assert found["share"] < 0.03


def test_a_far_outlier_raises_recall_but_not_coverage():
    real, synthetic = normal(100), 0.01 * normal(100, seed=1)
    recall, coverage = metrics.recall(real, synthetic), metrics.coverage(real, synthetic)
    assert recall < 0.05
    synthetic[0] = 1000
    assert metrics.recall(real, synthetic) > 0.5
    assert metrics.coverage(real, synthetic) <= coverage


def test_detail_of_another_strength_is_no_other_detail(few):
    """The price of Karras et al.'s scaling, which makes the levels comparable."""
    strong, weak = few // 2 * 2, few // 2
    assert all(value < 0.1 for value in fine_detail.distance(strong, weak).values())


# Arithmetic, by hand


def test_features_keep_the_distances_between_images_that_vary_in_few_ways():
    images = noise(flat(128), grey_levels=20).repeat(9, 1, 1, 1)
    images[:, 0, 3:6, :] = torch.arange(9, dtype=torch.uint8)[:, None, None] * 10
    images[:, 0, 20, :] = torch.tensor([7, 200, 30, 77, 5, 9, 0, 120, 50], dtype=torch.uint8)[
        :, None
    ]
    mean, basis = metrics.fit_features(images)
    assert basis.shape == (784, 2), "no component for what does not vary"
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.double))
    features = metrics.features(images, mean, basis)
    torch.testing.assert_close(features.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    pixels = images.flatten(1).double() / 127.5
    torch.testing.assert_close(torch.cdist(features, features), torch.cdist(pixels, pixels).float())
    variances = features.var(0)
    assert variances[0] > variances[1]


def test_frechet_distance_of_two_gaussians_on_a_line():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])
    # Means 1 and 5, variances 2 and 8: (5 - 1)^2 + 2 + 8 - 2 sqrt(2 * 8).
    assert metrics.frechet_distance(a, b) == pytest.approx(18)


def test_frechet_distance_of_two_gaussians_in_a_plane():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    a, b = corners * torch.tensor([1.0, 2.0]), corners * torch.tensor([3.0, 1.0]) + 1
    # The variance of a corner is 4/3, so (s_a - s_b)^2 sums up to 4/3 * (2^2 + 1^2); means add 2.
    assert metrics.frechet_distance(a, b) == pytest.approx(2 + 20 / 3)


def test_frechet_distance_of_fewer_images_than_features():
    a, b = normal(5, 64), normal(4, 64, seed=1)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, a + 1) == pytest.approx(64, rel=1e-6)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_kernel_distance_of_three_and_two_points():
    a, b = [(1.0, 0.0), (0.0, 2.0), (-1.0, 1.0)], [(2.0, 2.0), (0.0, -1.0)]

    def kernel(x, y):
        return ((x[0] * y[0] + x[1] * y[1]) / 2 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    between = np.mean([kernel(x, y) for x, y in itertools.product(a, b)])
    found = metrics.kernel_distance(torch.tensor(a), torch.tensor(b))
    assert found == pytest.approx(sum(within) - 2 * between)


def test_neighbourhoods_on_a_line():
    real, synthetic = torch.tensor([[0.0], [1], [2], [10]]), torch.tensor([[0.5], [1.5], [30]])
    radii = metrics.neighbour_radii(real, k=1)
    assert radii.tolist() == [1, 1, 1, 8]
    assert metrics.neighbour_radii(real, k=2).tolist() == [2, 1, 2, 9]
    # 0.5 is near 0 and 1; 1.5 is near 1 and 2, and half too far from 10; 30 is near none.
    assert metrics.precision(real, synthetic, radii, k=1) == pytest.approx(2 / 3)
    assert metrics.density(real, synthetic, radii, k=1) == pytest.approx(4 / 3)
    assert metrics.coverage(real, synthetic, radii, k=1) == pytest.approx(3 / 4)
    # The radius of 30 is 28.5 and takes in 10.
    assert metrics.recall(real, synthetic, k=1) == 1
    assert metrics.recall(real, synthetic[:2], k=1) == pytest.approx(3 / 4)


def test_a_neighbourhood_ends_at_the_neighbour_and_has_it_inside():
    real = torch.tensor([[0.0], [1.0]])
    assert metrics.precision(real, torch.tensor([[2.0]]), k=1) == 1
    assert metrics.precision(real, torch.tensor([[2.001]]), k=1) == 0


def test_images_that_are_equal_are_at_a_distance_of_exactly_zero():
    x = normal(50, 64) + 1000  # far from 0, where the quick way of computing a distance goes wrong
    assert (metrics.neighbour_radii(x.repeat(6, 1), k=5) == 0).all()
    assert metrics.coverage(x, x, torch.zeros(50)) == 1


def test_the_distance_of_patches_of_one_grey_is_that_of_the_greys():
    a, b = normal(400, 1).exp(), normal(400, 1, seed=1)
    stacks = [x[:, :, None, None].expand(-1, 1, 7, 7) for x in (a, b)]
    found = fine_detail.sliced_wasserstein(*stacks, torch.Generator().manual_seed(0))
    a, b = (((x - x.mean()) / x.std(correction=0)).flatten().numpy() for x in (a, b))
    # A random direction u in 49 dimensions sees a grey at |sum u| on average, near sqrt(2 / pi).
    expected = scipy.stats.wasserstein_distance(a, b) * (2 / np.pi) ** 0.5
    assert found == pytest.approx(expected, rel=0.15)


def test_memorisation_of_flat_greys():
    train = flat(100, 200)
    held_out = flat(110, 110, 130, 140, 150)  # 10, 10, 30, 40 and 50 from 100; 1st percentile 10
    synthetic = flat(100, 110, 111, 215)  # 0, 10 (which counts), 11 and 15
    found = membership.memorisation(synthetic, train, held_out)
    assert found == {"ratio": pytest.approx(10.5 / 30), "share": 0.5}


def test_the_nearest_images_of_flat_greys():
    distances, places = membership.nearest_image(flat(90, 200, 151), flat(100, 200, 151, 100))
    assert distances.tolist() == [10 * 28, 0, 0] and places.tolist() == [0, 1, 2]


def test_the_closest_pairs_of_flat_greys():
    distances, pairs = membership.closest_pairs(flat(10, 100, 13, 200, 101), 3)
    assert distances.tolist() == [28, 3 * 28, 87 * 28]
    assert pairs.tolist() == [[1, 4], [0, 2], [1, 2]]
    assert len(membership.closest_pairs(flat(10, 100, 13), 9)[0]) == 3, "there are no more"
    assert membership.closest_pairs(flat(7, 7), 1)[0] == 0, "one image twice"


def test_the_gaussian_reference_has_the_mean_and_covariance_it_was_fitted_to():
    # Two halves of a film that vary together, by 20 and by 10 grey levels.
    images = flat(128).repeat(2000, 1, 1, 1)
    grey = 20 * normal(2000, 1)[:, :, None, None]
    images[:, :, :14] = (128 + grey).round().to(torch.uint8)
    images[:, :, 14:] = (100 - grey / 2).round().to(torch.uint8)
    drawn = metrics.gaussian_reference(images, 4000).double()
    assert drawn.shape == (4000, 1, 28, 28)
    top, bottom = drawn[:, 0, 3, 3], drawn[:, 0, 20, 20]
    assert top.mean() == pytest.approx(128, abs=1.5) and top.std() == pytest.approx(20, rel=0.05)
    assert bottom.mean() == pytest.approx(100, abs=1) and bottom.std() == pytest.approx(
        10, rel=0.05
    )
    assert torch.corrcoef(torch.stack([top, bottom]))[0, 1] < -0.99
    assert (drawn[:, 0, 0] - drawn[:, 0, 13]).abs().max() <= 1, "the upper half moves as one"


# Arithmetic, by other programs


def test_neighbourhoods_equal_those_of_naeem_et_al():
    real, synthetic = normal(300), 0.8 * normal(200, seed=1) + 0.2
    theirs = prdc.compute_prdc(real.numpy(), synthetic.numpy(), nearest_k=metrics.K)
    names = ("precision", "recall", "density", "coverage")
    assert neighbourhoods(real, synthetic) == pytest.approx([theirs[name] for name in names])


def test_frechet_distance_equals_one_with_scipys_matrix_square_root():
    mix = normal(8, 8, seed=2)
    a, b = (normal(300) @ mix).double(), normal(200, seed=1).double() * torch.arange(1, 9) + 0.5
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(cov_a + cov_b - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_equals_one_with_scikit_learns_kernel():
    a, b = normal(300), normal(200, seed=1) + 0.3
    k_aa, k_bb, k_ab = (polynomial_kernel(x, y, degree=3) for x, y in ((a, a), (b, b), (a, b)))
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (k_aa, k_bb)]
    assert metrics.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * k_ab.mean(), rel=1e-4)


def test_the_pyramid_equals_one_with_scipys_convolution(few):
    window = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    levels, image = [], few[0, 0].numpy().astype(float)
    for _ in range(2):
        coarse = scipy.ndimage.convolve(image, window, mode="mirror")[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = coarse
        levels.append(image - scipy.ndimage.convolve(spread, 4 * window, mode="mirror"))
        image = coarse
    for ours, theirs in zip(fine_detail.pyramid(few), [*levels, image], strict=True):
        np.testing.assert_allclose(ours[0, 0], theirs, atol=1e-3)


# What must not matter


def test_the_same_seed_gives_the_same_number_and_another_seed_another(few):
    def numbers(seed):
        return (
            metrics.fit_features(few, at_most=200, seed=seed)[0].tolist(),
            fine_detail.distance(few[:150], few[150:], seed=seed),
            metrics.gaussian_reference(few, 3, seed=seed).tolist(),
        )

    first, again, other = numbers(1), numbers(1), numbers(2)
    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


def test_the_global_random_state_is_neither_used_nor_moved(few):
    def everything():
        half, other = few[:150], few[150:]
        basis = metrics.fit_features(half, at_most=100)
        real, synthetic = metrics.features(half, *basis), metrics.features(other, *basis)
        return (
            metrics.frechet_distance(real, synthetic),
            metrics.kernel_distance(real, synthetic),
            neighbourhoods(real, synthetic),
            fine_detail.distance(half, other),
            membership.memorisation(other[:50], half, other[50:]),
            metrics.gaussian_reference(half, 3).tolist(),
        )

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = everything()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert everything() == first


def test_the_order_of_the_images_does_not_matter(few):
    half, other = few[:150], few[150:]
    basis = metrics.fit_features(half)
    for ours, theirs in zip(basis, metrics.fit_features(half.flip(0)), strict=True):
        assert torch.equal(ours, theirs)
    real, synthetic = metrics.features(half, *basis), metrics.features(other, *basis)
    assert neighbourhoods(real.flip(0), synthetic.flip(0)) == neighbourhoods(real, synthetic)
    for distance in (metrics.frechet_distance, metrics.kernel_distance):
        expected = pytest.approx(distance(real, synthetic), rel=1e-6)
        assert distance(real.flip(0), synthetic.flip(0)) == expected
    sets = (other[:50], half, other[50:])
    backwards = (images.flip(0) for images in sets)
    assert membership.memorisation(*backwards) == membership.memorisation(*sets)
    # Patches lie elsewhere in an image that has another number, so this moves a little.
    expected = pytest.approx(fine_detail.distance(half, other), rel=0.25)
    assert fine_detail.distance(half, other.flip(0)) == expected


def test_the_size_of_the_chunks_does_not_matter(few, monkeypatch):
    def numbers():
        basis = metrics.fit_features(few)
        real, synthetic = (metrics.features(half, *basis) for half in (few[:160], few[160:]))
        return [
            *neighbourhoods(real, synthetic),
            metrics.kernel_distance(real, synthetic),
            *membership.memorisation(few[:100], few[100:200], few[200:]).values(),
            *membership.nearest_image(few[:50], few[50:])[1].tolist(),
        ]

    whole = numbers()
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert numbers() == pytest.approx(whole, rel=1e-6)


def test_a_set_of_images_is_at_no_distance_from_itself(few):
    assert fine_detail.distance(few, few) == {28: 0, 14: 0, 7: 0}
    x = metrics.features(few, *metrics.fit_features(few))
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert neighbourhoods(x, x)[:2] == (1, 1)


def test_grey_images_in_three_equal_channels_give_what_they_give_in_one(few):
    half, other = few[:150], few[150:]
    numbers = []
    for channels in (1, 3):
        a, b = (images.expand(-1, channels, -1, -1) for images in (half, other))
        basis = metrics.fit_features(a, components=16)
        real, synthetic = metrics.features(a, *basis), metrics.features(b, *basis)
        frechet = metrics.frechet_distance(real, synthetic) / channels
        found = membership.memorisation(b[:50], a, b[50:])
        numbers.append([*neighbourhoods(real, synthetic), frechet, *found.values()])
        assert fine_detail.distance(a, b).keys() == {28, 14, 7}
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


# Input that cannot be used


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.frechet_distance(normal(9, 3), normal(9, 4)),
        lambda: metrics.frechet_distance(normal(9), normal(1)),
        lambda: metrics.kernel_distance(normal(9, 3), normal(9, 4)),
        lambda: metrics.kernel_distance(normal(1), normal(9)),
        lambda: metrics.precision(normal(9, 3), normal(9, 4)),
        lambda: metrics.precision(normal(9), normal(0)),
        lambda: metrics.coverage(normal(9), normal(9), radii=torch.ones(8)),
        lambda: metrics.coverage(normal(9), normal(9) / 0),
        lambda: metrics.density(normal(9).flatten(), normal(9)),
        lambda: metrics.recall(normal(9), normal(5)),
        lambda: metrics.neighbour_radii(normal(5), k=5),
        lambda: metrics.neighbour_radii(normal(5), k=0),
        lambda: metrics.fit_features(flat()),
        lambda: metrics.fit_features(flat(3)),
        lambda: metrics.fit_features(flat(3, 3, 3)),
        lambda: metrics.fit_features(flat(1, 2).float()),
        lambda: metrics.features(flat(1, 2)[0], *metrics.fit_features(flat(1, 2))),
        lambda: metrics.features(flat(1).repeat(1, 3, 1, 1), *metrics.fit_features(flat(1, 2))),
        lambda: fine_detail.distance(flat(1, 2), flat(1)),
        lambda: fine_detail.distance(flat(1), flat(1).repeat(1, 3, 1, 1)),
        lambda: membership.memorisation(flat(1), flat(1), flat()),
        lambda: membership.memorisation(flat(1), flat(1, 2), flat(1, 2)),
        lambda: membership.closest_pairs(flat(), 3),
        lambda: metrics.gaussian_reference(flat(), 3),
    ],
)
def test_unusable_input_is_refused(call):
    with pytest.raises(ValueError, match="wanted|need|not numbers|all the same|cannot tell"):
        call()


def test_the_cheap_numbers_of_an_epoch_are_those_of_the_functions(halves):
    images = torch.cat(halves)
    real, other = halves[0][:300], halves[1][:300]
    reference = metrics.fit_reference(images, real)
    found = metrics.evaluate(reference, other)
    bands = spectrum.band_ratios(other, spectrum.band_amplitudes(real))
    bands["shared"] = spectrum.shared_detail(other)
    mean, basis = metrics.fit_features(images)
    real, other = metrics.features(real, mean, basis), metrics.features(other, mean, basis)
    assert found == {name: pytest.approx(ratio, abs=1e-4) for name, ratio in bands.items()} | {
        "precision": pytest.approx(metrics.precision(real, other), abs=1e-4),
        "recall": pytest.approx(metrics.recall(real, other), abs=1e-4),
        "coverage": pytest.approx(metrics.coverage(real, other), abs=1e-4),
        "frechet": pytest.approx(metrics.frechet_distance(real, other), abs=1e-4),
    }


def test_the_coverage_of_a_label_needs_images_of_that_label(phantom_dir):
    images, labels, _ = dataset.load("phantom", "train", phantom_dir)
    reference = metrics.fit_reference(images[:2000], images[:400])
    large, small = images[labels[:, 0] == 1], images[labels[:, 0] == 0]
    good = metrics.coverage_of_label(reference, large[:1500], large[1500:2500])
    assert good["n"] == 400 and abs(good["coverage"] - good["real_vs_real"]) < 0.05
    wrong = metrics.coverage_of_label(reference, large[:1500], small[1500:2500])
    assert (
        wrong["coverage"] < good["coverage"] - 0.1 and wrong["real_vs_real"] == good["real_vs_real"]
    )
    rare = metrics.coverage_of_label(reference, large[:39], large[39:])
    assert rare == {"n": 19, "coverage": None, "real_vs_real": None}
