"""Runs: find their folders and snapshots, archive them, and say what makes a run another one."""

import ast
import contextlib
import inspect
import re
import textwrap
from pathlib import Path

from common import checkpoint, errors, files, metrics, script
from common.data import dataset
from common.data.dataset import DataFile
from common.data.labels import encode_labels
from common.errors import UserError, printable
from common.schema import NAME


def run_folder(parent, run_name):
    """Return parent/run_name as a Path; nothing is created. Raises UserError for an odd name."""
    if not NAME.fullmatch(run_name):
        raise UserError(
            f"RUN_NAME={run_name}: legal are 1 to 100 letters, digits, '.', '_' and '-', "
            f"the first one a letter or a digit; it names a folder in {parent}"
        )
    folder = Path(parent) / run_name
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Move it, or choose another RUN_NAME.")
    return folder


def find_run(models_dir, run_name):
    """Return the folder of a run, by default of the one trained last. Raises UserError if none."""
    if run_name:
        return run_folder(models_dir, run_name)
    checkpoints, unreadable = [], None
    with errors.os_errors(), contextlib.suppress(FileNotFoundError):
        folders = list(Path(models_dir).iterdir())  # glob would see nothing in a folder of others
        for path in (folder / "checkpoint.pt" for folder in folders):
            try:
                checkpoints.append((path.stat().st_mtime, path))
            except (FileNotFoundError, NotADirectoryError):
                pass  # no run
            except OSError as error:
                unreadable = error
        if unreadable and not checkpoints:
            raise unreadable
    if not checkpoints:
        raise UserError(
            f"{models_dir} holds no run yet; first run {script.command('train_model.py')}"
        )
    # A copy was saved when what it was copied from was, and is written later.
    newest = max((checkpoint.saved_at(path), -time, path) for time, path in checkpoints)[2].parent
    if not NAME.fullmatch(newest.name):
        raise UserError(
            f"{printable(str(newest))} was trained last, and its name is not legal. Rename it to "
            "at most 100 letters, digits, '.', '_' and '-', or choose another run by --RUN_NAME"
        )
    return newest


def find_snapshots(folder):
    """Return {epoch: path} of the generators that a run has saved, in the order of epochs."""
    names = ((re.fullmatch(r"generator_epoch_(\d+)\.pt", p.name), p) for p in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in names if match))


def choose_epoch(epoch, snapshots, history):
    """Return the epoch that "best" or a number as a string means, as an int.

    The best epoch is the one with the highest metrics.score. snapshots: as find_snapshots returns;
    history: the rows of log.csv. Raises UserError if no generator of the epoch was saved.
    """
    scores = {row["epoch"]: metrics.score(row) for row in history if "coverage" in row}
    measured = scores.keys() & snapshots.keys()
    if epoch == "best" and measured:
        return max(sorted(measured), key=scores.get)
    if epoch.isdecimal() and int(epoch) in snapshots:
        return int(epoch)
    saved = ", ".join(str(number) for number in snapshots) or "none so far"
    raise UserError(
        f'EPOCH={epoch}: legal are "last", "best" if coverage was measured, and the epochs '
        f"of which a generator was saved: {saved}"
    )


def describe_data(saved):
    """Return in words what the run of a checkpoint was trained on."""
    name, title = saved["settings"]["DATASET"], dataset.title(saved["info"])
    which = dataset.OFFICIAL if saved["data_official"] else "not the official file"
    which = which if name in dataset.NAMES else dataset.OWN
    return f"The run was trained on {title}{'' if name == 'phantom' else f', {which}'}"


def load_training_images(saved, data_dir):
    """Return the images a run was trained on, their label vectors or None, and their DataFile.

    data_dir: the folder of that file; empty: the one the run was trained from. Raises UserError if
    they are no longer there; nothing is downloaded or drawn.
    """
    trained, trained_on = saved["settings"], describe_data(saved)
    folder = data_dir or trained["DATA_DIR"]
    name, fraction, seed = trained["DATASET"], trained["TRAIN_FRACTION"], trained["SEED"]
    part = {"fraction": fraction, "seed": seed, "size": trained["SIZE"]}
    images, labels, source = dataset.load(name, "train", folder, trained_on=trained_on, **part)
    labels = encode_labels(saved["info"], labels) if trained["CONDITIONAL"] else None
    if dataset.sha256(images, labels) != saved["data_sha256"]:
        raise UserError(
            f"{source}: these are not the images that the run was trained on. {trained_on}; give "
            "the folder of that file as --DATA_DIR"
        )
    return images, labels, DataFile(name, folder, trained["SIZE"])


def describe_recipe(model, functions):
    """Return what makes a training another one, besides its constants: {name: text}.

    Of the optimisers the class and the options except the learning rate; of functions the code
    without comments and docstrings.
    """
    recipe = {}
    for name in ("optimizer_g", "optimizer_d"):
        groups = getattr(model, name).param_groups
        recipe[name] = type(getattr(model, name)).__name__
        for option in sorted(groups[0].keys() - {"params", "lr"}):
            recipe[f"{name} {option}"] = repr([group[option] for group in groups])
    for function in functions:
        function = function if inspect.isroutine(function) else type(function)  # of an object
        code = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for node in ast.walk(code):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        recipe[function.__name__] = ast.unparse(code)
    return recipe


def archive(*folders):
    """Rename the folders of a run to the first free RUN-old-1, RUN-old-2, ... and return that name.

    All get the same number; a folder that does not exist is skipped. Raises UserError.
    """
    names = files.old_names(*folders)
    for folder, name in zip(folders, names, strict=True):
        with errors.os_errors(folder, "renamed"), contextlib.suppress(FileNotFoundError):
            folder.rename(name)
    return names[0].name
