"""Settings that are checked when made, with messages for people."""

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dipct.errors import ConfigurationError


class CheckedSettings(BaseModel):
    """Settings by name: unknown names and impossible values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                if (
                    isinstance(value, bool)
                    and name in cls.model_fields
                    and not cls._is_switch(name)
                ):
                    raise ValueError(f"{name} cannot be true or false; got {value}")
        return values

    @classmethod
    def _is_switch(cls, name: str) -> bool:
        annotation = cls.model_fields[name].annotation
        kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else [annotation]
        return bool in kinds

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Check a mapping of settings.

        Raises:
            ConfigurationError: naming every wrong setting, with the nearest known names of
                unknown ones.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigurationError(_explain(error.errors(), list(cls.model_fields))) from None

    def to_values(self) -> dict[str, Any]:
        """The settings that are set, as plain values."""
        return self.model_dump(exclude_none=True)


def refuse_both(given: CheckedSettings | None, values: Mapping[str, Any]) -> None:
    """Raise a :class:`ConfigurationError` if settings are given whole and by name.

    Args:
        given: whole, or None.
        values: by name.
    """
    if given is not None and values:
        raise ConfigurationError(
            f"Give settings whole or by name, not both; got {', '.join(values)} too."
        )


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """What to say about a name that does not exist.

    Args:
        kind: of what, in one or two words.
        name: the name; upper and lower case are alike.
        known: those that exist.
    """
    by_key = {each.lower(): each for each in known}
    close = [by_key[key] for key in get_close_matches(name.lower(), by_key, n=3)]
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are {', '.join(known)}."
    return f"There is no {kind} {name!r}. {hint}"


def unknown_setting(key: str, known: Sequence[str]) -> str:
    """What to say about a setting that does not exist.

    Args:
        key: its name.
        known: names of those that do.
    """
    return unknown_name("setting", key, known)


def _explain(details: Sequence[Any], known: Sequence[str]) -> str:
    sentences = []
    # A setting of two types has two entries, one after the other.
    for name, group in groupby(details, key=lambda detail: str((*detail["loc"], "")[0])):
        found = list(group)
        if found[0]["type"] == "extra_forbidden":
            sentences.append(unknown_setting(name, known))
            continue
        messages = [detail["msg"].removeprefix("Value error, ") for detail in found]
        if name:
            wanted = " or ".join(message[0].lower() + message[1:] for message in messages)
            sentences.append(f"{name}: {wanted}; got {found[0]['input']!r}.")
        else:
            sentences += [f"{_as_sentence(message, known)}." for message in messages]
    return " ".join(sentences)


def _as_sentence(message: str, known: Sequence[str]) -> str:
    """With a capital, unless it begins with the name of a setting."""
    if message.split()[0] in known:
        return message
    return message[0].upper() + message[1:]
