"""Rules for values that are read from a file: type, dtype, size and range.

A rule is a frozen dataclass with a method check(value, name), which raises Invalid. Rules only
look: they convert nothing, and no value makes them allocate much memory.
"""

import math
import re
from dataclasses import dataclass, field

import torch

HUGE = 2**127  # no count, seed or size is larger; str() of a much larger number can fail


class Invalid(Exception):
    """A value breaks its rule; the message names the field and says what is wrong with it."""


def describe(value):
    """Return in a few words what a value is, however large or deep it is."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}".replace("torch.", "")
    if isinstance(value, int) and not -HUGE <= value <= HUGE:
        return "a huge number"
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value)[:42] if plain else f"a {type(value).__name__}"


def require(holds, name, cause):
    """Raise Invalid about a field unless something holds."""
    if not holds:
        raise Invalid(f"{name or 'it'} {cause}")


@dataclass(frozen=True)
class Number:
    """A finite number, an int or a float."""

    low: float = -1e300
    high: float = 1e300
    types = (int, float)

    def check(self, value, name):
        legal = type(value) in self.types and self.low <= value <= self.high
        wanted = f"{self.types[-1].__name__} from {self.low:g} to {self.high:g}"
        require(legal, name, f"is {describe(value)}, not of type {wanted}")


@dataclass(frozen=True)
class Integer(Number):
    low: int = 0
    high: int = 2**53
    types = (int,)


@dataclass(frozen=True)
class Text:
    """A string that matches a regular expression; by default any without control characters."""

    pattern: str = r"[^\0-\x08\x0b-\x1f\x7f\ud800-\udfff]*"  # a terminal would obey escape codes
    words: str = "a text"

    def check(self, value, name):
        legal = isinstance(value, str) and re.fullmatch(self.pattern, value, re.DOTALL)
        require(legal, name, f"is {describe(value)}, not {self.words}")


@dataclass(frozen=True)
class OneOf:
    """One of a few values, of the same type."""

    values: tuple

    def check(self, value, name):
        legal = any(type(value) is type(one) and value == one for one in self.values)
        listed = " or ".join(repr(one) for one in self.values)
        require(legal, name, f"is {describe(value)}, not {listed}")


@dataclass(frozen=True)
class ByType:
    """A value of one of several types, each with a rule; None as a rule allows all of the type."""

    rules: tuple  # of (type, rule) pairs

    def check(self, value, name):
        for kind, rule in self.rules:
            if type(value) is kind or kind is torch.Tensor and isinstance(value, kind):
                return rule and rule.check(value, name)
        kinds = ", ".join(kind.__name__ for kind, _ in self.rules)
        raise Invalid(f"{name} is {describe(value)}, not one of {kinds}")


@dataclass(frozen=True)
class Tensor:
    """A dense, finite tensor of real numbers on the CPU.

    dtype, ndim: None for any; low, high: of all elements.
    """

    dtype: torch.dtype | None = None
    ndim: int | None = None
    low: float = -math.inf
    high: float = math.inf

    def check(self, value, name):
        plain = type(value) is torch.Tensor and not value.requires_grad and not value.is_nested
        plain = plain and value.layout == torch.strided and value.device.type == "cpu"
        require(plain, name, f"is {describe(value)}, not a plain tensor")
        legal = self.dtype in (None, value.dtype) and not value.is_quantized
        wanted = self.dtype or "real numbers"
        require(legal and not value.is_complex(), name, f"is {describe(value)}, not of {wanted}")
        require(self.ndim in (None, value.ndim), name, f"has {value.ndim} dimensions")
        # An expanded tensor can claim more elements than any memory holds.
        held = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        require(held, name, "repeats its elements instead of holding them")
        if value.numel() > 0:
            require(bool(value.isfinite().all()), name, "holds values that are not finite")
            legal = self.low <= value.min() and value.max() <= self.high
            require(legal, name, f"holds values outside {self.low} to {self.high}")


@dataclass(frozen=True)
class Table:
    """A dict with keys of one type: fields that must be there, fields that may, and all others.

    others: a rule, or None to pass over what is not known.
    """

    fields: dict = field(default_factory=dict)
    optional: dict = field(default_factory=dict)
    others: object = None
    keys: type = str

    def check(self, value, name):
        require(isinstance(value, dict), name, f"is {describe(value)}, not a dict")
        for key, rule in self.fields.items():
            require(key in value, place(name, key), "is missing")
            rule.check(value[key], place(name, key))
        for key, found in value.items():
            require(type(key) is self.keys, name, f"has the key {describe(key)}")
            rule = None if key in self.fields else self.optional.get(key, self.others)
            if rule is not None:
                rule.check(found, place(name, key))


@dataclass(frozen=True)
class ListOf:
    rule: object  # of each value of a list or tuple

    def check(self, value, name):
        require(isinstance(value, (list, tuple)), name, f"is {describe(value)}, not a list")
        for number, found in enumerate(value):
            self.rule.check(found, place(name, number))


def place(name, key):
    """Return the name of a field in a field: history, 2 -> history 2."""
    key = key if isinstance(key, int) or str(key).isidentifier() else describe(key).strip("'")
    return f"{name} {key}".strip()


def compare(ours, theirs):
    """Raise Invalid unless two dicts of tensors have the same keys, shapes and dtypes."""
    for name in [*ours, *theirs]:
        require(name in theirs, name, "is missing")
        require(name in ours, name, "is not a part of it")
        found, wanted = (f"{tuple(x[name].shape)} of {x[name].dtype}" for x in (theirs, ours))
        require(found == wanted, name, f"is {found}, not {wanted}".replace("torch.", ""))


def check(rule, value):
    """Raise Invalid, and nothing else, unless a value obeys its rule."""
    try:
        rule.check(value, "")
    except (Invalid, MemoryError):
        raise
    except Exception as error:  # looking at some tensors fails, and lists can be endless
        raise Invalid(f"a value in it cannot be examined ({type(error).__name__})") from None
