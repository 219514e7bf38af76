"""Tables of areas under the ROC curve (AUC), with paired bootstrap intervals.

scores, below: {(row, N): float (draws, tests, M)}, the scores of M images in each test, after
training on each draw of N labelled images; what was not measured is not in it. truth: their labels,
0 or 1, (M,).
"""

import numpy as np
from sklearn.metrics import roc_auc_score


def print_auc(scores, truth, rows, sizes):
    """Print the AUC of each row in the first test."""
    print(f"\nAUC on {len(truth)} test images, mean (standard deviation) of the draws.\n")
    print_heads(sizes)
    for row in rows:
        cells = []
        for n in sizes:
            aucs = [roc_auc_score(truth, draw[0]) for draw in scores.get((row, n), [])]
            cells.append(f"{np.mean(aucs):.3f} ({np.std(aucs, ddof=1):.3f})" if aucs else "")
        if any(cells):
            print(f"| {row} | {' | '.join(cells)} |")


def print_differences(scores, truth, rows, sizes, reference, weights):
    """Print the difference of each row's AUC in the first test to that of the row `reference`."""
    print(f"\nDifference to {reference}, and its 95 % interval.\n")
    print_heads(sizes)
    first = {key: found[:, :1] for key, found in scores.items()}
    for row in rows:
        cells = [describe_difference(first, row, n, truth, reference, weights) for n in sizes]
        if any(cells):
            print(f"| {row} | {' | '.join(cells)} |")


def print_heads(sizes):
    print(f"| labelled images | {' | '.join(f'{n:,}' for n in sizes)} |")
    print(f"|{' --- |' * (len(sizes) + 1)}")


def print_corrupted(scores, truth, kinds, rows, n, reference, weights):
    """Print the AUC of each row in all tests but the first, at N, several for each of the kinds."""
    rows = [row for row in rows if (row, n) in scores and scores[row, n].shape[1] > 1]
    if not rows:
        return
    corrupted = {(row, n): scores[row, n][:, 1:] for row in rows}
    aucs = {
        row: np.mean([[roc_auc_score(truth, test) for test in draw] for draw in found], axis=0)
        for (row, _), found in corrupted.items()
    }
    levels = len(aucs[rows[0]]) // len(kinds)
    print(f"\nN = {n:,}: AUC in hundredths at severity 1 to {levels}, mean of the draws.\n")
    print(f"| corruption | {' | '.join(rows)} |\n|{' --- |' * (len(rows) + 1)}")
    for number, kind in enumerate(kinds):
        part = slice(number * levels, (number + 1) * levels)
        cells = [" ".join(f"{100 * auc:.0f}" for auc in aucs[row][part]) for row in rows]
        print(f"| {kind} | {' | '.join(cells)} |")
    print(f"| mean of all | {' | '.join(f'{aucs[row].mean():.3f}' for row in rows)} |")
    cells = [describe_difference(corrupted, row, n, truth, reference, weights) for row in rows]
    print(f"| difference to {reference} | {' | '.join(cells)} |")


def describe_difference(scores, row, n, truth, reference, weights):
    """Return `difference` in words, "" for the reference and where one was not measured."""
    if row == reference or not {(row, n), (reference, n)} <= {*scores}:
        return ""
    mean, low, high = difference(scores[row, n], scores[reference, n], truth, weights)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def difference(ours, theirs, truth, weights):
    """Return the mean difference in AUC of two rows, and its 95 % interval, (mean, low, high).

    A bootstrap over test images and draws together: both rows get the same samples of both. The
    mean is over tests and draws. Shapes: (draws, tests, M) twice, (M,), (1 + B, M).
    """
    samples = [
        np.stack([np.mean([auc(test, truth, weights) for test in draw], axis=0) for draw in found])
        for found in (ours, theirs)
    ]
    gaps = samples[0] - samples[1]  # (draws, 1 + B); the first is that of all test images
    random = np.random.default_rng(0)
    taken = random.integers(0, len(gaps), gaps[:, 1:].shape)
    means = np.take_along_axis(gaps[:, 1:], taken, axis=0).mean(0)
    return gaps[:, 0].mean(), *np.percentile(means, (2.5, 97.5))


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
