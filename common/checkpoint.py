"""Checkpoints: how they are written, read, checked and resumed. schema.py says what they hold."""

import contextlib
import copy
import dataclasses
import hashlib
import inspect
import io
import pickle
import time
import warnings
import zipfile
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from common import errors, files, schema
from common.data import dataset
from common.errors import UserError
from common.schema import CHECKPOINT, SNAPSHOT
from common.validate import Invalid, check, compare, describe, require
from dcgan import Discriminator, Generator

UNUSED = {"unused": True}  # an optimiser's state of a parameter that no step has changed so far


def constructor_args(network, *given, size=28):
    """Return all arguments that a class is constructed with, {name: value}, defaults included.

    size: given to classes that have it; one of your own can be for images of one size.
    """
    signature = inspect.signature(network)
    bound = signature.bind(*given, **({"size": size} if "size" in signature.parameters else {}))
    bound.apply_defaults()
    return dict(bound.arguments)


def save(path, content):
    """Write a dict of tensors and plain values to path atomically. Raises UserError."""
    memory = io.BytesIO()  # torch.save hides the cause of a failed write, a plain write tells it
    torch.save(content, memory)
    files.write(path, memory.getbuffer())


def load(path, layout):
    """Read a checkpoint onto the CPU and check all of it; no code in it is run (weights_only).

    layout: CHECKPOINT or SNAPSHOT. Returns its fields, {name: value}, and as "file_sha256" the
    SHA-256 of the very bytes that were read. Raises UserError if the file is missing, cannot be
    read now, is damaged or unsafe, or holds what this program cannot have written.
    """
    path = Path(path)
    with errors.reading(path, "python train_model.py writes checkpoints."):
        data = path.read_bytes()
        content = unpack(path, data)
        with refusing(path):
            check(layout, content)
            content["info"] = dataset.INFO.get(content["settings"]["DATASET"], content["info"])
            for relation in schema.relations(content):
                require(*relation)
            for relation in schema.progress_relations(content) if layout is CHECKPOINT else ():
                require(*relation)
    return content | {"file_sha256": hashlib.sha256(data).hexdigest()}


def saved_at(path):
    """Return when a checkpoint was written, in seconds since 1970; 0 if it is not to be read."""
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):  # as in unpack
        if path.is_file():  # a pipe would wait
            return float(torch.load(path, mmap=True, weights_only=True)["saved_at"])
    return 0.0


def unpack(path, data):
    """Return what torch.save wrote, from the bytes of a file. Raises UserError."""
    claimed = []  # bytes of each tensor, in the order in which torch.save numbers them
    to_cpu = {"map_location": lambda storage, _: claimed.append(storage.nbytes()) or storage}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > len(data):
                refuse(path, "is not a readable checkpoint, it unpacks to more than it is")
            if archive.testzip():  # torch.load would not notice a flipped bit
                refuse(path, "is damaged, a checksum in it is wrong")
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(io.BytesIO(data), **to_cpu, weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError:
        refuse(path, "holds more than tensors and plain values, which could be harmful")
    except Exception as error:  # zipfile and torch raise a dozen kinds for damaged files
        if "allocate memory" in str(error):  # RuntimeError of torch
            raise MemoryError from None
        refuse(path, f"is not a readable checkpoint, {type(error).__name__}")
    sizes = {member.filename.rpartition("/data/")[2]: member.file_size for member in members}
    held = [sizes.get(str(number)) for number in range(len(members))]
    if [size for size in claimed if size] != [size for size in held if size]:
        refuse(path, "is not a readable checkpoint, a tensor in it has not the size of its data")
    return content


@contextlib.contextmanager
def refusing(path):
    """Raise a UserError that refuses a checkpoint for what is Invalid in the block."""
    try:
        yield
    except Invalid as error:
        refuse(path, f"is not a checkpoint of this program: {error}")


def refuse(path, cause):
    if path.name == "checkpoint.pt":
        fix = "Move it away, and put a copy in its place, train anew or take another RUN_NAME."
    else:
        fix = "Move it away; the other epochs do not need it."
    raise UserError(f"{path} {cause}. {fix}")


def load_generator(path):
    """Return the averaged generator of a snapshot or a checkpoint, in eval mode, on the CPU.

    Raises UserError if the file is missing, damaged or made by another architecture.
    """
    return rebuild_generator(load(path, SNAPSHOT), path)


def rebuild_generator(saved, path, architecture=Generator):
    """Return the averaged generator of what `load` read, in eval mode. Raises UserError.

    architecture: the class that it was trained as, if it is not dcgan.Generator.
    """
    return rebuild(architecture, saved["model_args"]["generator"], saved["generator_ema"], path)


def rebuild_discriminator(saved, path):
    """Return the discriminator of what `load` read from checkpoint.pt, in eval mode."""
    arguments = saved["model_args"]["discriminator"]
    return rebuild(Discriminator, arguments, saved["discriminator"], path)


def rebuild(architecture, arguments, state, path):
    """Return a network in eval mode, channels_last as in training, so that no bit differs."""
    with same_architecture(path):
        check_architecture(architecture, arguments, state)
        network = architecture(**arguments)
        network.load_state_dict(state)
    return network.eval().to(memory_format=torch.channels_last)


class SkipInit(TorchFunctionMode):
    """Skips the random initialisation: on the meta device, normal_ would import for a second."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in (torch.nn.init.normal_, torch.Tensor.normal_):
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


def check_architecture(architecture, arguments, state):
    """Raise an error unless a class with these arguments has the weights of a state dict.

    It is built on the meta device, where a network of any size takes no memory.
    """
    try:
        with torch.device("meta"), SkipInit():
            network = architecture(**arguments)
    except Exception as error:
        if "meta" not in str(error):  # a class of one's own may look at its values
            raise
    else:
        compare(network.state_dict(), state)


@contextlib.contextmanager
def same_architecture(path):
    """Raise a UserError for whatever goes wrong with a network and weights for another one."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} was made by another architecture than dcgan.py has now ({cause}). "
            "Undo the change to dcgan.py, or train anew under another RUN_NAME."
        ) from None


def load_optimizer_state(optimizer, saved, stepped, name):
    """Load the learning rates and the state that `save_run` wrote. Raises Invalid.

    stepped: whether a step was made; name: for messages. The values go into tensors that a step of
    a copy of the optimiser has made: a fused step walks through raw memory, so tensors with another
    layout would give wrong weights or a crash.
    """
    probe = copy.deepcopy(optimizer)
    probe._warned_capturable_if_run_uncaptured = True  # torch would advise to change the recipe
    groups = optimizer.state_dict()["param_groups"]
    alike = [len(g["params"]) for g in groups] == [len(g["params"]) for g in saved["param_groups"]]
    require(alike, name, "has other groups of parameters")
    for group, old in zip(groups, saved["param_groups"], strict=True):
        ours, rate = group["lr"], float(old["lr"])  # a tensor if it is to be on a GPU
        group["lr"] = torch.full_like(ours, rate) if torch.is_tensor(ours) else rate
    for parameter in (parameter for group in probe.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    step = type(probe).step
    # Without the hooks that others have set on the steps of optimisers.
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(probe)
    states = probe.state_dict()["state"] if stepped else optimizer.state_dict()["state"]
    for number, state in [*states.items()] if stepped else ():
        old = saved["state"].get(number, {})
        if "unused" in old:
            del states[number]
            continue
        for key, value in state.items():
            part, found = f"{name} state {number} {key}", old.get(key)
            require(type(found) is type(value), part, f"is {describe(found)}")
            if isinstance(value, torch.Tensor):
                compare({part: value}, {part: found})
                value.copy_(found)
            else:
                state[key] = found
        steps = state.get("step", 1)  # Adam would divide by 0 if it had moments but made no step
        legal = steps % 1 == 0 and steps >= ("exp_avg" in state)
        require(legal, f"{name} state {number} step", "is not a number of steps")
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def load_for_resume(folder, constants, may_change, generator, discriminator):
    """Return the checkpoint of a run's folder to resume, or None if the folder is empty.

    constants: those of the script now, {name: value}; may_change: names that may differ; generator,
    discriminator: the classes. Raises UserError if another constant differs, is new or is gone, a
    class does not fit the weights, or the checkpoint cannot be read.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        if any(not file.name.startswith(".") for file in folder.glob("*")):
            raise UserError(
                f"{folder} holds files but no checkpoint.pt to resume. Choose another "
                "RUN_NAME, or archive it with --RESUME=never"
            )
        return None
    saved = load(path, CHECKPOINT)
    old, new = ({n: repr(x) for n, x in each.items()} for each in (saved["settings"], constants))
    changed = [
        f"{name} was {old.get(name, 'unset')} and is now {new.get(name, 'unset')}"
        for name in old | new
        if name not in may_change and old.get(name) != new.get(name)
        if (name, constants.get(name)) != ("DTYPE", "auto")
    ]
    if changed:
        raise UserError(
            f"{folder} was trained with other settings: {'; '.join(changed)}. Change them "
            "back, choose another RUN_NAME, or archive the run with --RESUME=never"
        )
    with same_architecture(path):
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            check_architecture(network, saved["model_args"][name], saved[name])
    return saved


def save_run(run, progress, model, folder):
    """Write checkpoint.pt into a run's folder.

    Raises UserError, also if weights are not finite or `load` would refuse what the networks'
    arguments, the constants or the history hold: the last good checkpoint is then kept.
    """
    check_finite(progress, model, folder)
    progress.saved_at = time.time()
    if progress.running_sums.is_cuda:
        progress.rng_cuda = torch.cuda.get_rng_state(progress.running_sums.device)
    content = {"format": schema.FORMAT} | vars(run) | vars(progress)
    for name, part in vars(model).items():
        content[name] = part.state_dict()
        if isinstance(part, torch.optim.Optimizer) and progress.step > 0:
            numbers = [n for group in content[name]["param_groups"] for n in group["params"]]
            content[name]["state"] = dict.fromkeys(numbers, UNUSED) | content[name]["state"]
    content["rng_cpu"] = torch.get_rng_state()
    try:
        check(schema.PLAIN_PARTS, content)
    except Invalid as error:
        raise UserError(
            f"{folder} cannot be saved: {error}. A checkpoint holds plain values: have the code "
            "that it comes from make it a number, a text or a tuple of them"
        ) from None
    save(folder / "checkpoint.pt", content)


def save_snapshot(run, progress, model, folder):
    """Write the averaged generator of the epoch that just ended. Raises UserError."""
    content = {"format": schema.FORMAT, "epoch": progress.epoch} | vars(run)
    content["generator_ema"] = model.generator_ema.state_dict()
    path = folder / f"generator_epoch_{progress.epoch:04d}.pt"
    save(path, {key: content[key] for key in SNAPSHOT.fields})


def check_finite(progress, model, folder):
    """Raise UserError if a loss or a weight is infinite or not a number."""
    tensors = [*model.generator.parameters(), *model.discriminator.parameters()]
    if not all(tensor.isfinite().all() for tensor in [progress.running_sums, *tensors]):
        raise UserError(
            f"the losses of {folder} are no longer finite, in epoch {progress.epoch + 1}. The "
            "last good checkpoint is kept. Train anew with a lower LEARNING_RATE or with "
            "--DTYPE=float32, under another RUN_NAME or with --RESUME=never"
        )


def resume(saved, run, progress, model, path):
    """Restore networks, optimisers, progress and RNG state from what `load` read.

    run: that of this process. Returns it with the fixed latents of the checkpoint. Raises UserError
    if the data, the architecture or the recipe is another one than the run began with.
    """
    folder = path.parent
    if saved["data_sha256"] != run.data_sha256:
        data = dataset.DataFile(*(run.settings[key] for key in ("DATASET", "DATA_DIR", "SIZE")))
        old = "the old file" if data.name in dataset.NAMES else "the old images"
        raise UserError(
            f"{data.path} does not hold the images and labels that {folder} "
            f"was trained on. Put {old} back, or choose another RUN_NAME."
        )
    old, new = saved["recipe"], run.recipe
    for name in old | new:
        # Versions of torch know different options; a function or a class that is gone is a change.
        known = name in old and name in new or " " not in name
        if known and old.get(name) != new.get(name):
            raise UserError(
                f"{folder} was trained with another {name} than train_model.py has now. Undo the "
                "change, choose another RUN_NAME, or archive the run with --RESUME=never"
            )
    with refusing(path):
        for name, part in vars(model).items():
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer_state(part, saved[name], saved["step"] > 0, name)
            else:
                with same_architecture(path):
                    compare(part.state_dict(), saved[name])
                    part.load_state_dict(saved[name])
        for name, fresh in (vars(progress) | {"fixed_latents": run.fixed_latents}).items():
            if isinstance(fresh, torch.Tensor):
                compare({name: fresh}, {name: saved[name]})
                saved[name] = saved[name].to(fresh.device)
        torch.set_rng_state(saved["rng_cpu"])
        if progress.running_sums.is_cuda and saved["rng_cuda"] is not None:
            try:
                torch.cuda.set_rng_state(saved["rng_cuda"], progress.running_sums.device)
            except RuntimeError:
                raise Invalid("rng_cuda cannot be set") from None
    for name in vars(progress):
        setattr(progress, name, saved[name])
    return dataclasses.replace(run, fixed_latents=saved["fixed_latents"])
