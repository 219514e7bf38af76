"""Odd values for tests/campaign.py, drawn from the rules of the checkpoints' own schema."""

import contextlib

import numpy as np
import torch

from common import validate


def parts(rule, value, way=()):
    """Yield (way, rule) of a value and all values in it that have a rule of their own."""
    yield way, rule
    if isinstance(rule, validate.ByType):
        kinds = [r for kind, r in rule.rules if isinstance(value, kind) and r]
        for found in kinds[:1]:
            yield from parts(found, value, way)
    elif isinstance(rule, validate.Table) and isinstance(value, dict):
        for key, field in value.items():
            found = rule.fields.get(key) or rule.optional.get(key, rule.others)
            if found:
                yield from parts(found, field, (*way, key))
    elif isinstance(rule, validate.ListOf):
        for key, field in enumerate(value):
            yield from parts(rule.rule, field, (*way, key))


ANYTHING = [None, True, -1, 2**31, 2**64, 10**300, 0.5, float("nan"), float("inf"), "", "text"]
ANYTHING += ["\0", "\x1b[2J", "\udcff", [], {}, {5: 5}, ["a"], [None], (), (1, "a"), 1j]


def odd_values(rule, value, dice):
    """Return values that do not obey a rule, or that do in a strange way."""
    made = [*ANYTHING, torch.zeros(2), torch.tensor(float("nan"))]
    if isinstance(rule, (validate.Integer, validate.Number)):
        made += [rule.low - 1, rule.high * 2, str(value)]
        if isinstance(rule, validate.Integer) and isinstance(value, int):
            made += [value + 1, value - 1, float(value)]
    if isinstance(rule, validate.Text) and isinstance(value, str):
        made += [value + "\0", value.upper() + "x", value.encode()]
    if isinstance(rule, validate.ListOf) and value:
        made += [[*value, value[-1]], value[:-1], [*value, None], value[0]]
    if isinstance(rule, validate.Table) and value:
        gone = dice.choice([*value])
        made += [{k: v for k, v in value.items() if k != gone}, {0: 0}, [*value]]
    if isinstance(rule, validate.Tensor):
        made += odd_tensors(value, rule, dice)
    return made


def odd_tensors(tensor, rule, dice):
    spoiled = []
    for number in (float("nan"), float("inf"), -float("inf"), rule.low - 1, rule.high + 1):
        with contextlib.suppress(RuntimeError):  # no nan and nothing below 0 among bytes
            place = np.unravel_index(dice.randrange(tensor.numel()), tensor.shape)
            spoiled.append(tensor.clone())
            spoiled[-1][place] = number
    last = tensor.transpose(0, -1) if tensor.ndim else tensor
    layouts = [last.contiguous().transpose(0, -1) if tensor.ndim else tensor, tensor.contiguous()]
    layouts += [torch.stack([tensor, tensor], -1)[..., 0], torch.nn.Parameter(tensor.float())]
    layouts += [torch.zeros((), dtype=tensor.dtype).expand(tensor.shape), tensor.to("meta")]
    layouts += [tensor.to_sparse(), tensor + 1j, last, tensor[None], tensor.flatten()[1:]]
    return spoiled + layouts + [tensor.to(kind) for kind in (torch.int8, torch.half, torch.double)]


def put_odd_value(path, layout, dice):
    """Put one odd value into one field of a checkpoint. Returns what was done, in words."""
    saved = torch.load(path, weights_only=True)
    kinds = {}
    for way, rule in parts(layout, saved):
        if way:  # each part of a checkpoint as often as any other
            kinds.setdefault((way[0], type(rule)), []).append((way, rule))
    way, rule = dice.choice(kinds[dice.choice(sorted(kinds, key=str))])
    place = saved
    for key in way[:-1]:
        place = place[key]
    value = dice.choice(odd_values(rule, place[way[-1]], dice))
    if isinstance(place, tuple):
        place = [*place]
        above = saved
        for key in way[:-2]:
            above = above[key]
        above[way[-2]] = place
    place[way[-1]] = value
    torch.save(saved, path)
    return f"{' '.join(map(str, way))} = {validate.describe(value)}"
