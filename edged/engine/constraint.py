"""Constrained output: which tokens may come next, so that the text obeys a format.

llguidance follows the text and gives a mask of the vocabulary for each token; what is not in the mask gets a logit of
minus infinity before sampling. Any error fails the sequence: it never continues without the constraint (promise 8).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edged.core.errors import PromptRefused
from edged.core.prompt import Choice, Failure, Format, JsonSchema
from edged.engine import format_check
from edged.engine.memory import available_bytes
from edged.models.tokenizer.codec import TextCodec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MASK_SECONDS = 1.0  # a single mask that takes longer ends the sequence
_REMEMBERED: Final = 256  # formats whose check is remembered
# A token may divide what the grammar forces (a choice) as the model likes it, not only as its tokenizer would.
HEAD: Final = '%llguidance {"no_forcing": true}\n'
# One line of JSON with at most one space after a comma or colon: a model cannot write whitespace without end.
_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# \u escapes are allowed only where a schema may need them for control characters, and never for printable ones:
# a second spelling of a key would slip past what the schema says about that key.
_NEEDS_ESCAPES: Final = re.compile(r'"pattern|\\u00[01]|\x7f')
_PLAIN_ESCAPES: Final = 'nrbtf\\"'
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?')
_CAUSE: Final = re.compile(r"invalid regex (.{1,80}?) \(in regex\)", re.DOTALL)
_ERROR: Final = re.compile(r"\nerror: ([^\n]+)")
_TOO_COMPLEX: Final = (
    "it is too complex to be enforced; use shorter patterns, smaller counts and fewer conditions that must hold at once"
)
_NO_MEMORY: Final = (
    "The board has too little free memory to check the format; send it again later or without a format, or choose a "
    "smaller model."
)


class ConstraintError(Exception):
    """A constrained sequence cannot continue. `failure` is for its final."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True)
class CallGrammar:
    """What calls of tools look like, in the library's language. `checked`: with the texts of markers, for the check of
    its size; `used`: with their control tokens."""

    checked: str
    used: str


Wanted = Format | CallGrammar


class Constraint:
    """What one sequence may write: `mask` and `accept` in turns, then `violation` for the whole text.

    `vocabulary` is the number of the model's tokens; the library's token after them means the end of the text, in whose
    place all of the model's `stops` are allowed.
    """

    def __init__(self, compiled: LLMatcher, vocabulary: int, stops: frozenset[int], *, is_json: bool) -> None:
        self._compiled = compiled
        self._vocabulary = vocabulary
        self._stops = stops
        self._is_json = is_json

    @property
    def satisfied(self) -> bool:
        """Whether the text so far obeys."""
        return not self._compiled.is_error() and self._compiled.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether the text obeys and nothing more may follow."""
        return self.satisfied and self._compiled.is_stopped()

    def copy(self) -> Constraint:
        """A constraint with the same text so far, which goes on by itself."""
        return Constraint(self._compiled.deep_copy(), self._vocabulary, self._stops, is_json=self._is_json)

    def mask(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits [vocabulary] with minus infinity for what may not come next. Raises ConstraintError."""
        masked: npt.NDArray[np.float32] = np.where(self.allowed(len(logits)), logits, np.float32(-np.inf))
        return masked

    def allowed(self, size: int) -> npt.NDArray[np.bool_]:
        """Which of `size` tokens may come next; those that end the answer only where the text so far obeys.

        bool [size]. Raises ConstraintError where there is none, or where finding them takes longer than MASK_SECONDS.
        """
        begun = time.perf_counter()
        bits = self._compiled.compute_bitmask()
        if self._compiled.is_error():  # such a mask would allow the end
            raise _broken(f"llguidance reports: {_first_line(self._compiled.get_error())}")
        if time.perf_counter() - begun > MASK_SECONDS:
            raise _broken(f"one token took longer than {MASK_SECONDS:g} s")
        flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(np.bool_)
        allowed = np.zeros(size, np.bool_)
        allowed[: self._vocabulary] = flags[: min(self._vocabulary, size)]
        for stop in self._stops:
            if stop < size:
                allowed[stop] = flags[self._vocabulary] and self.satisfied
        if not allowed.any():
            raise _broken("the model has no token that could follow")
        return allowed

    def accept(self, token: int) -> None:
        """Advances by the chosen token. Raises ConstraintError for one that was not allowed."""
        obeyed = self.satisfied if token in self._stops else self._compiled.consume_token(token)
        if not obeyed:
            raise _broken("a token was chosen that may not follow")

    def violation(self, text: str) -> Failure | None:
        """Why the text, as it ended, does not obey; None where it does."""
        if not self.satisfied:
            message = (
                "the answer ended before it was complete and does not obey the format; raise max_tokens, shorten the "
                "prompt, or bound the format (maxLength, maxItems, additionalProperties: false)"
            )
            return Failure("format_incomplete", message)
        if self._is_json and (wrong := _bad_keys(text)):
            message = f"the answer {wrong}; set additionalProperties to false in the schema, or ask for it differently"
            return Failure("format", message)
        return None


class FormatCompiler:
    """Makes constraints for one model. The first one takes longer: the library indexes the vocabulary."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._view: LLTokenizer | None = None
        self._checked: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()  # of `_checked`

    def is_checked(self, wanted: Wanted) -> bool:
        """Whether `compile` is quick, because the format needs no check or was checked. For any thread."""
        if isinstance(wanted, Choice):
            return True
        with self._lock:
            return _checked_grammar(wanted) in self._checked

    def check(self, wanted: Wanted) -> None:
        """Check a format in a process of its own, which may take seconds. For any thread. Raises as `compile` does."""
        if not isinstance(wanted, Choice) and (wrong := self._grammar_error(_checked_grammar(wanted))):
            raise _refused(wrong, _noun(wanted))

    def compile(self, wanted: Wanted) -> Constraint:
        """A constraint at the beginning of a text.

        Raises PromptRefused `invalid` or `failed` with the code `format`, or `unavailable` with `no_memory`.
        """
        self.check(wanted)
        grammar = _grammar(wanted)
        if self._view is None:
            self._view = format_check.tokenizer(self._token_texts())
        compiled = format_check.matcher(self._view, grammar)
        is_json = isinstance(wanted, JsonSchema)
        constraint = Constraint(compiled, self._codec.vocabulary, self._codec.stops, is_json=is_json)
        try:
            constraint.allowed(self._codec.vocabulary)
        except ConstraintError:
            wrong = compiled.get_error() or "this model cannot write any text that obeys it"
            raise _refused(wrong, _noun(wanted)) from None
        return constraint

    def _grammar_error(self, grammar: str) -> str:
        """What is wrong with a grammar, "" for nothing; remembered, because a check costs a process."""
        with self._lock:
            if grammar in self._checked:
                self._checked.move_to_end(grammar)
                return self._checked[grammar]
        try:
            error = format_check.grammar_error(grammar, available_bytes())
        except format_check.TooComplexError:
            error = _TOO_COMPLEX
        except format_check.NoMemoryError:
            raise PromptRefused("unavailable", "no_memory", _NO_MEMORY) from None
        except (OSError, RuntimeError) as failure:
            message = f"The format could not be checked ({failure}); try again."
            raise PromptRefused("failed", "format", message) from None
        with self._lock:
            self._checked[grammar] = error
            if len(self._checked) > _REMEMBERED:
                self._checked.popitem(last=False)
        return error

    def _token_texts(self) -> list[bytes]:
        """The bytes of each token, then the end. Stops have none, nor tokens with 0xFF, the mark of the library.

        A control token is written behind that mark: only a grammar that names its id allows it.
        """
        codec = self._codec
        texts = [b"" if token in codec.stops else codec.token_bytes(token) for token in range(codec.vocabulary)]
        texts = [b"" if 0xFF in text else text for text in texts]
        for token in codec.control.values():
            if token not in codec.stops and token < len(texts):
                texts[token] = b"\xff[%d]" % token
        return [*texts, b""]


def json_term(schema: str) -> str:
    """A JSON value that obeys a schema, as a term of the library's language."""
    options: dict[str, Any] = {**_SPACING, "json_allow_general_unicode_escapes": False}
    if not _NEEDS_ESCAPES.search(schema):
        options["json_allowed_escapes"] = _PLAIN_ESCAPES
    return f"%json {json.dumps({**json.loads(schema), 'x-guidance': options})}"


def _checked_grammar(wanted: Wanted) -> str:
    """What is compiled first in a process of its own."""
    return wanted.checked if isinstance(wanted, CallGrammar) else _grammar(wanted)


def _grammar(wanted: Wanted) -> str:
    """A format in the library's language."""
    if isinstance(wanted, CallGrammar):
        return wanted.used
    if isinstance(wanted, JsonSchema):
        return f"{HEAD}start: {json_term(wanted.text)}"
    if isinstance(wanted, Choice):  # as one terminal: "a" may then still become "ab"
        return f"{HEAD}start: CHOICE\nCHOICE: {' | '.join(json.dumps(choice) for choice in wanted.choices)}"
    from llguidance import LLMatcher

    described = json.loads(LLMatcher.grammar_from_regex(wanted.pattern))
    return f"{HEAD}{described['grammars'][0]['lark_grammar']}"


def _bad_keys(text: str) -> str:
    """What is wrong with the keys of a JSON text, "" for nothing: a key twice, or spelled with \\u escapes."""
    if any(match[2] and "\\u" in match[1] for match in _STRING.finditer(text)):
        return "spells a key with an escape"
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            repeated.append("has a key twice in one object")

    try:
        json.loads(text, object_pairs_hook=note, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return "cannot be read as JSON"
    return repeated[0] if repeated else ""


def _broken(why: str) -> ConstraintError:
    return ConstraintError(
        Failure("format", f"the format could not be enforced to the end ({why}); make it simpler, or send it again")
    )


def _refused(why: str, what: str) -> PromptRefused:
    return PromptRefused("invalid", "format", f"{what} cannot be used: {_first_line(why)}; change it.")


def _noun(wanted: Wanted) -> str:
    return "The parameters of the tools" if isinstance(wanted, CallGrammar) else "The format"


def _first_line(message: str) -> str:
    """The library's message in short, without the position in a grammar that the requester does not know."""
    if message.startswith("NoExtension"):
        return "there is no text that obeys it"
    # Two searches: one for both would begin anew at each of a thousand causes that a requester's pattern may quote.
    if (cause := _CAUSE.search(message)) and (error := _ERROR.search(message, cause.end())):
        return f"the regex {cause[1]} has an error: {error[1][:200]}"
    first = re.sub(r"\Aat \d+\(\d+\): (failed to compile JSON schema: )?", "", message).partition("\n")[0]
    return first if len(first) <= 200 else first[:199] + "…"
