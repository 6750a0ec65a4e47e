"""One JSON object of a file of items, with checked access to its fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks import TaskError

Document = dict[str, Any]
"""An item in the schema of lm-eval's own data set."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One JSON object of a file, with checked access to its fields."""

    place: str
    """``file, line 3``: what an error message calls it."""
    fields: Mapping[str, Any]

    def wrong(self, what: str) -> TaskError:
        return TaskError(f"{self.place}: {what}")

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        return self._checked_text(key, self.fields.get(key), may_be_empty)

    def texts(self, key: str) -> list[str]:
        values = self.fields.get(key)
        if not isinstance(values, list) or len(values) < 2:
            raise self.wrong(f"{key!r} is {values!r:.60}, not a list of two or more strings")
        return [self._checked_text(key, value, False) for value in values]

    def index(self, key: str, count: int) -> int:
        """A number below ``count``, written as such or as a string (the hub's HellaSwag does)."""
        value = self.fields.get(key)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise self.wrong(f"{key!r} is {value!r:.60}, not the number of one of {count} answers (0..{count - 1})")
        return value

    def _checked_text(self, key: str, value: Any, may_be_empty: bool) -> str:
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            raise self.wrong(f"{key!r} is {value!r:.60}, not a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.wrong(f"{key!r} holds half of a surrogate pair at {error.start}; it is not Unicode") from error
        return value
