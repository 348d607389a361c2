"""Typed access to GGUF key-values: every answer is checked, every complaint names the key and the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from quantry import HeaderError

__all__ = ["REQUIRED", "Metadata"]

REQUIRED: Final[Any] = object()


class Metadata:
    """Key-values below one prefix ("gemma3." or "tokenizer.ggml.")."""

    def __init__(self, values: Mapping[str, Any], prefix: str, file: str) -> None:
        self._values = values
        self._prefix = prefix
        self._file = file

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    def wrong(self, key: str, problem: str) -> HeaderError:
        """The error that says what is wrong with a key."""
        return HeaderError(f"metadata key {self._prefix + key!r} {problem}", file=self._file)

    def raw(self, key: str, default: Any = REQUIRED) -> Any:
        """The value as it is; `default` where the key is absent. Raises HeaderError naming a required key."""
        value = self._values.get(self._prefix + key, default)
        if value is REQUIRED:
            raise self.wrong(key, "is missing")
        return value

    def integer(self, key: str, default: Any = REQUIRED, minimum: int = 1) -> Any:
        """A whole number; an array of equal numbers, one per layer, counts as that number."""
        value = self._uniform(key, self.raw(key, default))
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.wrong(key, f"must be a whole number of at least {minimum}, found {value!r}")
        return value

    def real(self, key: str, default: Any = REQUIRED) -> Any:
        """A finite number."""
        value = self._uniform(key, self.raw(key, default))
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(key, f"must be a finite number, found {value!r}")
        return float(value)

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A string."""
        value = self.raw(key, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, f"must be a string, found {type(value).__name__}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, found {value!r}")
        return value

    def array(self, key: str, of: type | tuple[type, ...], default: Any = REQUIRED) -> list[Any]:
        """All values of an array, read at once. GGUF arrays have one type: the first element tells it."""
        value = self._sequence(key, self.raw(key, default))
        found = list(value)
        if found and not isinstance(found[0], of):
            raise self.wrong(key, f"is an array of {type(found[0]).__name__}")
        return found

    def length(self, key: str) -> int:
        """Elements of an array, without reading it; 0 where the key is absent."""
        return len(self._sequence(key, self.raw(key, ())))

    def token(self, key: str, vocab_size: int) -> int | None:
        """A token id below `vocab_size`, None where the key is absent."""
        value = self.integer(key, None, minimum=0)
        if value is not None and value >= vocab_size:
            raise self.wrong(key, f"is {value}, but the vocabulary has {vocab_size} tokens")
        return value  # type: ignore[no-any-return]

    def _sequence(self, key: str, value: Any) -> Sequence[Any]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.wrong(key, f"must be an array, found {type(value).__name__}")
        return value

    def _uniform(self, key: str, value: Any) -> Any:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return value
        if not value:
            raise self.wrong(key, "is an empty array")
        if any(item != value[0] for item in value):
            raise self.wrong(
                key, f"differs between layers ({list(value[:4])}…), which no known model class can hold"
            )
        return value[0]
