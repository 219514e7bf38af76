"""What a checkpoint holds: its fields, the rule of each, and how they must fit together.

checkpoint.pt is a flat dict: FORMAT, the fields of the three dataclasses below, networks and
optimisers as state dicts, and the RNG states rng_cpu and rng_cuda (None on a CPU). A snapshot,
generator_epoch_0001.pt ..., holds the keys of SNAPSHOT. The rules are wide enough for all that an
edited train_model.py can train.
"""

import dataclasses
import re
import typing
from typing import Annotated

import torch

from common import spectrum
from common.data import dataset
from common.data.labels import label_names
from common.validate import ByType, Integer, ListOf, Number, OneOf, Table, Tensor, Text, describe

FORMAT = 5  # of checkpoints; another one is refused
NONE = (type(None), None)
PATH = Text(r"[^\0]*")
PLAIN = ((str, Text()), (bool, None), (int, Integer(-(2**127), 2**127)), (float, None), NONE)
VALUE = ByType(PLAIN)
OPTIONS = (*PLAIN, (tuple, ListOf(VALUE)), (list, ListOf(VALUE)))
ARGUMENTS = Table(
    optional={"jpeg": ByType((NONE, (int, Integer(1, 100))))},
    others=ByType(((int, Integer(-(2**31), 2**31)), *OPTIONS)),
)
SETTINGS = Table(
    {
        "DATASET": Text(),
        "SIZE": OneOf(dataset.SIZES),
        "DATA_DIR": PATH,
        "TRAIN_FRACTION": Number(0, 1),
        "CONDITIONAL": OneOf((True, False)),
        "EPOCHS": Number(0),
        "BATCH_SIZE": Integer(1),
        "LATENT_DIM": Integer(1),
        "SEED": Integer(-(2**63), 2**64 - 1),
        "DTYPE": OneOf(("float32", "bfloat16")),
    },
    optional={"MODELS_DIR": PATH, "IMAGES_DIR": PATH},
    others=VALUE,
)
# The name of your own images becomes part of the names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LABEL = Text(r"[^\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,200}", "a label")
INFO = Table(  # what is used of a table of medmnist.INFO
    {
        "python_class": Text(),
        "task": Text(),
        "label": Table(others=LABEL),
        "n_samples": Table({"train": Integer(1, 10**8)}),
    }
)
COUNTED = {"rows": Tensor(torch.uint8, 2, 0, 1), "counts": Tensor(torch.int64, 1, 1, 2**53)}
SECONDS = Number(0, 1e8)  # three years; timedelta has an end
ROW = Table(  # of the history
    {"epoch": Integer(1), "step": Integer(1)}
    | dict.fromkeys(("loss", "d_real", "d_fake"), Number()),
    optional={"seconds": SECONDS, "maintenance_seconds": SECONDS, "images_per_second": Number(0)}
    | dict.fromkeys(("precision", "recall", "coverage", "frechet", "shared"), Number())
    | dict.fromkeys(spectrum.RATIOS, Number(1e-9)),
    others=VALUE,
)
STATE_DICT = Table(others=Tensor())
SCALAR = ((int, Integer()), (float, Number()), (bool, None), NONE)
STATE = ByType((*SCALAR, (torch.Tensor, Tensor(torch.float32))))  # of a parameter
POSITIVE = ByType((*SCALAR, (torch.Tensor, Tensor(torch.float32, low=0))))
SQUARES = ("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # else weights become nan
STATES = Table(others=Table(optional=dict.fromkeys(SQUARES, POSITIVE), others=STATE), keys=int)
RATE = Number(0, 1e6)
RATE = ByType(((int, RATE), (float, RATE), (torch.Tensor, Tensor(torch.float32, 0, 0, 1e6))))
OPTION = ByType((*OPTIONS, (torch.Tensor, Tensor(torch.float32))))
GROUP = Table({"params": ListOf(Integer()), "lr": RATE}, others=OPTION)
OPTIMIZER = Table({"state": STATES, "param_groups": ListOf(GROUP)})

RNG = Tensor(torch.uint8, 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is; fixed when it begins."""

    settings: Annotated[dict, SETTINGS]  # constants of train_model.py, DTYPE never "auto"
    channels: Annotated[int, OneOf((1, 3))]  # of the images
    label_counts: Annotated[dict, Table(optional=COUNTED)]  # of count_labels; {}: not CONDITIONAL
    data_sha256: Annotated[str, Text("[0-9a-f]{64}", "a SHA-256")]  # of training images and labels
    data_official: Annotated[bool, OneOf((True, False))]  # whether the file was MedMNIST's own
    # What is known of the data, as dataset.find_info returns it: labels' names, above all. The
    # folder of your own images, and the file made of it, may be far away when they are needed.
    info: Annotated[dict, INFO]
    fixed_latents: Annotated[torch.Tensor, Tensor(torch.float32, 2)]  # (64, latent_dim)
    # constructor arguments, {"generator": {...}, "discriminator": {...}}
    model_args: Annotated[dict, Table({"generator": ARGUMENTS, "discriminator": ARGUMENTS})]
    recipe: Annotated[dict, Table(others=Text())]  # as runs.describe_recipe returns
    machine: Annotated[dict, Table(others=Text())]  # of hardware.machine, in the last process


@dataclasses.dataclass
class Progress:
    """What changes while a run is trained."""

    permutation: Annotated[torch.Tensor, Tensor(torch.int64, 1)]  # of images, in this epoch
    running_sums: Annotated[torch.Tensor, Tensor(torch.float32, 1)]  # of log.STATISTICS, the same
    images_seen: Annotated[int, Integer()] = 0  # in the unfinished epoch
    seconds: Annotated[float, SECONDS] = 0.0  # spent on the steps of the unfinished epoch
    maintenance_seconds: Annotated[float, SECONDS] = 0.0  # on all else since its last log row
    saved_at: Annotated[float, Number(0, 1e12)] = 0.0  # seconds since 1970
    epoch: Annotated[int, Integer()] = 0  # finished epochs
    step: Annotated[int, Integer()] = 0  # finished steps, over all epochs
    # of the GPU that was used last; kept while a CPU trains
    rng_cuda: Annotated[torch.Tensor | None, ByType((NONE, (torch.Tensor, RNG)))] = None
    # the rows of log.csv, one per epoch
    history: Annotated[list, ListOf(ROW)] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Model:
    """The networks and their optimisers; a checkpoint holds their state dicts."""

    generator: Annotated[torch.nn.Module, STATE_DICT]
    discriminator: Annotated[torch.nn.Module, STATE_DICT]
    generator_ema: Annotated[torch.nn.Module, STATE_DICT]
    optimizer_g: Annotated[torch.optim.Optimizer, OPTIMIZER]
    optimizer_d: Annotated[torch.optim.Optimizer, OPTIMIZER]


RULES = {"format": OneOf((FORMAT,))}  # first, so that it is what a message names
for part in (Run, Progress, Model):
    hints = typing.get_type_hints(part, include_extras=True)
    RULES |= {name: hint.__metadata__[0] for name, hint in hints.items()}
PLAIN_PARTS = Table({key: RULES[key] for key in ("settings", "model_args", "recipe", "history")})
CHECKPOINT = Table(RULES | {"rng_cpu": RNG})
KEPT = ("format", "generator_ema", "epoch", "settings", "channels", "label_counts", "model_args")
SNAPSHOT = Table({key: RULES[key] for key in (*KEPT, "data_official", "info")})


def relations(saved):
    """Yield (whether it holds, field, what is wrong if not) for what must fit together."""
    settings, label_counts, info = (saved[key] for key in ("settings", "label_counts", "info"))
    name, names = settings["DATASET"], label_names(info)
    if name not in dataset.NAMES:
        own = info["python_class"] == name and NAME.fullmatch(name)
        known = f"known are {', '.join(dataset.NAMES)}"
        yield own, "settings DATASET", f"is {describe(name)}; {known}"
        yield len({*names}) == len(names), "info label", "has the same name twice"
    fits = bool(label_counts) == settings["CONDITIONAL"]
    yield fits, "label_counts", f"does not fit CONDITIONAL={settings['CONDITIONAL']}"
    if label_counts:
        yield COUNTED.keys() <= label_counts.keys(), "label_counts", "has no rows or no counts"
        rows, counts = label_counts["rows"], label_counts["counts"]
        yield rows.shape[1] == len(names), "label_counts rows", f"are not those of {name}"
        fits = 0 < len(rows) == len(counts) == len(rows.unique(dim=0))
        yield fits, "label_counts", "does not have one count for each different row"
    shared = {"channels": saved["channels"], "labels": len(names) if label_counts else 0}
    shared |= {"latent_dim": settings["LATENT_DIM"], "size": settings["SIZE"]}
    for network, arguments in saved["model_args"].items():
        for key in shared.keys() & arguments.keys():
            cause = f"is {describe(arguments[key])}, not {shared[key]} as in the run"
            yield arguments[key] == shared[key], f"model_args {network} {key}", cause
    for key, value in saved["generator_ema"].items():
        if key.endswith("running_var"):  # its root would be nan, and every image black
            yield bool((value >= 0).all()), f"generator_ema '{key}'", "holds negative values"


def progress_relations(saved):
    """Yield the same for what a checkpoint says of how far the run is."""
    settings, history, seen = saved["settings"], saved["history"], saved["images_seen"]
    epoch, n, batch = saved["epoch"], len(saved["permutation"]), settings["BATCH_SIZE"]
    yield epoch == len(history), "epoch", f"is {epoch}, the history has {len(history)} rows"
    each_once = torch.equal(saved["permutation"].sort().values, torch.arange(n))
    yield each_once and n > 0, "permutation", f"is not an order of {n} images"
    fits = seen % batch == 0 and seen <= n // batch * batch
    yield fits, "images_seen", f"is {seen}, not a multiple of {batch} up to {n}"
    steps = n // batch
    done = steps * epoch + seen // batch
    yield saved["step"] == done, "step", f"is {saved['step']}, not {done}"
    for number, row in enumerate(history):
        for key, wanted in (("epoch", number + 1), ("step", (number + 1) * steps)):
            yield row[key] == wanted, f"history {number} {key}", f"is not {wanted}"
    idle = seen > 0 or not saved["running_sums"].any()
    yield idle, "running_sums", "is not 0 at the start of an epoch"
    if saved["label_counts"]:
        total = int(saved["label_counts"]["counts"].sum())
        yield total == n, "label_counts counts", f"has {total} images, not {n}"
    width, latents = settings["LATENT_DIM"], saved["fixed_latents"]
    fits = latents.shape[1] == width and len(latents) > 0
    yield fits, "fixed_latents", f"does not have the width {width} of LATENT_DIM"
    try:
        torch.Generator().set_state(saved["rng_cpu"].clone())
    except (RuntimeError, TypeError):
        yield False, "rng_cpu", "is no state of a random number generator"
