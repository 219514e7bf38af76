"""Puts state dicts from a file into networks and optimisers; ValueError says what does not fit."""

import copy

import torch
from torch.overrides import TorchFunctionMode

# What an optimiser keeps of squares and counts: below 0, a step would make weights of nan.
NOT_NEGATIVE = {"step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}
UNUSED = {"unused": True}  # stands for the state of a parameter that no step has changed so far


class Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: on the meta device, normal_ would import for a second."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in (torch.nn.init.normal_, torch.Tensor.normal_):
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


def compare(architecture, arguments, state):
    """Raise ValueError unless a network of these arguments has the weights of a state dict.

    It is built on the meta device, where a network of any size takes no memory.
    """
    with torch.device("meta"), Undrawn():
        network = architecture(**arguments)
    fit_network(network, state)


def fit_network(network, state):
    """Load a state dict into a network, once keys, shapes and dtypes are known to be its own.

    Raises ValueError. A network on the meta device is only compared with the state.
    """
    own = network.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise ValueError(f"{name} is {'missing' if name in own else 'not a part of it'}")
    for name, value in own.items():
        ours, theirs = (f"{tuple(x.shape)} of {x.dtype}" for x in (value, state[name]))
        if ours != theirs:
            raise ValueError(f"{name} is {theirs}, not {ours}".replace("torch.", ""))
    if not any(value.is_meta for value in own.values()):
        network.load_state_dict(state)


def optimizer_state(optimizer, stepped):
    """Return the state dict of an optimiser, with UNUSED for parameters without a state.

    stepped: whether it has made a step; before it, no parameter has a state.
    """
    state = optimizer.state_dict()
    for group in state["param_groups"] if stepped else []:
        for number in group["params"]:
            state["state"].setdefault(number, UNUSED)
    return state


def fit_optimizer(optimizer, saved, stepped):
    """Restore the learning rates and the state that `optimizer_state` returned.

    All other options stay those of the script. The values go into tensors that a step of a copy
    of the optimiser has made: a fused step walks through raw memory, so that tensors from a file
    which are laid out otherwise would give wrong weights or a crash. Raises ValueError.
    """
    groups = optimizer.param_groups
    if [len(group["params"]) for group in groups] != [
        len(group.get("params", ())) for group in saved["param_groups"]
    ]:
        raise ValueError("the groups of parameters are others")
    for group, old in zip(groups, saved["param_groups"], strict=True):
        rate = old.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, (int, float, torch.Tensor)):
            raise ValueError("lr is not a number")
        if isinstance(rate, torch.Tensor) and rate.shape or not 0 <= float(rate) <= 1e6:
            raise ValueError("lr is not a number from 0 to 1e6")
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = float(rate)
    if not stepped:
        return
    model = copy.deepcopy(optimizer)
    for parameter in parameters(model):
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    step = type(model).step
    # Without the hooks that others have set on the steps of optimisers.
    (step.__wrapped__ if getattr(step, "hooked", False) else step)(model)
    pairs = zip(parameters(optimizer), parameters(model), strict=True)
    for number, (parameter, probe) in enumerate(pairs):
        old, made = saved["state"].get(number, {}), model.state.get(probe, {})
        if old != UNUSED and made:
            fill(made, old, number)
            optimizer.state[parameter] = made


def parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def fill(made, old, number):
    """Put the old values of a parameter's state into what a step has made for it."""
    for key, value in made.items():
        if key not in old:
            raise ValueError(f"{key} of parameter {number} is missing")
        source = old[key]
        if not isinstance(value, torch.Tensor):
            if type(source) is not type(value):
                raise ValueError(f"{key} of parameter {number} is a {type(source).__name__}")
            made[key] = source
            continue
        if type(source) in (int, float):  # as older versions of torch kept a step
            source = torch.tensor(source, dtype=value.dtype)
        if not isinstance(source, torch.Tensor):
            raise ValueError(f"{key} of parameter {number} is a {type(source).__name__}")
        if source.shape != value.shape or source.dtype != value.dtype:
            what = f"{tuple(source.shape)} of {source.dtype}"
            wanted = f"{tuple(value.shape)} of {value.dtype}"
            raise ValueError(f"{key} of parameter {number} is {what}, not {wanted}")
        if key in NOT_NEGATIVE and bool((source < 0).any()):
            raise ValueError(f"{key} of parameter {number} is negative")
        if key == "step" and bool((source != source.round()).any()):
            raise ValueError(f"{key} of parameter {number} is not a whole number")
        if key == "step" and "exp_avg" in made and bool((source < 1).any()):
            raise ValueError(f"{key} of parameter {number} is 0, but it has moments")
        value.copy_(source)
