"""Describes a network as a list of steps that report/play.js can compute in a browser.

`describe` runs a network once on one example and notes every function of torch that it calls. So
any network that is made of the functions below, those of dcgan.py, can be described. It must be in
eval mode, and is computed at batch size 1. A tensor (1, C, H, W) becomes an array with the channels
last, (H, W, C); any other tensor becomes an array of its values in order.

The steps, each of which makes one array of one or more others:

    linear       products with a weight (outputs, inputs), plus a bias
    convolution  the same at each place of an image. A transposed convolution of stride s becomes
                 s x s ordinary ones, each of which fills every s-th pixel
    affine       x * scale + shift: a BatchNorm that has no layer before it to be folded into
    leaky        x, but slope * x where x is negative; ReLU has the slope 0
    tanh
    add, multiply    of two arrays
    move         values in another order: view, permute, pixel unshuffle, cat, slices
    resample     weighted means of places, the same in each channel: upsampling, mean
    total        the sum of all values
"""

import base64
import inspect

import torch
from torch.overrides import TorchFunctionMode, resolve_name

SAME = {"float", "contiguous"}
MOVES = {"view", "reshape", "flatten", "permute", "getitem", "cat", "pixel_unshuffle"}
ACTIVATIONS = {"relu", "leaky_relu"}


class UnknownLayer(Exception):
    """A network calls a function that is none of the steps; the text names it."""


def describe(network, *inputs):
    """Return the steps of a network as plain values for JSON.

    inputs: tensors of batch size 1. Returns {"inputs": sizes, "steps": [...], "output": number};
    arrays are numbered, the inputs first. Raises UnknownLayer.
    """
    tape = Tape(inputs)
    with torch.no_grad(), tape:
        output = network(*inputs)
    if not tape.depends(output):
        raise UnknownLayer("an output that does not depend on the input")
    return tape.to_json(tape.fold(tape.number(output)))


def first_activation(network, *inputs):
    """Return the first feature maps (N, ...) of a network: what its first activation returns."""
    with torch.no_grad():
        try:
            with UntilActivation():
                return network(*inputs)
        except Found as found:
            return found.features


class Found(Exception):
    def __init__(self, features):
        super().__init__()
        self.features = features


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
    numbers = torch.arange(shape.numel(), dtype=torch.float64) + start
    if len(shape) != 4:
        return numbers.view(shape)
    n, c, h, w = shape
    return numbers.view(n, h, w, c).permute(0, 3, 1, 2).contiguous()


class Tape(TorchFunctionMode):
    """Notes the functions that are called while it is active.

    A method on_NAME(result, *arguments) notes the function NAME, with the parameters of torch.
    """

    def __init__(self, inputs):
        super().__init__()
        self.inputs = [tensor.numel() for tensor in inputs]
        self.steps = []  # step i makes array number len(inputs) + i
        self.arrays = {}  # id of a tensor: number of its array
        self.kept = []  # those tensors, so that no id is used twice
        for number, tensor in enumerate(inputs):
            self.bind(tensor, number)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        depends = self.depends(args) or self.depends(list(kwargs.values()))
        result = function(*args, **kwargs)
        name = name_of(function)
        if not tensors(result):
            return result  # a size, a type ...
        if depends:
            self.note(name, function, args, kwargs, result)
        elif not tensors(args) and not torch.equal(function(*args, **kwargs), result):
            raise UnknownLayer(f"{name}, which draws random numbers")
        return result

    def note(self, name, function, args, kwargs, result):
        aliases = {"iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul"}
        aliases |= {"truediv": "div", "itruediv": "div", "subtract": "sub", "multiply": "mul"}
        method = getattr(self, f"on_{aliases.get(name, name)}", None)
        if not args:
            raise UnknownLayer(f"{name} with unusual arguments")
        if name in SAME:
            self.bind(result, self.number(args[0]))
        elif name in MOVES:
            self.move(name, function, args, kwargs, result)
        elif name == "interpolate":
            self.resample(result, args[0], lambda x: function(x, *args[1:], **kwargs))
        elif method:
            try:
                inspect.signature(method).bind(result, *args, **kwargs)
            except TypeError:
                raise UnknownLayer(f"{name} with unusual arguments") from None
            method(result, *args, **kwargs)
        else:
            raise UnknownLayer(name)

    # --- arrays and steps ---

    def bind(self, tensor, number):
        self.kept.append(tensor)
        self.arrays[id(tensor)] = number

    def number(self, tensor):
        return self.arrays[id(tensor)]

    def depends(self, value):
        """Whether a value depends on the inputs, unlike weights and what is computed of them."""
        return any(id(tensor) in self.arrays for tensor in tensors(value))

    def add_step(self, op, sources, size, **fields):
        """Add a step and return the number of its array."""
        self.steps.append({"op": op, "from": sources, "size": size, **fields})
        return len(self.inputs) + len(self.steps) - 1

    def add_move(self, sources, index):
        """Add a step that takes values index (-1: a zero) of all sources, one behind the other.

        A move of a move is one move, and one that changes nothing is none.
        """
        index = index.long()
        step = self.steps[sources[0] - len(self.inputs)] if sources[0] >= len(self.inputs) else {}
        if len(sources) == 1 and step.get("op") == "move":
            sources = step["from"]
            index = torch.where(index >= 0, step["index"][index], -1)
        sizes = [self.size(number) for number in sources]
        if len(sources) == 1 and torch.equal(index, torch.arange(sizes[0])):
            return sources[0]
        return self.add_step("move", sources, len(index), index=index)

    def size(self, number):
        first = len(self.inputs)
        return self.inputs[number] if number < first else self.steps[number - first]["size"]

    def expanded(self, tensor, shape):
        """The number of the array of a tensor that is broadcast to a shape."""
        index = to_rows(numbered(tensor.shape, 0).expand(shape))
        return self.add_move([self.number(tensor)], index)

    # --- functions ---

    def move(self, name, function, args, kwargs, result):
        """Whatever only moves values is called with their numbers instead."""
        sources, start = [], 1

        def numbers_of(value):
            nonlocal start
            if isinstance(value, (list, tuple)):
                return type(value)([numbers_of(part) for part in value])
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) not in self.arrays:
                raise UnknownLayer(f"{name} with a constant")
            sources.append(self.number(value))
            start += value.numel()
            return numbered(value.shape, start - value.numel())

        try:
            moved = function(*numbers_of(tuple(args)), **kwargs)
        except (RuntimeError, TypeError, ValueError):
            raise UnknownLayer(f"{name} with unusual arguments") from None
        for part, numbers in zip(tensors(result), tensors(moved), strict=True):
            self.bind(part, self.add_move(sources, to_rows(numbers) - 1))

    def resample(self, result, x, function):
        """Whatever averages places is called once with a 1 at each place and 0 elsewhere."""
        if x.ndim != 4:
            raise UnknownLayer("resampling of something that is no image")
        _, channels, height, width = x.shape
        basis = torch.eye(height * width).view(-1, 1, height, width)
        matrix = function(basis).flatten(1).T  # (places out, places in)
        count = int((matrix != 0).sum(1).max())
        weight, index = matrix.abs().topk(count, dim=1)
        weight = matrix.gather(1, index)
        fields = {"channels": channels, "count": count, "index": index.flatten()}
        step = self.add_step(
            "resample", [self.number(x)], result.numel(), weight=weight.flatten(), **fields
        )
        self.bind(result, step)

    def on_linear(self, result, input, weight, bias=None):
        if input.numel() != weight.shape[1]:
            raise UnknownLayer("linear over several rows")
        bias = torch.zeros(len(weight)) if bias is None else bias
        fields = {"weight": weight.double(), "bias": bias.double()}
        self.bind(result, self.add_step("linear", [self.number(input)], len(weight), **fields))

    def on_conv2d(
        self, result, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
    ):
        refuse_unusual("conv2d", dilation, groups)
        _, _, kernel_y, kernel_x = weight.shape
        top, left = pair(padding)
        phase = {
            "row": 0,
            "column": 0,
            "taps": [[y - top, x - left] for y in range(kernel_y) for x in range(kernel_x)],
            "weight": weight.double().permute(0, 2, 3, 1).flatten(1),
        }
        self.convolution(result, input, bias, pair(stride), [1, 1], [phase])

    def on_conv_transpose2d(
        self,
        result,
        input,
        weight,
        bias=None,
        stride=1,
        padding=0,
        output_padding=0,  # it is in the size of the result
        groups=1,
        dilation=1,
    ):
        refuse_unusual("conv_transpose2d", dilation, groups)
        strides, paddings = pair(stride), pair(padding)
        weight = weight.double().transpose(0, 1)  # (outputs, inputs, ...), as ordinary ones have it

        def taps(axis, phase):
            """{tap: where it looks} of the taps that reach an output of this phase."""
            reach = {tap: phase + paddings[axis] - tap for tap in range(weight.shape[2 + axis])}
            stride = strides[axis]
            return {tap: far // stride for tap, far in reach.items() if far % stride == 0}

        phases = []
        for row in range(strides[0]):
            for column in range(strides[1]):
                ys, xs = taps(0, row), taps(1, column)
                part = weight[:, :, [*ys]][:, :, :, [*xs]].permute(0, 2, 3, 1).flatten(1)
                places = [[y, x] for y in ys.values() for x in xs.values()]
                phases.append({"row": row, "column": column, "taps": places, "weight": part})
        self.convolution(result, input, bias, [1, 1], strides, phases)

    def convolution(self, result, input, bias, stride, every, phases):
        """Add a convolution: output (row + every * j, column + every * i) of a phase is computed
        of the inputs (stride * j + y, stride * i + x) of all its taps (y, x).
        """
        (_, inputs, *size_in), (_, outputs, *size_out) = input.shape, result.shape
        step = self.add_step(
            "convolution",
            [self.number(input)],
            result.numel(),
            shape_in=[*size_in, inputs],
            shape_out=[*size_out, outputs],
            stride=[*stride],
            every=[*every],
            phases=phases,
            bias=torch.zeros(outputs).double() if bias is None else bias.double(),
        )
        self.bind(result, step)

    def on_batch_norm(
        self,
        result,
        input,
        running_mean,
        running_var,
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    ):
        if training or running_mean is None:
            raise UnknownLayer("batch_norm with the statistics of the batch")
        scale = (running_var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
        shift = (0 if bias is None else bias.double()) - running_mean.double() * scale
        shape = (1, -1) + (1,) * (input.ndim - 2)
        self.affine(result, input, scale.view(shape), shift.view(shape))

    def affine(self, result, x, scale, shift):
        """Add x * scale + shift; both are numbers or tensors that can be broadcast."""
        source = self.expanded(x, result.shape)
        fields = {}
        for name, value in (("scale", scale), ("shift", shift)):
            value = torch.as_tensor(value).double().expand(result.shape)
            same = value.ndim == 4 and (value == value[:, :, :1, :1]).all()
            fields[name] = value[0, :, 0, 0] if same else to_rows(value)
        size = max(len(value) for value in fields.values())
        fields = {name: value.repeat(size // len(value)) for name, value in fields.items()}
        self.bind(result, self.add_step("affine", [source], result.numel(), **fields))

    def on_add(self, result, input, other, alpha=1):
        if self.depends(input) and self.depends(other):
            if alpha != 1:
                raise UnknownLayer("add with an alpha")
            sources = [self.expanded(x, result.shape) for x in (input, other)]
            self.bind(result, self.add_step("add", sources, result.numel()))
        elif self.depends(input):
            self.affine(result, input, 1, torch.as_tensor(other) * alpha)
        else:
            self.affine(result, other, alpha, input)

    def on_sub(self, result, input, other):
        if self.depends(other):
            minus = -other
            self.affine(minus, other, -1, 0)
            other = minus
        else:
            other = -torch.as_tensor(other)
        self.on_add(result, input, other)

    def on_rsub(self, result, input, other):
        self.on_sub(result, other, input)

    def on_neg(self, result, input):
        self.affine(result, input, -1, 0)

    def on_mul(self, result, input, other):
        if self.depends(input) and self.depends(other):
            sources = [self.expanded(x, result.shape) for x in (input, other)]
            self.bind(result, self.add_step("multiply", sources, result.numel()))
        else:
            x, scale = (input, other) if self.depends(input) else (other, input)
            self.affine(result, x, scale, 0)

    def on_div(self, result, input, other):
        if self.depends(other):
            raise UnknownLayer("div by an array")
        self.affine(result, input, 1 / torch.as_tensor(other).double(), 0)

    def on_leaky_relu(self, result, input, negative_slope=0.01, inplace=False):
        step = self.add_step("leaky", [self.number(input)], result.numel(), slope=negative_slope)
        self.bind(result, step)

    def on_relu(self, result, input, inplace=False):
        self.on_leaky_relu(result, input, 0.0)

    def on_tanh(self, result, input):
        self.bind(result, self.add_step("tanh", [self.number(input)], result.numel()))

    def on_sum(self, result, input, dim, keepdim=False):
        if input.ndim != 2 or dim not in (1, -1):
            raise UnknownLayer("sum with unusual arguments")
        self.bind(result, self.add_step("total", [self.number(input)], 1))

    def on_mean(self, result, input, dim, keepdim=False):
        if input.ndim != 4 or {*dim} != {2, 3}:
            raise UnknownLayer("mean with unusual arguments")
        self.resample(result, input, lambda x: x.mean((2, 3), keepdim=True))

    # --- what play.js gets ---

    def needed(self, output):
        """The numbers of the arrays that the array number output is computed of, and its own."""
        first, found, ahead = len(self.inputs), set(), [output]
        while ahead:
            number = ahead.pop()
            if number not in found:
                found.add(number)
                ahead += self.steps[number - first]["from"] if number >= first else []
        return found

    def fold(self, output):
        """Put each affine step into the linear or convolution that only it uses.

        output: number of the array that the network returns. Returns its number afterwards.
        """
        first, needed = len(self.inputs), self.needed(output)
        steps = {n: step for n, step in enumerate(self.steps, start=first) if n in needed}
        uses = [source for step in steps.values() for source in step["from"]] + [output]
        instead = {}  # number of an array: that of the one that takes its place
        for number, step in steps.items():
            step["from"] = [instead.get(source, source) for source in step["from"]]
            source = step["from"][0]
            before = steps.get(source, {"op": "input"})
            if step["op"] != "affine" or uses.count(source) > 1:
                continue
            scale, shift = step["scale"], step["shift"]
            rows = len(before.get("bias", ()))
            if before["op"] not in ("linear", "convolution") or rows % len(scale):
                continue
            scale, shift = (x.repeat(rows // len(scale)) for x in (scale, shift))
            before["bias"] = before["bias"] * scale + shift
            for part in before.get("phases", [before]):
                part["weight"] = part["weight"] * scale[:, None]
            instead[number] = source
        return instead.get(output, output)

    def to_json(self, output):
        """The steps that the array number output needs, with all tensors as text."""
        first, needed = len(self.inputs), self.needed(output)
        kept = [n for n in range(first, first + len(self.steps)) if n in needed]
        new = {n: n for n in range(first)} | {n: first + place for place, n in enumerate(kept)}
        steps = [self.steps[n - first] for n in kept]
        steps = [step | {"from": [new[n] for n in step["from"]]} for step in steps]
        return {
            "inputs": self.inputs,
            "steps": encode(steps),
            "output": new[output],
        }


def refuse_unusual(name, dilation, groups):
    if groups != 1 or pair(dilation) != [1, 1]:
        raise UnknownLayer(f"{name} with groups or a dilation")


def pair(value):
    return [value, value] if isinstance(value, int) else [*value]


def encode(value):
    """A value with all tensors in it as text: dicts that decode in play.js reads.

    Weights, the only tensors with two axes, are rounded to 16-bit integers, with a scale for each
    row. Half the size of float32; and finer than float16 where the values of a row are alike.
    """
    if isinstance(value, dict):
        return {key: encode(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(part) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.ndim == 2:
        # A row may be empty: a pixel that no tap of a transposed convolution reaches.
        padded = torch.nn.functional.pad(value.abs(), (0, 1), value=1e-30)
        scale = padded.amax(dim=1) / 32767
        rounded = (value / scale[:, None]).round().short()
        return {"type": "int16", "data": base64_of(rounded), "scale": encode(scale)}
    kind = "int32" if value.dtype == torch.int64 else "float32"
    return {"type": kind, "data": base64_of(value.to(getattr(torch, kind)))}


def base64_of(tensor):
    """The bytes of a tensor, little-endian as in every browser."""
    array = tensor.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
