"""Reads a .csv that goes with images: their labels, and who the patients are.

Known are the tables of NIH ChestX-ray14 (findings joined by |), CheXpert (a column of 1, 0, -1 or
nothing for each finding), RSNA, ISIC and what looks like them; docs/FILES.md has the rules.
"""

import contextlib
import csv
import itertools
import re
import shlex

from common import errors
from common.data import image_file
from common.data.layout import enumerate_names, same_label
from common.errors import UserError, printable

# Headers, letters only. The column of files may have any: it is the one that names the images.
LABELS = ("findinglabels", "finding", "label", "labels", "class", "classname", "diagnosis", "dx")
LABELS += ("category", "disease", "grade", "level")
PATIENTS = ("patientid", "patient", "subjectid", "subject", "lesionid")
NO_LABELS = ("nofinding", "sex", "gender", "male", "female", "fold", "")  # though of 0 and 1
VALUES = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
NONE = ("", "no finding", "no findings")
SAMPLE = 2000  # rows by which the columns are told apart, if these name any image
OFFERED = 500_000  # rows of a table that is read unasked; NIH's has 112,120


def match(path, paths, most=None):
    """Return ({path: (labels, patient)}, line) of the images that a .csv names.

    paths: tuples of parts; labels: a tuple of texts; patient: "" without a column. Several rows on
    one image add up. most: rows to read, None for all.
    Raises UserError if the .csv names none of the images, or has no column of labels.
    """
    columns, find = read(path, most), finder(paths)
    names = enumerate_names([*columns])
    file = find_files(columns, find)
    if file is None:
        raise UserError(f"{path} names no image of the folder in any of its columns, {names}")
    plain = {letters(name): name for name in reversed(columns)}
    patient, single = (
        next((plain[name] for name in known if name in plain), None) for known in (PATIENTS, LABELS)
    )
    others = [name for name in columns if name not in (file, patient)]
    findings = [] if single else [name for name in others if is_finding(name, columns[name])]
    if not single and not findings:
        raise UserError(
            f"{path} has no column of labels: call it label, or give each label a column of 0 and "
            f"1. Its columns are {names}"
        )
    table, uncertain = {}, 0
    for place, text in enumerate(columns[file]):
        found = find(text)
        if found is None:
            continue
        if single:
            labels = [label.strip() for label in re.split("[|;]", columns[single][place])]
            labels = [label for label in labels if same_label(label) not in NONE]
        else:
            values = [VALUES[columns[name][place].strip()] for name in findings]
            labels = [name for name, value in zip(findings, values, strict=True) if value == 1]
            uncertain += values.count(-1)
        before, known = table.get(found, ((), ""))
        who = columns[patient][place].strip() if patient else ""
        table[found] = tuple(dict.fromkeys([*before, *labels])), who or known
    words = f"labels from {enumerate_names([single] if single else findings)}"
    words += f", {uncertain:,} values of -1 (uncertain) taken as 0" if uncertain else ""
    words += f", patients from {printable(patient)}" if patient else ""
    return table, f"{printable(path.name)}: files from {printable(file)}, {words}"


def read(path, most):
    """Return the columns of a .csv, {name: cells}, of at most so many rows."""
    try:
        with errors.reading(path), open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            header = next(reader, [])
            rows = [row for row in itertools.islice(reader, most) if any(row)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no table: {error}. Save it as .csv, in UTF-8") from None
    columns = itertools.zip_longest(header, *rows, fillvalue="")
    numbered = enumerate(itertools.islice(columns, len(header)), start=1)
    return {name.strip() or f"column {n}": cells for n, (name, *cells) in numbered}


def letters(name):
    """Return the header of a column as LABELS, PATIENTS and NO_LABELS have it."""
    return re.sub("[^a-z]", "", name.lower())


def parts_of(text):
    """Return the parts of a path, as equal names have them."""
    parts = text.replace("\\", "/").split("/")
    return tuple(same_label(part) for part in parts if part not in ("", "."))


def bare(parts):
    """Return the parts of a path without the suffix of an image."""
    stem, dot, suffix = "".join(parts[-1:]).rpartition(".")
    return (*parts[:-1], stem) if dot + suffix in image_file.SUFFIXES else parts


def finder(paths):
    """Return a function from the text of a cell to the path it names, None if it is not just one.

    The text may lack folders of the path and the suffix, or have folders around it.
    """
    ends = {}  # {the last parts of a path, with and without suffix: the path, or None if several}
    for path in paths:
        parts = parts_of("/".join(path))
        for n in range(len(parts)):
            for key in {parts[n:], bare(parts[n:])}:
                ends[key] = None if key in ends else path

    def find(text):
        parts = parts_of(text)
        for n in range(len(parts)):
            path = ends.get(parts[n:]) or ends.get(bare(parts[n:]))
            if path and (n == 0 or len(path) == len(parts[n:])):
                return path
        return None

    return find


def find_files(columns, find):
    """Return the name of the column that names most images, None if none does."""
    n = max(map(len, columns.values()), default=0)
    for step in (max(1, n // SAMPLE), 1):
        hits = {
            name: len({find(text) for text in cells[::step]} - {None})
            for name, cells in columns.items()
        }
        best = max(hits, key=hits.get, default=None)
        if hits.get(best):
            return best
    return None


def is_finding(name, cells):
    """Whether a column is a finding: all values are 1, 0, -1 or nothing, and one is 1."""
    values = {VALUES.get(cell.strip()) for cell in cells}
    return 1 in values and None not in values and letters(name) not in NO_LABELS


def offer(folder, paths):
    """Print a line on each .csv in a folder, or beside it, that has labels of its images."""
    for path in sorted([*folder.glob("*.csv"), *folder.parent.glob("*.csv")]):
        with contextlib.suppress(UserError, OSError):
            match(path, paths, OFFERED)
            option = shlex.quote(f"--LABELS_CSV={path}")
            print(printable(f"{path} has labels of these images: {option} takes them"))
