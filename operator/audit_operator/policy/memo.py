"""Answers worth remembering, within bounds that hold whoever asks.

Controllers ask for the same few thousand things all day, so that an answer is mostly there already. But every client,
even one that nobody authenticated, can ask for what never was, without end and at great length.
"""

from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")
_T = TypeVar("_T")


LIMIT = 8192
"""Questions. When they are too many all are forgotten: what matters is asked again at once."""

LONGEST = 1024
"""Characters of a question. A URL may have a million; no controller's has more than a few hundred."""


class Memo(dict[_K, _V]):
    """Answers by question: some megabytes at most. Reading is ``get``, as fast as a dictionary's."""

    __slots__ = ("_limit",)

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__()
        self._limit = limit

    def remember(self, question: _K, answer: _V, length: int) -> _V:
        """The answer. It is kept unless the question is longer (``length``, characters) than those worth keeping."""
        if length <= LONGEST:
            if len(self) >= self._limit:
                self.clear()
            self[question] = answer
        return answer


class Same(Generic[_T]):
    """A value that equals itself only: for whoever gives the same object again, and content is long to compare."""

    __slots__ = ("value",)

    def __init__(self, value: _T) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value
