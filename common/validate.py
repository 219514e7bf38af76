"""Rules for values that are read from a file: kind, dtype, memory layout, shape and range.

A rule is a frozen dataclass with a method check(value, name), which raises Odd. Rules only look:
they never convert, and none is led to allocate memory by what it looks at.
"""

import dataclasses
import math
import re

import torch

HUGE = 2**127  # no count, seed or size is larger; str() of a much larger number can fail


class Odd(Exception):
    """A value breaks its rule; the message names the field and says what is wrong with it."""


def describe(value):
    """Return in a few words what a value is, however large, deep or odd it is."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, int) and not -HUGE <= value <= HUGE:
        return "a huge number"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


def demand(holds, name, cause):
    """Raise Odd about a field unless something holds."""
    if not holds:
        raise Odd(f"{name} {cause}")


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from low to high."""

    low: int = 0
    high: int = 2**53

    def check(self, value, name):
        legal = type(value) is int and self.low <= value <= self.high
        span = f"a whole number from {self.low} to {self.high}"
        demand(legal, name, f"is {describe(value)}, not {span}")


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from low to high."""

    low: float = -1e300
    high: float = 1e300

    def check(self, value, name):
        legal = type(value) in (int, float) and self.low <= value <= self.high
        span = "a finite number"
        if (self.low, self.high) != (-1e300, 1e300):
            span = f"a number from {self.low:g} to {self.high:g}"
        demand(legal, name, f"is {describe(value)}, not {span}")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that a regular expression matches whole; by default any that can be written."""

    pattern: str = r"[^\0-\x08\x0b-\x1f\x7f\ud800-\udfff]*"  # no escape codes for a terminal
    words: str = "a text"

    def check(self, value, name):
        legal = isinstance(value, str) and re.fullmatch(self.pattern, value, re.DOTALL)
        demand(legal, name, f"is {describe(value)}, not {self.words}")


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of a few values, of the same type."""

    values: tuple

    def check(self, value, name):
        legal = any(type(value) is type(one) and value == one for one in self.values)
        listed = " or ".join(repr(one) for one in self.values)
        demand(legal, name, f"is {describe(value)}, not {listed}")


@dataclasses.dataclass(frozen=True)
class ByType:
    """A value of one of several types, each with a rule; None as a rule allows all of the type."""

    rules: tuple  # of (type, rule) pairs

    def check(self, value, name):
        for kind, rule in self.rules:
            if isinstance(value, kind) if kind is torch.Tensor else type(value) is kind:
                return rule and rule.check(value, name)
        kinds = ", ".join(kind.__name__ for kind, _ in self.rules)
        raise Odd(f"{name} is {describe(value)}, not one of {kinds}")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A dense, finite tensor on the CPU.

    dtype: None for any real one; shape: a length for each dimension, None in it for any length,
    None alone for any shape; low, high: of all elements.
    """

    dtype: torch.dtype | None = None
    shape: tuple | None = None
    low: float = -math.inf
    high: float = math.inf

    def check(self, value, name):
        demand(isinstance(value, torch.Tensor), name, f"is {describe(value)}, not a tensor")
        plain = type(value) is torch.Tensor and not value.requires_grad and not value.is_nested
        plain = plain and value.layout == torch.strided and value.device.type == "cpu"
        demand(plain, name, f"is {describe(value)} that is not plain, dense and in memory")
        odd = value.is_quantized or value.is_complex()
        if odd or self.dtype not in (None, value.dtype):
            wanted = str(self.dtype or "real numbers").removeprefix("torch.")
            raise Odd(f"{name} is {describe(value)}, not of {wanted}")
        if self.shape is not None:
            shape = tuple(value.shape)
            alike = len(shape) == len(self.shape) and all(
                wanted in (None, length) for wanted, length in zip(self.shape, shape, strict=True)
            )
            wanted = f"({', '.join('any' if n is None else str(n) for n in self.shape)})"
            demand(alike, name, f"has the shape {shape}, not {wanted}")
        # An expanded tensor can claim more elements than any memory holds.
        steps = zip(value.shape, value.stride(), strict=True)
        repeats = any(length > 1 and step == 0 for length, step in steps)
        size = value.numel() * value.element_size()
        held = size <= value.untyped_storage().nbytes() and not repeats
        demand(held, name, "repeats its elements instead of holding them")
        if value.numel() == 0:
            return
        if value.is_floating_point():
            demand(bool(value.isfinite().all()), name, "holds values that are not finite")
        if (self.low, self.high) != (-math.inf, math.inf):
            legal = self.low <= value.min() and value.max() <= self.high
            demand(legal, name, f"holds values outside {self.low} to {self.high}")


@dataclasses.dataclass(frozen=True)
class Table:
    """A dict: fields that must be there, fields that may be, and a rule for all others.

    others: a rule, or None to pass over what is not known.
    """

    fields: dict
    optional: dict = dataclasses.field(default_factory=dict)
    others: object = None

    def check(self, value, name):
        demand(isinstance(value, dict), name or "it", f"is {describe(value)}, not a dict")
        for key, rule in self.fields.items():
            demand(key in value, place(name, key), "is missing")
            rule.check(value[key], place(name, key))
        for key, field in value.items():
            demand(type(key) is str, name or "it", f"has the key {describe(key)}, not a text")
            rule = None if key in self.fields else self.optional.get(key, self.others)
            if rule is not None:
                rule.check(field, place(name, key))


@dataclasses.dataclass(frozen=True)
class Map:
    """A dict with keys of one type and values of one rule."""

    rule: object
    keys: type = str

    def check(self, value, name):
        demand(isinstance(value, dict), name, f"is {describe(value)}, not a dict")
        for key, field in value.items():
            demand(type(key) is self.keys, name, f"has the key {describe(key)}")
            self.rule.check(field, place(name, key))


@dataclasses.dataclass(frozen=True)
class Rows:
    """A list or tuple of values of one rule."""

    rule: object

    def check(self, value, name):
        demand(isinstance(value, (list, tuple)), name, f"is {describe(value)}, not a list")
        for number, field in enumerate(value):
            self.rule.check(field, place(name, number))


def place(name, key):
    """Return the name of a field in a field: history, 2 -> history 2."""
    key = key if isinstance(key, int) or str(key).isidentifier() else describe(key).strip("'")
    return f"{name} {key}".strip()


def check(rule, value):
    """Raise Odd, and nothing else, unless a value obeys its rule."""
    try:
        rule.check(value, "")
    except (Odd, MemoryError):
        raise
    except Exception as error:  # of a tensor so odd that looking at it fails, or of endless lists
        raise Odd(f"a value in it cannot be examined ({type(error).__name__})") from None
