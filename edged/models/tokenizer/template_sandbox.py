"""Jinja's immutable sandbox with counted operations: a template can neither run for long nor make large values.

Every loop turn, call, filter, operator and output is charged to a budget; what would make a large value is refused
before it is made. The template's syntax tree is rewritten so that nothing goes uncounted: loops, `~`, list, tuple and
dict displays and output, constant text included.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NoReturn

from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from edged.models.tokenizer.template_budget import Budget, RaisedError, TooMuchError
from edged.models.tokenizer.template_syntax import Counted, Generation

MAX_NUMBER: Final = 10_000  # arguments that are counts or widths; the length of a range
_MAX_INDENT: Final = 16
_POWER_BITS: Final = 64  # of a result of the operator **
_PERCENT: Final = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))")
_FORMAT: Final = re.compile(r"\d{4,}|\{[^{}]*\{")
_STRING_METHODS: Final = frozenset(
    {
        *("capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map"),
        *("index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
        *("isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition"),
        *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip"),
        *("split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill"),
    }
)
_OTHER_METHODS: Final = frozenset({"get", "items", "keys", "values", "copy", "index", "count", "is_integer"})
_DROPPED_FILTERS: Final = ("random", "urlize", "pprint", "xmlattr")


class CountingSandbox(ImmutableSandboxedEnvironment):
    """See the module. `budget` is set for each rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"-", "+"})

    def __init__(self) -> None:
        extensions = [LoopControlExtension, Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=extensions)
        self.budget = Budget(0, 1_000_000)
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        self.filters = {name: self._guarded(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {"_turns": self._turns, "_joined": self._joined, "_weighed": self._weighed, "_out": self._out}
        self.globals = {
            "namespace": _Namespace,
            "dict": dict,
            "range": _range,
            "raise_exception": _raise,
            "cycler": Cycler,
            "joiner": Joiner,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Counted().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators on large values, and those that make them."""
        if operator == "**":
            _check_power(left, right)
        if operator == "*" and not (_is_number(left) and _is_number(right)):
            self._check_repeated(left, right)
        if operator == "%" and isinstance(left, str | bytes):
            _check_percent(left)
            self.budget.weigh(right)
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.budget.fits(len(left) + len(right))
        return self.budget.weigh(super().call_binop(context, operator, left, right))

    def _check_repeated(self, left: Any, right: Any) -> None:
        """A text or list times a number."""
        items, times = (right, left) if _is_number(left) else (left, right)
        if not isinstance(items, str | list | tuple) or not isinstance(times, int):
            raise TooMuchError("such a product is not allowed here")
        self.budget.fits(len(items) * max(times, 0))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063  - Jinja's
        """Calls of functions, macros and methods."""
        __self.budget.charge(1)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            __self._check_method(owner, name, args, kwargs)
        elif isinstance(owner, int | float | bytes | list | tuple | dict) and name not in _OTHER_METHODS:
            raise TooMuchError(f"the method {name} is not allowed here")
        result = super(CountingSandbox, __self).call(  # noqa: UP008  - there is no `self`
            __context, __obj, *args, **kwargs
        )
        return result if isinstance(result, range) else __self.budget.weigh(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which Jinja replaces by one of its own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def guarded(*args: Any, **kwargs: Any) -> str:
            self._check_method(value.__self__, "format", args, kwargs)
            return str(wrapped(*args, **kwargs))

        return guarded

    def _check_method(self, owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name not in _STRING_METHODS:
            raise TooMuchError(f"the method {name} is not allowed here")
        self.budget.fits(len(owner))
        values = (*args, *kwargs.values())
        _check_numbers(values)
        if name in {"format", "format_map"}:
            if _FORMAT.search(owner):
                raise TooMuchError("such a format is not allowed here")
            self.budget.weigh(values)
            self.budget.fits(len(owner) + owner.count("{") * sum(_length(value) for value in values))
        elif name == "join" and args:
            self._check_join(owner, args[0])
        elif name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif name == "expandtabs":
            self.budget.fits(len(owner) + owner.count("\t") * (args[0] if args else 8))

    def _check_join(self, separator: str, items: Any) -> None:
        if not isinstance(items, list | tuple | str | Mapping):
            raise TooMuchError("join needs a list")
        self.budget.weigh(items)
        self.budget.fits(len(separator) * len(items) + sum(_length(item) for item in items))

    def _check_replace(self, text: str, old: Any, new: Any) -> None:
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self.budget.fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))

    def _guarded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        shift = 1 if getattr(filter_, "jinja_pass_arg", None) is not None else 0

        @functools.wraps(filter_)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, given = (args[shift] if len(args) > shift else None), (*args[shift + 1 :], *kwargs.values())
            if isinstance(value, Iterator):  # of a filter before this one
                value = list(self._turns(value))
                args = (*args[:shift], value, *args[shift + 1 :])
            self.budget.weigh(value)
            self.budget.weigh(given)
            self._check_filter(name, value, given)
            result = filter_(*args, **kwargs)
            if isinstance(result, Iterator):
                return self._weighed_turns(result)
            return self.budget.weigh(result)

        return guarded

    def _check_filter(self, name: str, value: Any, given: tuple[Any, ...]) -> None:
        _check_numbers(given)
        longest = max((len(one) for one in given if isinstance(one, str)), default=0)
        if name == "format":
            _check_percent(value)
        elif name == "tojson":
            longest = max([longest, *(len(one) for pair in given if isinstance(pair, list | tuple) for one in pair)])
            if any(_is_number(one) and one > _MAX_INDENT for one in given) or longest > _MAX_INDENT:
                raise TooMuchError("such an indentation is not allowed here")
        elif name == "replace" and len(given) >= 2:
            self._check_replace(str(value), str(given[0]), str(given[1]))
        elif name == "join" and isinstance(value, list | tuple | str):
            self.budget.fits(longest * len(value) + sum(_length(item) for item in value))
        elif name == "indent":
            width = max([longest, *(one for one in given if _is_number(one)), 4])
            self.budget.fits(_length(value) + (str(value).count("\n") + 1) * int(width))
        elif name == "wordwrap":
            self.budget.fits(_length(value) * (1 + longest))

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.charge(1)
            yield item

    def _weighed_turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield self.budget.weigh(item)

    def _joined(self, items: tuple[Any, ...]) -> str:
        self.budget.weigh(items)
        self.budget.fits(sum(_length(item) for item in items))
        return str(self.budget.weigh("".join(map(str, items))))

    def _weighed(self, value: Any) -> Any:
        return self.budget.weigh(value)

    @pass_context  # so that Jinja does not compute it when it compiles
    def _out(self, _: Context, value: Any) -> Any:
        return self.budget.weigh(value)


class _Namespace(Namespace):
    """Jinja's, whose text does not grow with what it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _length(value: Any) -> int:
    """An upper bound of what a value takes as a text, for flat values; what was weighed is bounded."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(2 + _length(item) for item in value)
    if isinstance(value, Mapping):
        return sum(4 + _length(key) + _length(item) for key, item in value.items())
    return 32 if not isinstance(value, int) else 32 + value.bit_length() // 3


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
            raise TooMuchError(f"the number {value} is too large here")


def _check_power(base: Any, exponent: Any) -> None:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and base.bit_length() * max(exponent, 0) > _POWER_BITS:
        raise TooMuchError("it makes a number that is far too large")


def _check_percent(form: Any) -> None:
    text = form.decode("latin-1") if isinstance(form, bytes) else str(form)
    if _PERCENT.search(text):
        raise TooMuchError("such a format is not allowed here")


def _range(*bounds: int) -> range:
    span = range(*bounds)
    if span and (max(abs(span[0]), abs(span[-1])) >= 1 << 63 or len(span) > MAX_NUMBER):
        raise TooMuchError("such a range is too long")
    return span


def _raise(message: object) -> NoReturn:
    raise RaisedError(str(message)[:1000])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
