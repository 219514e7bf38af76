"""Labels of a data set as vectors of 0 and 1, as the networks get them: their names and counts."""

import torch
from torch.nn.functional import one_hot

from common.data.dataset import title
from common.errors import UserError

NO_FINDING = "no finding"


def encode_labels(info, labels):
    """Return labels (N, L), as load returns them, as float vectors (N, K) of 0 and 1.

    Where an image can have several findings or none, as in ChestMNIST, K = L and each finding has
    a column. Where each has one class, K is the number of classes, one column of which is 1.
    info: as dataset.find_info returns. Raises UserError for labels that the data set cannot have.
    """
    names = label_names(info)
    if not names:
        raise UserError(
            f"{title(info)} has no labels that could be learned: put the images into one folder "
            "for each label, or train with --CONDITIONAL=False"
        )
    multilabel = is_multilabel(info)
    columns, highest = (len(names), 1) if multilabel else (1, len(names) - 1)
    width, odd = labels.shape[1], (labels < 0) | (labels > highest)
    if width != columns or odd.any():
        span = f" of {labels.min()} to {labels.max()}" if labels.numel() else ""
        raise UserError(
            f"the labels of {title(info)} have {width} columns{span}, not {columns} of 0 to "
            f"{highest}, so they cannot be learned. Put the right ones into the file, or train "
            "with --CONDITIONAL=False"
        )
    return labels.float() if multilabel else one_hot(labels[:, 0], len(names)).float()


def label_names(info):
    """Return what the columns of a data set's label vectors stand for."""
    return list(info["label"].values())


def is_multilabel(info):
    """Whether an image of a data set can have several labels or none, not exactly one."""
    return info["task"].startswith("multi-label")


def single_labels(info, label_counts):
    """Return {label: the vector of it alone, uint8 (K,)} for the labels in label_counts.

    Where an image can have no label, the vector of zeros is called "no finding".
    """
    names, rows = label_names(info), label_counts["rows"]
    alone = zip(names, torch.eye(len(names), dtype=torch.uint8), rows.T, strict=True)
    found = {label: vector for label, vector, column in alone if column.any()}
    if is_multilabel(info) and not rows.any(dim=1).all():
        found[NO_FINDING] = torch.zeros(len(names), dtype=torch.uint8)
    return found


def has_labels(vectors, wanted):
    """Which label vectors (N, K) have all labels of one vector (K,); of a zero vector, no label."""
    return vectors[:, wanted > 0].all(dim=1) if wanted.any() else ~vectors.any(dim=1)


def decode_labels(info, vectors):
    """Return label vectors (N, K) as files hold them, uint8 (N, L): encode_labels reversed."""
    if is_multilabel(info) or vectors.shape[1] == 0:
        return vectors.to(torch.uint8)
    return vectors.argmax(dim=1, keepdim=True).to(torch.uint8)


def count_labels(labels):
    """Return {"rows": distinct label vectors, uint8 (U, K), "counts": how often each occurs, (U,)}.

    Returns an empty dict if K is 0, as in a run without CONDITIONAL.
    """
    if labels.shape[1] == 0:
        return {}
    rows, counts = labels.to(torch.uint8).unique(dim=0, return_counts=True)
    return {"rows": rows, "counts": counts}


def draw_labels(label_counts, n, random):
    """Draw n label vectors, float (n, K), each row of label_counts as often as it was counted.

    random: a torch.Generator. K is 0 if label_counts is empty.
    """
    if not label_counts:
        return torch.zeros(n, 0)
    chosen = label_counts["counts"].double().multinomial(n, replacement=True, generator=random)
    return label_counts["rows"][chosen].float()
