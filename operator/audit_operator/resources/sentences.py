"""pydantic's errors as sentences: where, what was there, what is wrong, what to write instead."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from audit_operator.resources.meta import GRAMMARS, SecretKeyReference

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at ``path`` (``spec.rules[3].level``), with the value if it helps, and what to do instead."""

    path: str
    message: str
    value: str = ""
    way_out: str = ""

    def __str__(self) -> str:
        value = f" {self.value}" if self.value else ""
        way_out = f"; {self.way_out}" if self.way_out else ""
        return f"{self.path or 'document'}:{value} {self.message}{way_out}"


MOST: Final = 100
"""Problems that are put into sentences; nobody reads more, and a document can have a million."""


def problems_of(model: type[BaseModel], error: ValidationError) -> tuple[Problem, ...]:
    """The problems of a document that ``model`` did not take; the last one says how many are left out, if any are."""
    entries = error.errors(include_url=False)
    first = entries[:MOST]
    problems = tuple(
        problem
        for entry in first
        # pydantic counts a list's good entries only, so that one bad entry makes a list too short.
        if not (entry["type"] == "too_short" and any(_below(other["loc"], entry["loc"]) for other in first))
        for problem in _problems(model, entry)
    )
    left_out = len(entries) - len(first)
    return (*problems, Problem("", f"has {left_out:,} more problems; put these right first")) if left_out else problems


def guess(value: object, known: Iterable[str], otherwise: str) -> str:
    """Did you mean: the known word that is spelled nearly like the value, else ``otherwise``."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(_text(value)[:100].lower(), folded, n=1, cutoff=0.7)
    return f"did you mean {folded[close[0]]}?" if close else otherwise


def kind_of(value: object) -> str:
    """What sort of value it is, with its article."""
    match value:
        case None:
            return "empty"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case str():
            return "text"
        case _:
            return "a single value"


def shown(value: object) -> str:
    """The value, short enough for a line and without what could be a password in it; nothing of lists and objects."""
    if isinstance(value, Mapping | list | tuple) or len(text := _text(value)) > 1000:
        return ""
    text = "/".join(_without_user(part) for part in text.split("/"))
    scheme, separator, rest = text.partition("://")
    if "?" in rest:
        text = f"{scheme}{separator}{rest.partition('?')[0]}?***"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return repr(text) if isinstance(value, str) else text


def _without_user(part: str) -> str:
    """What is between two slashes of a URL, without ``user:password@``. No expression: each way to write one goes back
    and forth over the text, and a hundred values of a thousand colons are 100 kB.
    """
    user, separator, host = part.rpartition("@")
    return f"***@{host}" if separator and ":" in user else part


def _text(value: object) -> str:
    """As YAML would write a scalar; empty for a number that Python refuses to write."""
    try:
        return str(value)
    except ValueError:  # more than 4,300 digits
        return ""


_LONGEST_SCALAR: Final = 100


def one_of(words: Iterable[str]) -> str:
    """The choice there is."""
    return f"write one of {', '.join(word or repr(word) for word in words)}"


def _problems(model: type[BaseModel], entry: Mapping[str, Any]) -> Iterator[Problem]:
    loc, kind, value, context = entry["loc"], entry["type"], entry["input"], entry.get("ctx", {})
    path = _path(loc)
    match kind:
        case "rule":
            for violation in context["violations"]:
                yield Problem((path + violation.field).lstrip("."), violation.message)
        case "missing":
            yield Problem(path, "is required", way_out=_hint(_field(model, loc)))
        case "extra_forbidden":
            yield _unknown_field(model, loc)
        case "invalid_key":
            yield Problem(_path(loc[:-1]), f"has a field {loc[-1]} that is not a string; put its name in quotes")
        case "literal_error":
            known = _words(_field(model, loc))
            yield Problem(path, "is not known", shown(value), guess(value, known, one_of(known)))
        case "string_pattern_mismatch":
            yield Problem(path, f"must be {GRAMMARS[context['pattern']]}", shown(value))
        case "string_type":
            pattern = _pattern(_field(model, loc))
            # A list's text could be a megabyte, and a pattern of ours is no more than a pattern.
            single = not isinstance(value, Mapping | list | tuple) and len(text := _text(value)) <= _LONGEST_SCALAR
            quotes = "put it in quotes" if single and re.search(pattern, text) else ""
            yield Problem(path, f"must be {GRAMMARS.get(pattern, 'a string')}", shown(value), quotes)
        case "model_type" | "dict_type":
            # Never the value: a password in the place of a reference to it looks like this.
            yield Problem(path, f"is {kind_of(value)}, but must be an object", way_out=_shape(_at(model, loc)))
        case "tuple_type":
            yield Problem(path, f"is {kind_of(value)}, but must be a list")
        case _:
            yield Problem(path, _sentence(kind, context, entry["msg"]), shown(value))


def _sentence(kind: str, context: Mapping[str, Any], message: str) -> str:
    match kind:
        case "int_type":
            return "must be a whole number, without quotes"
        case "bool_type":
            return "must be true or false, without quotes"
        case "string_too_short" if context["min_length"] == 1:
            return "must not be empty"
        case "string_too_short":
            return f"must have at least {context['min_length']} characters"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "too_short":
            return f"must have at least {context['min_length']} entry"
        case "too_long":
            return f"must have at most {context['max_length']} entries"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case _:
            return message.removeprefix("Value error, ")


def _path(loc: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in loc).removeprefix(".")


def _below(loc: Location, other: Location) -> bool:
    return len(loc) > len(other) and loc[: len(other)] == other


# --- what the models say ---------------------------------------------------------------------------------------------

_VERIFIED: Final = "trust the server's own certificate with caBundle; for another name in it use serverName"
_REFER: Final = "credentials are Secrets; refer to one with auth"
_ELSEWHERE: Final = MappingProxyType(
    {
        "insecureSkipVerify": ("caBundle", _VERIFIED),
        "insecureSkipTLSVerify": ("caBundle", _VERIFIED),
        "ca": ("caBundle", "write caBundle, caSecret or caConfigMap"),
        "password": ("auth", _REFER),
        "token": ("auth", _REFER),
        "apiKey": ("auth", _REFER),
    }
)
"""Field that people know from elsewhere -> a field beside it here, and what to do."""


def _unknown_field(model: type[BaseModel], loc: Location) -> Problem:
    name = str(loc[-1])
    known = [str(field.alias) for field in _fields(_at(model, loc[:-1]))]
    beside, way_out = _ELSEWHERE.get(name, ("", ""))
    if beside not in known:
        way_out = guess(name, known, f"known are {', '.join(known)}")
    return Problem(_path(loc), "is no field", way_out=way_out)


def _hint(field: FieldInfo | None) -> str:
    """What a required field wants: its words, an example, or what it is for."""
    if field is None:
        return ""
    if words := _words(field):
        return one_of(words)
    if field.examples:
        example = field.examples[0]
        return f"for example {f'[{example[0]}]' if isinstance(example, list) else example}"
    return f"it is the {_lower(field.description.split('. ')[0].rstrip('.'))}" if field.description else ""


def _shape(model: type[BaseModel] | None) -> str:
    """What an object looks like: its required fields, else the first ones."""
    if model is None:
        return "write {name: value}"
    fields = _fields(model)
    names = [str(field.alias) for field in fields if field.is_required()] or [str(field.alias) for field in fields]
    secret = "credentials are Secrets: " if model is SecretKeyReference else ""
    return f"{secret}write {{{', '.join(f'{name}: …' for name in names[:4])}}}"


def _at(model: type[BaseModel], loc: Location) -> type[BaseModel] | None:
    """The model of the object at ``loc``, None where there is none."""
    if not any(isinstance(part, str) for part in loc):
        return model
    field = _field(model, loc)
    return _model_in(field.annotation) if field else None


def _field(model: type[BaseModel], loc: Location) -> FieldInfo | None:
    """The field that ``loc`` leads to, through lists; None where there is none."""
    current: type[BaseModel] | None = model
    found: FieldInfo | None = None
    for name in (part for part in loc if isinstance(part, str)):
        found = next((field for field in _fields(current) if field.alias == name), None)
        if found is None:
            return None
        current = _model_in(found.annotation)
    return found


def _fields(model: type[BaseModel] | None) -> tuple[FieldInfo, ...]:
    return tuple(model.model_fields.values()) if model else ()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _words(field: FieldInfo | None) -> tuple[str, ...]:
    """The words of an enumeration, wherever in the field's type it stands."""

    def within(annotation: Any) -> tuple[str, ...]:
        if get_origin(annotation) is Literal:
            return tuple(map(str, get_args(annotation)))
        return next((found for arg in get_args(annotation) if (found := within(arg))), ())

    return within(field.annotation) if field else ()


def _pattern(field: FieldInfo | None) -> str:
    """The pattern that the field's text has to match; empty without one."""

    def within(metadata: Iterable[Any], annotation: Any) -> str:
        for entry in metadata:
            if found := getattr(entry, "pattern", None) or within(getattr(entry, "metadata", ()), None):
                return str(found)
        inner = getattr(annotation, "__metadata__", ())
        return next((found for arg in get_args(annotation) if (found := within(inner, arg))), "")

    return within(field.metadata, field.annotation) if field else ""


def _lower(text: str) -> str:
    """The sentence's start in the middle of another one; words in capitals stay."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
