"""What was used lately, kept in memory up to a total weight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key; the least recently used go when they weigh too much together."""

    def __init__(self, room: int) -> None:
        """``room``: most weight kept; one value is kept whatever it weighs."""
        self.room, self.weight = room, 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, make: Callable[[], tuple[V, int]]) -> V:
        """The value of a key; if it is not kept, made now, with its weight."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value, weight = make()  # may take long, and may look here for others
        self.put(key, value, weight)
        return value

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value."""
        with self._lock:
            self.weight += weight - self._kept.pop(key, (value, 0))[1]
            self._kept[key] = value, weight
            while self.weight > self.room and len(self._kept) > 1:
                self.weight -= self._kept.popitem(last=False)[1][1]
