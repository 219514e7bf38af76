"""What a run's numbers say, in one line: the status that train_model.py prints."""

STATISTICS = ["loss_discriminator", "loss_generator", "d_real", "d_fake"]
COLLAPSE = (
    "coverage below 0.1: nearly all samples look alike, a mode collapse. If it stays so, try a "
    "lower LEARNING_RATE, another SEED or more images, under another RUN_NAME."
)


def means(progress, batch_size):
    """Return the means of the STATISTICS over the unfinished epoch, {name: value}."""
    values = (progress.running_sums / (progress.images_seen // batch_size)).tolist()
    return {name: round(value, 4) for name, value in zip(STATISTICS, values, strict=True)}


def describe_means(row):
    losses = f"loss D {row['loss_discriminator']:.3f} G {row['loss_generator']:.3f}"
    return f"{losses}, D(x) {row['d_real']:.2f}, D(G(z)) {row['d_fake']:.2f}"


def describe_metrics(row):
    return " ".join(f"{key} {row[key]:.2f}" for key in ("precision", "recall", "coverage"))


def looks_collapsed(row):
    """Whether coverage is near 0 in a row of the history although there was time to learn."""
    return row.get("coverage", 1.0) < 0.1 and row["step"] >= 500


def better_epoch(history):
    """Return the row of the epoch with the highest coverage if training has since got worse.

    That is when it lies at least five epochs back and the highest coverage of the last five is
    lower by 0.02, about the spread of seeds (docs/RESULTS.md). Else None.
    """
    covered = [row for row in history if "coverage" in row]
    best = max(covered, key=lambda row: row["coverage"], default=None)
    recent = [row["coverage"] for row in covered[-5:]]
    if best is None or best in covered[-5:] or max(recent) > best["coverage"] - 0.02:
        return None
    return best
