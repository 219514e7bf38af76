"""What folders of images mean: which are for training, and what labels they have.

Works on listings of paths alone, tuples of the parts below the folder of the images, and prints
what was taken for what. docs/FILES.md has the same rules for users.
"""

import re
import unicodedata
from collections import Counter
from typing import NamedTuple

import numpy as np

from common.errors import UserError, printable

SPLITS = ("train", "val", "test")
SHARES = (0.7, 0.8)  # ends of train and val where there are no splits; the rest is test
SPLIT_SEED = 0  # of these splits: the file is the same for all runs
MAX_LABELS = 256  # a label is a byte in the files of generate_images.py

# Names of folders, in any case: Training, dev_set, stage_2_test_images; images_001; patient00001.
SPLIT = re.compile(
    r"(?:stage[ _-]?\d[ _-])?(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev)|(test(?:ing)?))"
    r"(?:[ _-]?(?:sets?|data|images?|split))*(?:[ _-]?\d+)?",
    re.IGNORECASE,
)
MASKS = re.compile(r"mask|(.*[ _-])?masks|segmentations?|(.*[ _-])?ground[ _-]?truths?", re.I)
MASK_OF = re.compile(r"(.+?)[ _-](?:mask|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
PATIENT = re.compile(r"(?:patient|subject|case)[ _-]?\d+", re.IGNORECASE)
NO_LABEL = re.compile(r"(?:image|img|picture|study|series|part)s?(?:[ _-]?\d+)?", re.IGNORECASE)


class Item(NamedTuple):
    """What is known of an image."""

    path: tuple
    split: str  # one of SPLITS; "" if nothing names splits
    labels: tuple  # of texts
    patient: str  # "" if unknown


def arrange(paths, table=None):
    """Return the Items of the images that are used, in the order of paths.

    table: {path: (labels, patient)}, what a .csv says, as table.match returns it. Its labels then
    replace those of the folders, and images that it lacks are left out.
    Raises UserError if there are splits but none for training.
    """
    paths = leave_out_masks(paths)
    base = common_folder([path[:-1] for path in paths])
    level = level_of_splits([path[base:-1] for path in paths])
    items, splits = [], {}
    for path in paths:
        split, parts = "", path[base:-1]
        if level is not None:
            name = "".join(parts[level : level + 1])
            split = splits[name] = split_of(name)
            # A split may hold a folder of the same name, as in some archives.
            parts = [part for part in parts if not split or split_of(part) != split]
        patient = next(filter(PATIENT.fullmatch, parts), "")
        labels = [x for x in parts if not NO_LABEL.fullmatch(x) and not PATIENT.fullmatch(x)][:1]
        if table is not None and path in table:
            labels, of_table = table[path]
            patient = of_table or patient
        items.append(Item(path, split, tuple(labels), patient))
    if level is not None:
        words = [f"{name} is {split}" for name, split in sorted(splits.items()) if split]
        words += [f"there is no {split}" for split in SPLITS if split not in splits.values()]
        print(f"splits: {printable(', '.join(words))}")
    if table is not None:
        items = keep(items, lambda item: item.path in table, "have no row in LABELS_CSV")
    labelled = table is None and any(item.labels for item in items)
    items = keep(
        items,
        lambda item: item.split is not None and len(item.labels) >= labelled,
        "lie beside the folders of splits or labels",
    )
    items = unify_labels(items)
    if labelled:
        names = sorted({label for item in items for label in item.labels})
        print(f"labels: {enumerate_names(names)}, from the names of folders")
    return items


def keep(items, wanted, why):
    """Return the items or paths that are wanted; a line counts the others, says why, names one."""
    others = [item for item in items if not wanted(item)]
    if others:
        first = printable("/".join(getattr(others[0], "path", others[0])))
        print(f"left out: {len(others):,} images that {why}, the first is {first}")
    return [item for item in items if wanted(item)]


def enumerate_names(names):
    shown = [printable(name) for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def leave_out_masks(paths):
    """Return the paths of images that are no masks, or all if there are only masks."""
    stems = {(*path[:-1], path[-1].rpartition(".")[0]) for path in paths}

    def is_image(path):
        of = MASK_OF.fullmatch(path[-1].rpartition(".")[0])
        beside = of and (*path[:-1], of[1]) in stems
        return not beside and not any(map(MASKS.fullmatch, path[:-1]))

    if not any(map(is_image, paths)):
        return paths
    return keep(paths, is_image, "are masks by the names of their folders or files")


def common_folder(folders):
    """Return how many folders lie around all others: those are gone down through.

    Images may lie beside the others if these are splits.
    """
    around = []
    for level in range(max(map(len, folders), default=0) - 1):
        here, below = ({x[n] for x in folders if len(x) > n} for n in (level, level + 1))
        whole = min(map(len, folders)) > level + 1 or "train" in map(split_of, below)
        if len(here) > 1 or not whole or "train" in map(split_of, here):
            break
        around += here
    if around:
        top = printable("/".join(around))
        print(f"all images lie in {top}/, which is taken as the folder of the images")
    return len(around)


def split_of(name):
    """Return which of SPLITS a folder is called, or None."""
    match = SPLIT.fullmatch(name)
    return SPLITS[match.lastindex - 1] if match else None


def level_of_splits(folders):
    """Return at which level of the folders there are splits, 0 or 1; None if there are none.

    Beside two splits or more images may lie, and at the top other folders, as in archives that hold
    the images twice. Raises UserError if there are splits but none for training.
    """
    for level in (0, 1):
        names = {parts[level] if len(parts) > level else "" for parts in folders}
        known = {split_of(name) for name in names} - {None}
        if level == 0 or len(known) > 1:
            names.discard("")  # of images beside the splits
        found = {split_of(name) for name in names}
        if "train" in known and (found == known or (level == 0 and len(known) > 1)):
            return level
        if known and found == known:
            raise UserError(
                f"the folders of the images, {enumerate_names(sorted(names))}, are for "
                f"{' and '.join(sorted(known))}, and none is for training. Rename them, or give "
                "one of them as DATASET"
            )
    return None


def same_label(label):
    """Return what is equal for labels that differ in case or Unicode form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold().strip())


def unify_labels(items):
    """Return items with labels that differ in case or Unicode form only as the most frequent."""
    plain = [[unicodedata.normalize("NFC", label) for label in item.labels] for item in items]
    counts, spellings = Counter(label for labels in plain for label in labels), {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings.setdefault(same_label(label), []).append(label)
    for several in spellings.values():
        if len(several) > 1:
            print(f"{enumerate_names(several)} are one label, {printable(several[0])}")
    return [
        item._replace(labels=tuple(dict.fromkeys(spellings[same_label(x)][0] for x in labels)))
        for item, labels in zip(items, plain, strict=True)
    ]


def divide(items):
    """Return the places of each split, the labels' names and the labels as numbers.

    Returns ({split: places in items}, names, integers (N, L)). L is 0 without labels, 1 if each
    image has one of several classes, else there is a column of 0 and 1 for each name.
    Images of other splits with labels that no training image has are left out. Without splits, a
    seeded 70, 10 and 20 % are those of training, validation and test, the images of a patient
    together.
    """
    if not any(item.split for item in items):
        items = draw_splits(items)
    every = {label for item in items for label in item.labels}
    if len(every) > MAX_LABELS:
        print(f"{len(every):,} labels are too many, {MAX_LABELS} can be learned: read without")
        items = [item._replace(labels=()) for item in items]
    learned = {label for item in items if item.split == "train" for label in item.labels}
    unknown = enumerate_names(sorted(every - learned))
    why = f"have labels of no training image ({unknown})"
    used = {item.path for item in keep(items, lambda item: learned.issuperset(item.labels), why)}
    places = [place for place, item in enumerate(items) if item.path in used]
    parts = {split: [place for place in places if items[place].split == split] for split in SPLITS}
    tell_shared(items, [item.patient for item in items], parts, "of patients in")
    names = sorted(learned)
    labels = [item.labels if item.path in used else names[:1] for item in items]
    if all(len(those) == 1 for those in labels):
        numbers = [[names.index(label)] for (label,) in labels]
    elif len(names) == 1:  # a column of 0 and 1 would be read as two classes
        names, numbers = [f"no {names[0]}", *names], [[len(those)] for those in labels]
    else:
        numbers = [[int(name in those) for name in names] for those in labels]
    return parts, names, np.array(numbers, np.uint8)


def draw_splits(items):
    """Return items with splits drawn at random, always in the same way."""
    groups, items = {}, [*items]
    for place, item in enumerate(items):
        groups.setdefault(item.patient or place, []).append(place)
    groups, done = [*groups.values()], 0
    for number in np.random.default_rng(SPLIT_SEED).permutation(len(groups)):
        split = SPLITS[sum(done >= round(share * len(items)) for share in SHARES)]
        for place in groups[number]:
            items[place] = items[place]._replace(split=split)
        done += len(groups[number])
    return items


def tell_shared(items, keys, parts, what):
    """Print how many images of the later splits have a key that an earlier split has as well.

    keys: of the items, "" for none; parts: {split: places}; what: in words, before "another split".
    """
    first, shared = {}, []
    for split, places in parts.items():
        for place in places:
            if keys[place] and first.setdefault(keys[place], split) != split:
                shared.append("/".join(items[place].path))
    if shared:
        print(
            f"{len(shared):,} images are {what} another split too, the first is "
            f"{printable(shared[0])}"
        )
