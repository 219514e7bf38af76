"""What the benchmarks share. To import it lets them import the rest of the repository."""

import importlib.metadata
import importlib.util
import platform
import shlex
import statistics
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

# torch is imported inside functions: the process of the Keras recipe must not load it.


def train(**constants):
    """Run train_model.py with these constants, in this process."""
    import train_model
    from common import settings

    train_model.main(settings.override(vars(train_model), arguments(constants)))


def arguments(constants):
    """Return constants as they are given on the command line."""
    return [f"--{name}={value}" for name, value in constants.items()]


def print_head(*cells):
    """Print the head of a markdown table."""
    print_row(*cells)
    print_row(*["---"] * len(cells))


def print_row(*cells):
    """Print a line of a markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def source(device="cpu"):
    """Return where numbers come from: hardware, versions and the command that repeats them."""
    return f"{machine(device)}.\n\n    python {shlex.join(sys.argv)}"


def machine(device):
    """Return the hardware and the versions in one line."""
    import torch

    from common import hardware

    names = ("torch", "torchvision", "medmnist", "numpy", "tensorflow")
    packages = [name for name in names if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    python = f"Python {platform.python_version()}, {platform.system()}"
    return f"{hardware.describe(torch.device(device))}, {hardware.cpu_name()}; {python}, {versions}"


def whole_numbers(name, text):
    """Return the whole numbers in the text of a constant, with commas between. Raises UserError."""
    from common.errors import UserError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{name}={text}: legal are whole numbers with commas between") from None


def mean_and_range(values, spec):
    """Return the mean, and the range if there are several values, as a string."""
    return with_range(statistics.mean(values), values, spec)


def median_and_range(values, spec):
    """Return the median, and the range if there are several values, as a string."""
    return with_range(statistics.median(values), values, spec)


def with_range(middle, values, spec):
    several = f" ({min(values):{spec}} to {max(values):{spec}})" if len(values) > 1 else ""
    return f"{middle:{spec}}{several}"


def megabytes(usage):
    """Return a process's peak resident memory in 10^6 bytes; Linux gives KiB, macOS bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
