"""Tables of areas under the ROC curve (AUC), with paired bootstrap intervals.

samples, below: what `sample` returns for each row of a table and number N of labelled images,
{(row, N): (draws, tests, 1 + B)}; what was not measured is not in it.
"""

import numpy as np


def print_auc(samples, rows, sizes):
    """Print the AUC of each row in the first test."""
    print_heads(sizes)
    for row in rows:
        aucs = {n: samples[row, n][:, 0, 0] for n in sizes if (row, n) in samples}
        cells = [
            f"{aucs[n].mean():.3f} ({aucs[n].std(ddof=1):.3f})" if n in aucs else "" for n in sizes
        ]
        if aucs:
            print(f"| {row} | {' | '.join(cells)} |")


def print_differences(samples, rows, sizes, reference):
    """Print the difference of each row's AUC in the first test to that of the row `reference`."""
    print(f"\nDifference to {reference}, and its 95 % interval.\n")
    print_heads(sizes)
    first = {key: found[:, :1] for key, found in samples.items()}
    for row in rows:
        cells = [describe_difference(first, row, n, reference) for n in sizes]
        if any(cells):
            print(f"| {row} | {' | '.join(cells)} |")


def print_heads(sizes):
    print(f"| labelled images | {' | '.join(f'{n:,}' for n in sizes)} |")
    print(f"|{' --- |' * (len(sizes) + 1)}")


def print_corrupted(samples, kinds, rows, n, reference):
    """Print the AUC of each row in all tests but the first, at N, several for each of the kinds."""
    found = {row: samples[row, n][:, 1:] for row in rows if (row, n) in samples}
    aucs = {row: draws[:, :, 0].mean(0) for row, draws in found.items() if draws.size}
    if not aucs:
        return
    levels = len(next(iter(aucs.values()))) // len(kinds)
    print(f"\nN = {n:,}: AUC in hundredths at severity 1 to {levels}, mean of the draws.\n")
    print(f"| corruption | {' | '.join(aucs)} |\n|{' --- |' * (len(aucs) + 1)}")
    parts = [(kind, number * levels, (number + 1) * levels) for number, kind in enumerate(kinds)]
    for kind, first, end in parts:
        cells = [" ".join(f"{100 * auc:.0f}" for auc in row[first:end]) for row in aucs.values()]
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"| mean of all | {' | '.join(f'{row.mean():.3f}' for row in aucs.values())} |")
    print(f"\nDifference to {reference}, mean of the severities, and its 95 % interval.\n")
    others = [row for row in aucs if row != reference]
    print(f"| corruption | {' | '.join(others)} |\n|{' --- |' * (len(others) + 1)}")
    for kind, first, end in [*parts, ("mean of all", 0, None)]:
        of_kind = {(row, n): found[row][:, first:end] for row in aucs}
        cells = [describe_difference(of_kind, row, n, reference) for row in others]
        print(f"| {kind} | {' | '.join(cells)} |")


def describe_difference(samples, row, n, reference):
    """Return `difference` in words, "" for the reference and where one was not measured."""
    if row == reference or not {(row, n), (reference, n)} <= {*samples}:
        return ""
    mean, low, high = difference(samples[row, n], samples[reference, n])
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def difference(ours, theirs):
    """Return the mean difference in AUC of two rows, and its 95 % interval, (mean, low, high).

    A bootstrap over test images and draws together: both rows get the same samples of both. The
    mean is over tests and draws. Shapes: what `sample` returns, twice.
    """
    gaps = (ours - theirs).mean(axis=1)  # (draws, 1 + B); the first is that of all test images
    random = np.random.default_rng(0)
    taken = random.integers(0, len(gaps), gaps[:, 1:].shape)
    means = np.take_along_axis(gaps[:, 1:], taken, axis=0).mean(0)
    return gaps[:, 0].mean(), *np.percentile(means, (2.5, 97.5))


def sample(scores, truth, weights):
    """Return the AUC of each draw and test in each sample of the test images.

    The first sample is all of them. scores: of M images in each test, after training on each draw
    of labelled images; truth: their labels, 0 or 1. Shapes: (draws, tests, M), (M,), (1 + B, M) ->
    (draws, tests, 1 + B).
    """
    return np.array([[auc(test, truth, weights) for test in draw] for draw in scores])


def bootstrap_weights(n, samples):
    """Return how often each of n images is in each sample, (1 + samples, n); all 1 first."""
    random = np.random.default_rng(1)
    drawn = random.multinomial(n, np.full(n, 1 / n), samples)
    return np.concatenate([np.ones((1, n)), drawn])


def auc(scores, truth, weights):
    """Return the area under the ROC curve of scores (M,) for each row of weights (B, M), (B,).

    The share of pairs of a positive and a negative image that are in order, ties counting half.
    """
    order = scores.argsort()
    _, starts = np.unique(scores[order], return_index=True)
    positive, negative = (
        np.add.reduceat((weights * (truth == label))[:, order], starts, axis=1) for label in (1, 0)
    )
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
