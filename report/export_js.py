"""Describes a network as a list of steps that report/play.js can compute in a browser.

`describe` runs a network once on one example and notes every function of torch that it calls. So
any network that is made of the functions below, those of dcgan.py, can be described. It must be in
eval mode, and is computed at batch size 1. A tensor (1, C, H, W) becomes an array with the channels
last, (H, W, C); any other tensor becomes an array of its values in order.

The steps, each of which makes one array of one or more others:

    convolution  of an image; a linear layer is that of an image of one place
    transposed   convolution
    affine       x * scale + shift for each channel: BatchNorm, a division
    leaky        x, but slope * x where x is negative; ReLU has the slope 0
    tanh
    add          a + alpha * b
    multiply     of two arrays
    move         values in another order: view, permute, pixel unshuffle, cat, slices
    resample     weighted means of places, the same in each channel: upsampling, mean
"""

import base64
from itertools import accumulate

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

MOVES = {"view", "flatten", "permute", "getitem", "cat", "pixel_unshuffle"}
ACTIVATIONS = {"relu", "leaky_relu"}


class UnknownLayer(Exception):
    """A network calls a function that is none of the steps; the text names it."""


def describe(network, *inputs):
    """Return the steps of a network as plain values for JSON.

    inputs: tensors of batch size 1. Returns {"inputs": sizes, "steps": [...], "output": number};
    arrays are numbered, the inputs first. Raises UnknownLayer.
    """
    tape = Tape(inputs)
    with torch.no_grad():
        with tape:
            output = network(*inputs)
        sizes = [tensor.numel() for tensor in inputs]
        return {"inputs": sizes, "steps": encode(tape.steps), "output": tape.number(output)}


def first_activation(network, *inputs):
    """Return the first feature maps (N, ...) of a network: what its first activation returns."""
    try:
        with torch.no_grad(), UntilActivation():
            return network(*inputs)
    except Found as found:
        return found.args[0]


class Found(Exception):
    """Carries the first feature maps."""


class UntilActivation(TorchFunctionMode):
    """Stops a network behind its first activation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if name_of(function) in ACTIVATIONS:
            raise Found(result)
        return result


def name_of(function):
    """The name of a function of torch without module and underscores: "relu" for torch.relu_."""
    name = resolve_name(function) or getattr(function, "__name__", str(function))
    return name.removesuffix(".__get__").split(".")[-1].strip("_")


def tensors(value):
    """All tensors in a value, in its lists and tuples as well."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, (list, tuple)) else []


def to_rows(tensor):
    """The values of a tensor of batch size 1 in the order of its array."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).flatten()


def numbered(shape, start):
    """A tensor of this shape whose values number its array from start on."""
    numbers = torch.arange(start, start + shape.numel())
    if len(shape) != 4:
        return numbers.view(shape)
    n, c, h, w = shape
    return numbers.view(n, h, w, c).permute(0, 3, 1, 2).contiguous()


def to_shape(tensor):
    """The shape of the array of (1, C, H, W), and of (1, C), an image of one place: [H, W, C]."""
    _, channels, *sides = tensor.shape
    return [*(sides or [1, 1]), channels]


class Tape(TorchFunctionMode):
    """Notes the functions that are called while it is active.

    A method on_NAME(result, *arguments) notes the function NAME, with the parameters of torch.
    """

    def __init__(self, inputs):
        super().__init__()
        self.steps = []
        self.tensors = [*inputs]  # of which arrays are made, in the order of their numbers
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name, used = name_of(function), tensors([*args, *kwargs.values()])
        if not tensors(result):
            return result  # a size, a type ...
        if any(id(tensor) in self.numbers for tensor in used):
            self.note(name, function, args, kwargs, result)
        elif not used and not torch.equal(function(*args, **kwargs), result):
            raise UnknownLayer(f"{name}, which draws random numbers")
        return result

    def note(self, name, function, args, kwargs, result):
        method = getattr(self, f"on_{name}", None)
        try:
            if name in MOVES:
                self.move(function, result, *args, **kwargs)
            elif method:
                method(result, *args, **kwargs)
            else:
                raise UnknownLayer(name)
        except (TypeError, ValueError):
            raise UnknownLayer(f"{name} with unusual arguments") from None

    def number(self, tensor):
        """The number of the array of a tensor that depends on the inputs."""
        if id(tensor) not in self.numbers:
            raise UnknownLayer("a constant in place of an array")
        return self.numbers[id(tensor)]

    def add_step(self, op, sources, result, **fields):
        """Note that a step makes the array of a tensor of those of others."""
        numbers = [self.number(tensor) for tensor in sources]
        self.steps.append({"op": op, "from": numbers, "size": result.numel(), **fields})
        self.numbers[id(result)] = len(self.tensors)
        self.tensors.append(result)

    # --- functions ---

    def move(self, function, result, moved, *args, **kwargs):
        """Whatever only moves values is called with their numbers instead."""
        sources = tensors(moved)  # cat takes a list of them
        starts = accumulate((tensor.numel() for tensor in sources), initial=0)
        numbers = [numbered(x.shape, start) for x, start in zip(sources, starts, strict=False)]
        numbers = numbers[0] if sources[0] is moved else numbers
        index = to_rows(function(numbers, *args, **kwargs))
        self.add_step("move", sources, result, index=index)

    def resample(self, result, x, function):
        """Whatever averages places is called once with a 1 at each place and 0 elsewhere."""
        height, width, channels = to_shape(x)
        basis = torch.eye(height * width).view(-1, 1, height, width)
        matrix = function(basis).flatten(1).T  # (places out, places in)
        count = int((matrix != 0).sum(1).max())
        index = matrix.abs().topk(count, dim=1).indices
        weight = matrix.gather(1, index).flatten()
        fields = {"channels": channels, "count": count, "index": index.flatten()}
        self.add_step("resample", [x], result, weight=weight, **fields)

    def on_interpolate(self, result, input, *args, **kwargs):
        self.resample(result, input, lambda x: F.interpolate(x, *args, **kwargs))

    def on_mean(self, result, input, dim):
        if dim != (2, 3):
            raise UnknownLayer("mean over something else than places")
        self.resample(result, input, lambda x: x.mean(dim))

    def on_sum(self, result, input, dim, keepdim):
        self.on_linear(result, input, torch.ones(1, input.shape[dim]))

    def on_linear(self, result, input, weight, bias=None):
        if input.shape != (1, weight.shape[1]):
            raise UnknownLayer("linear over several rows")
        self.on_conv2d(result, input, weight[:, :, None, None], bias)

    def on_conv2d(self, result, x, weight, bias, stride=1, padding=0, dilation=1, groups=1):
        shapes = {"wide": to_shape(x), "narrow": to_shape(result)}
        more = (stride, padding, dilation, groups)
        self.convolution("convolution", result, x, weight, bias, shapes, *more)

    def on_conv_transpose2d(
        self, result, x, weight, bias, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    ):
        shapes = {"wide": to_shape(result), "narrow": to_shape(x)}  # with the output_padding
        more = (stride, padding, dilation, groups)
        self.convolution("transposed", result, x, weight, bias, shapes, *more)

    def convolution(self, op, result, x, weight, bias, shapes, stride, padding, dilation, groups):
        """Add a step in which (row, column) of the narrow image goes with
        (stride * row + y - padding, stride * column + x - padding) of the wide one, for all (y, x)
        of the kernel. A convolution makes the narrow image of the wide one.
        """
        if groups != 1 or pair(dilation) != [1, 1]:
            raise UnknownLayer(f"{op} with groups or a dilation")
        fields = {"kernel": [*weight.shape[2:]], "stride": pair(stride), "padding": pair(padding)}
        fields["weight"] = weight.permute(0, 2, 3, 1).flatten(1)  # a row for a narrow channel
        fields["bias"] = torch.zeros(result.shape[1]) if bias is None else bias
        self.add_step(op, [x], result, **shapes, **fields)

    def on_batch_norm(
        self, result, x, running_mean, running_var, weight, bias, training, momentum, eps
    ):
        if training:
            raise UnknownLayer("batch_norm with the statistics of the batch")
        scale = weight * (running_var + eps).rsqrt()
        self.add_step("affine", [x], result, scale=scale, shift=bias - running_mean * scale)

    def on_div(self, result, input, other):
        self.on_mul(result, input, 1 / other)

    def on_add(self, result, input, other, alpha=1):
        self.both("add", result, input, other, alpha=alpha)

    def on_sub(self, result, input, other):
        self.both("add", result, input, other, alpha=-1)

    def on_mul(self, result, input, other):
        if tensors(other):
            self.both("multiply", result, input, other)
        else:
            scale = torch.tensor([float(other)])
            self.add_step("affine", [input], result, scale=scale, shift=torch.zeros(1))

    def both(self, op, result, a, b, **fields):
        if any(torch.as_tensor(x).shape != result.shape for x in (a, b)):
            raise UnknownLayer(f"{op} of two different shapes")
        self.add_step(op, [a, b], result, **fields)

    def on_leaky_relu(self, result, input, negative_slope=0.01, inplace=False):
        self.add_step("leaky", [input], result, slope=negative_slope)

    def on_relu(self, result, input, inplace=False):
        self.on_leaky_relu(result, input, 0.0)

    def on_tanh(self, result, input):
        self.add_step("tanh", [input], result)

    def on_float(self, result, input):
        """Nothing changes: a tensor of float32 is returned as it is."""


def pair(value):
    y, x = (value, value) if isinstance(value, int) else value
    return [int(y), int(x)]


def encode(value):
    """A value with all tensors in it as text: dicts that decode in play.js reads.

    Weights, the only tensors with two axes, are rounded to 16-bit integers, with a scale for each
    row. Half the size of float32; and finer than float16 where the values of a row are alike.
    """
    if isinstance(value, dict):
        return {key: encode(part) for key, part in value.items()}
    if isinstance(value, list):
        return [encode(part) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim == 2:
        scale = value.abs().amax(dim=1).clamp(min=1e-30) / 32767
        rounded = (value / scale[:, None]).round().short()
        return {"type": "int16", "data": base64_of(rounded), "scale": encode(scale)}
    kind = "int32" if value.dtype == torch.int64 else "float32"
    return {"type": kind, "data": base64_of(value.to(getattr(torch, kind)))}


def base64_of(tensor):
    """The bytes of a tensor, little-endian as in every browser."""
    array = tensor.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
