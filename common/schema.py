"""What a checkpoint holds: its fields, the rule of each, and how they must fit together."""

import dataclasses
import re
import typing
from typing import Annotated

import torch

from common.data import dataset
from common.validate import (
    ByType,
    Map,
    Number,
    Odd,
    OneOf,
    Rows,
    Table,
    Tensor,
    Text,
    Whole,
    demand,
    describe,
)

# checkpoint.pt is a flat dict: the fields of the three dataclasses below, networks and
# optimisers as state dicts, and the RNG states rng_cpu and rng_cuda (None on a CPU). A snapshot,
# generator_epoch_0001.pt ..., holds the keys of SNAPSHOT. The rule of a field says which values it
# may have; check_relations says how they must fit together. Both are wide enough for all that
# an edited train_model.py can train.

FOLDER = Text(r"[^\0]*")
PLAIN = ((str, Text()), (bool, None), (int, Whole(-(2**127), 2**127)), (float, None))
PLAIN += ((type(None), None),)
VALUE = ByType(PLAIN)
OPTION = ByType((*PLAIN, (tuple, Rows(VALUE)), (list, Rows(VALUE))))
ARGUMENTS = Map(ByType((*OPTION.rules, (int, Whole(-(2**31), 2**31)))))
SETTINGS = Table(
    {
        "DATASET": Text(),
        "DATA_DIR": FOLDER,
        "TRAIN_FRACTION": Number(0, 1),
        "EPOCHS": Number(0),
        "LATENT_DIM": Whole(1),
        "SEED": Whole(-(2**63), 2**64 - 1),
        "DTYPE": OneOf(("float32", "bfloat16")),
    },
    optional={
        "SIZE": OneOf(dataset.SIZES),
        "BATCH_SIZE": Whole(1),
        "CONDITIONAL": OneOf((True, False)),
        "MODELS_DIR": FOLDER,
        "IMAGES_DIR": FOLDER,
    },
    others=VALUE,
)
# The name of your own images becomes part of the names of files.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
LABEL = Text(r"[^\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,200}", "a label")
INFO = Table(  # what is used of a table of medmnist.INFO
    {
        "python_class": Text(),
        "task": Text(),
        "label": Map(LABEL),
        "n_samples": Table({"train": Whole(1, 10**8)}),
    }
)
LABEL_COUNTS = Table(
    {},
    optional={
        "rows": Tensor(torch.uint8, (None, None), 0, 1),
        "counts": Tensor(torch.int64, (None,), 1, 2**53),
    },
)
SECONDS = Number(0, 1e8)  # three years; timedelta has an end
ROW = Table(  # of the history
    {
        "epoch": Whole(1),
        "step": Whole(1),
        "loss_discriminator": Number(),
        "loss_generator": Number(),
        "d_real": Number(),  # D(x), mean over the epoch
        "d_fake": Number(),  # D(G(z)), the same
    },
    optional={"seconds": SECONDS, "images_per_second": Number(0)}
    | dict.fromkeys(("precision", "recall", "coverage", "frechet"), Number()),
    others=VALUE,
)
STATE_DICT = Map(Tensor())
NUMBERS = ((int, Whole()), (float, Number()), (bool, None), (type(None), None))
ENTRY = Map(ByType((*NUMBERS, (torch.Tensor, Tensor(torch.float32)))))  # of one parameter
OPTIMIZER = Table(
    {
        "state": Map(ENTRY, keys=int),
        "param_groups": Rows(Map(ByType((*OPTION.rules, (torch.Tensor, Tensor(torch.float32)))))),
    }
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is; fixed when it begins."""

    settings: Annotated[dict, SETTINGS]  # constants of train_model.py, DTYPE never "auto"
    channels: Annotated[int, OneOf((1, 3))]  # of the images
    label_counts: Annotated[dict, LABEL_COUNTS]  # of count_labels; {} without CONDITIONAL
    data_sha256: Annotated[str, Text("[0-9a-f]{64}", "a SHA-256")]  # of training images and labels
    fixed_latents: Annotated[torch.Tensor, Tensor(torch.float32, (None, None))]  # (64, latent_dim)
    # constructor arguments, {"generator": {...}, "discriminator": {...}}
    model_args: Annotated[dict, Table({"generator": ARGUMENTS, "discriminator": ARGUMENTS})]
    recipe: Annotated[dict, Map(Text())]  # as describe_recipe returns
    machine: Annotated[dict, Map(Text())]  # as hardware.machine returns, of the last process
    # whether the data file was MedMNIST's own; None in checkpoints before November 2026
    data_official: Annotated[bool | None, OneOf((True, False, None))] = None
    # what is known of the data, as dataset.find_info returns it: labels' names, above all. The
    # folder of your own images, and the file made of it, may be far away when they are needed.
    info: Annotated[dict | None, ByType(((type(None), None), (dict, INFO)))] = None


@dataclasses.dataclass
class Progress:
    """What changes while a run is trained."""

    # (N,), the order of the images in the unfinished epoch
    permutation: Annotated[torch.Tensor, Tensor(torch.int64, (None,))]
    # of log.STATISTICS over the unfinished epoch
    running_sums: Annotated[torch.Tensor, Tensor(torch.float32, (None,))]
    images_seen: Annotated[int, Whole()] = 0  # in the unfinished epoch
    seconds: Annotated[float, SECONDS] = 0.0  # spent on the unfinished epoch
    epoch: Annotated[int, Whole()] = 0  # finished epochs
    step: Annotated[int, Whole()] = 0  # finished steps, over all epochs
    # the rows of log.csv, one an epoch
    history: Annotated[list, Rows(ROW)] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Model:
    """The networks and their optimisers; a checkpoint holds their state dicts."""

    generator: Annotated[torch.nn.Module, STATE_DICT]
    discriminator: Annotated[torch.nn.Module, STATE_DICT]
    generator_ema: Annotated[torch.nn.Module, STATE_DICT]
    optimizer_g: Annotated[torch.optim.Optimizer, OPTIMIZER]
    optimizer_d: Annotated[torch.optim.Optimizer, OPTIMIZER]


def rules(part):
    """Return the rules of the fields of a dataclass, {name: rule}."""
    hints = typing.get_type_hints(part, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


RNG = Tensor(torch.uint8, (None,))
CHECKPOINT = Table(
    rules(Run) | rules(Progress) | rules(Model) | {"rng_cpu": RNG},
    optional={"rng_cuda": ByType(((type(None), None), (torch.Tensor, RNG)))},
)
KEPT = ("generator_ema", "epoch", "settings", "channels", "label_counts", "model_args")
SNAPSHOT = Table({key: CHECKPOINT.fields[key] for key in (*KEPT, "data_official", "info")})


def check_relations(saved):
    """Raise Odd unless the fields of a snapshot or a checkpoint fit together."""
    settings, label_counts = saved["settings"], saved["label_counts"]
    name, info, labels = settings["DATASET"], saved["info"], 0
    if name not in dataset.NAMES:
        known = f"is {describe(name)}; known are {', '.join(dataset.NAMES)}"
        own = info and info["python_class"] == name and NAME.fullmatch(name)
        demand(own, "settings DATASET", known)
        names = dataset.label_names(info)
        demand(len({*names}) == len(names), "info label", "has the same name twice")
    conditional = settings.get("CONDITIONAL", bool(label_counts))
    told = "are there" if label_counts else "are missing"
    demand(conditional == bool(label_counts), "label_counts", f"{told}: CONDITIONAL={conditional}")
    if label_counts:
        rows, counts = label_counts.get("rows"), label_counts.get("counts")
        demand(rows is not None and counts is not None, "label_counts", "has no rows or no counts")
        labels = len(dataset.label_names(info))
        demand(rows.shape[1] == labels, "label_counts rows", f"has not the {labels} of {name}")
        fit = 0 < len(rows) == len(counts) == len(rows.unique(dim=0))
        demand(fit, "label_counts", "has not one count for each of its rows")
    shared = {"channels": saved["channels"], "labels": labels, "latent_dim": settings["LATENT_DIM"]}
    shared["size"] = settings["SIZE"]
    for network, arguments in saved["model_args"].items():
        for key in shared.keys() & arguments.keys():
            cause = f"is {describe(arguments[key])}, not {shared[key]} as in the run"
            demand(arguments[key] == shared[key], f"model_args {network} {key}", cause)
    for key, value in saved["generator_ema"].items():
        if key.endswith("running_var"):  # its root would be nan, and every image black
            demand(bool((value >= 0).all()), f"generator_ema '{key}'", "holds negative values")


def check_progress(saved):
    """Raise Odd unless the fields of a checkpoint say the same about how far the run is."""
    settings, history, seen = saved["settings"], saved["history"], saved["images_seen"]
    epoch, n = saved["epoch"], len(saved["permutation"])
    demand(epoch == len(history), "epoch", f"is {epoch}, the history has {len(history)} rows")
    each_once = torch.equal(saved["permutation"].sort().values, torch.arange(n))
    demand(each_once, "permutation", f"is not an order of {n} images")
    batch = settings.get("BATCH_SIZE", n)
    demand(0 < batch <= n, "permutation", f"has {n} images, fewer than BATCH_SIZE {batch}")
    if "BATCH_SIZE" in settings:
        legal = seen % batch == 0 and seen <= n // batch * batch
        demand(legal, "images_seen", f"is {seen}, not a multiple of {batch} up to {n}")
        steps = n // batch * epoch + seen // batch
        demand(saved["step"] == steps, "step", f"is {saved['step']}, not {steps}")
    for number, row in enumerate(history, start=1):
        demand(row["epoch"] == number, f"history {number - 1} epoch", f"is not {number}")
        if "BATCH_SIZE" in settings:
            fits = row["step"] == number * (n // batch)
            demand(fits, f"history {number - 1} step", f"is not {number * (n // batch)}")
    idle = seen > 0 or not saved["running_sums"].any()
    demand(idle, "running_sums", "is not 0 at the start of an epoch")
    if saved["label_counts"]:
        total = int(saved["label_counts"]["counts"].sum())
        demand(total == n, "label_counts counts", f"has {total} images, not {n}")
    width = saved["settings"]["LATENT_DIM"]
    fits = saved["fixed_latents"].shape[1] == width and len(saved["fixed_latents"]) > 0
    demand(fits, "fixed_latents", f"has not the width {width} of LATENT_DIM")
    try:
        torch.Generator().set_state(saved["rng_cpu"].clone())
    except (RuntimeError, TypeError):
        raise Odd("rng_cpu is no state of a random number generator") from None
