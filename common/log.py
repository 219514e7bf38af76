"""What train_model.py prints: the summary of a run, its status lines and warnings."""

import shlex
import sys
from datetime import timedelta

import torch

from common import distributed, hardware, metrics, spectrum
from common.data import dataset
from common.data.labels import label_names

STATISTICS = ["loss", "d_real", "d_fake"]
COLLAPSE = (
    "coverage below 0.1: nearly all samples look alike, a mode collapse. If it stays so, try a "
    "lower LEARNING_RATE, another SEED or more images, under another RUN_NAME."
)


def print_summary(run, progress, model, source, folder, pictures, report, reference, why):
    """Print what is trained on what, and where it is written.

    source: of the data, in words; report: the command that draws the pictures; reference: what
    train_model.fit_reference returned; why: so many threads, in words, or "".
    """
    settings, n = run.settings, len(progress.permutation)
    networks = {name: getattr(model, name) for name in run.model_args}
    counts = (f"{k} {sum(p.numel() for p in v.parameters()):,}" for k, v in networks.items())
    print(f"data set   {dataset.title(run.info)} from {source}")
    steps, size = n // settings["BATCH_SIZE"], settings["SIZE"]
    print(f"images     {n:,} of {size}x{size}x{run.channels}, {steps} steps per epoch")
    if settings["CONDITIONAL"]:
        print(f"labels     {', '.join(label_names(run.info))}")
    if quality := run.model_args["generator"].get("jpeg"):
        print(f"JPEG       quality {quality}, of real images; synthetic ones are compressed alike")
    device = progress.running_sums.device
    print(f"device     {hardware.describe(device)}{why and f' ({why})'}")
    print(f"dtype      {settings['DTYPE']}")
    print(f"weights    {', '.join(counts)}")
    print(f"run        {folder}, {f'from epoch {progress.epoch + 1}' if progress.step else 'new'}")
    print(f"pictures   {pictures}, by {report}")
    if reference:
        scores = describe_metrics(reference["real_vs_real"])
        print(f"reference  {scores}: {reference['n']:,} real images")


def print_stopped(epoch, resume):
    """Print that training was stopped in an epoch, and the command to resume it.

    resume: the constant RESUME of train_model.py.
    """
    again = ["--RESUME=auto"] if resume == "never" else []
    print(f"stopped in epoch {epoch}, nothing is lost. To resume:")
    print(f"  {distributed.command()} {shlex.join(sys.argv + again)}")


def row(run, progress, scores):
    """Return the row of log.csv for the epoch that just ended. scores: of metrics.evaluate."""
    speed = progress.images_seen / max(progress.seconds, 1e-9)  # a coarse clock may say 0
    times = {
        "seconds": round(progress.seconds, 2),
        "images_per_second": round(speed, 1),
        "maintenance_seconds": round(progress.maintenance_seconds, 2),
    }
    done = {"epoch": progress.epoch + 1, "step": progress.step}
    losses = means(progress, run.settings["BATCH_SIZE"])
    return done | times | losses | scores | {"data_set": dataset.title(run.info)}


def means(progress, batch_size):
    """Return the means of the STATISTICS over the unfinished epoch, {name: value}."""
    values = (progress.running_sums / (progress.images_seen // batch_size)).tolist()
    return {name: round(value, 4) for name, value in zip(STATISTICS, values, strict=True)}


def show_means(bar, progress, batch_size, epochs, epoch_images):
    """Show the means of the unfinished epoch behind a progress bar, or in a line if it is off."""
    line = describe_means(means(progress, batch_size))
    bar.set_postfix_str(line, refresh=False)
    if bar.disable:
        share = progress.images_seen / epoch_images
        print(f"{share:.0%} of epoch {progress.epoch + 1}/{epochs}, {line}")


class Speed:
    """Notices once when training becomes less than half as fast as it was."""

    SECONDS = 20  # over which speed is measured

    def __init__(self):
        self.images, self.seconds, self.best, self.told = 0, 0.0, 0.0, False

    def falls(self, images, seconds):
        """Take note of a step. Returns the line that says what helps, or None."""
        self.images, self.seconds = self.images + images, self.seconds + seconds
        if self.seconds < self.SECONDS:
            return None
        speed, best, self.images, self.seconds = self.images / self.seconds, self.best, 0, 0.0
        self.best = max(best, speed)
        if self.told or speed > best / 2:
            return None
        self.told = True
        on_cpu = torch.get_num_threads() > 1 and not torch.cuda.is_initialized()
        helps = "; so does --THREADS=1, after Ctrl-C" if on_cpu else ""
        return (
            f"{speed:.0f} images/s, {best:.0f} before: other programs keep the machine busy. "
            f"Closing them helps{helps}."
        )


def describe_means(row):
    return f"loss {row['loss']:.3f}, D(x) {row['d_real']:.2f}, D(G(z)) {row['d_fake']:.2f}"


def describe_metrics(row):
    line = " ".join(f"{key} {row[key]:.2f}" for key in ("precision", "recall", "coverage"))
    worst = spectrum.worst_band(row)
    return line + (f" detail {worst[1]:.2f}" if worst else "")


def describe_epoch(history, epochs):
    """Return the status line of the last epoch of the history, of so many that the run will have.

    detail: the amplitude ratio that is furthest from 1. A line below says when the run has
    collapsed or its best epoch is over.
    """
    row = history[-1]
    seconds = row["seconds"] + row["maintenance_seconds"]
    left = timedelta(seconds=round(seconds * (epochs - row["epoch"])))
    line = f"epoch {row['epoch']}/{epochs}, {row['images_per_second']:.0f} images/s"
    line += f", {describe_means(row)}"
    line += f", {describe_metrics(row)}" if "coverage" in row else ""
    line += f", {left} left" + (f"\n{COLLAPSE}" if looks_collapsed(row) else "")
    if better := better_epoch(history):
        line += f"\nepoch {better['epoch']} was better: {describe_metrics(better)}"
    return line


def looks_collapsed(row):
    """Whether coverage is near 0 in a row of the history although there was time to learn."""
    return row.get("coverage", 1.0) < 0.1 and row["step"] >= 500


def warnings(row):
    """Return lines on what is wrong with the last epoch, a row of the history."""
    lines = [COLLAPSE] if looks_collapsed(row) else []
    name, ratio = spectrum.worst_band(row) or ("", 1.0)
    if ratio < 0.5 and row["step"] >= 500:
        waves, low = name.split("_")
        what = "horizontal stripes" if waves == "vertical" else "detail"
        lines.append(
            f"synthetic images are too smooth: at {spectrum.band_text(low)} cycles per pixel, "
            f"{what} has {ratio:.2f} of the amplitude in real images. Try more EPOCHS or, in a new "
            "run, a lower EMA_HALF_LIFE."
        )
    return lines


def better_epoch(history):
    """Return the row of the epoch with the highest metrics.score if training has since got worse.

    That is when it lies at least five epochs back and the highest score of the last five is lower
    by 0.02, about the spread of coverage over seeds (docs/RESULTS.md). Else None.
    """
    measured = [row for row in history if "coverage" in row]
    best = max(measured, key=metrics.score, default=None)
    recent = [metrics.score(row) for row in measured[-5:]]
    if best is None or best in measured[-5:] or max(recent) > metrics.score(best) - 0.02:
        return None
    return best
