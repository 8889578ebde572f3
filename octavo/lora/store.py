"""Where a model's adapters stand: a number of places, the least recently used one given to whoever comes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from octavo.errors import OctavoError
from octavo.log import logger
from octavo.ops.adapters import Adaptable, AdapterParts
from octavo.types.lora import Adapter

log = logger(__name__)


class AdapterStore:
    """Keeps adapters in the model's places. `place` runs where the steps run, between them; the rest
    anywhere.
    """

    def __init__(self, model: Adaptable, read: Callable[[Adapter], AdapterParts], places: int) -> None:
        """`read` gives the numbers of an adapter that has no place (any more); it may raise OctavoError."""
        self._model = model
        self._read = read
        self._lock = threading.Lock()
        self._offered: OrderedDict[str, AdapterParts] = OrderedDict()
        self._dropped: set[str] = set()
        self._held: OrderedDict[str, int] = OrderedDict()
        """Adapter's key to its place, the least recently used first."""
        self._free = list(range(places - 1, -1, -1))
        self._places = places

    def offer(self, adapter: Adapter, parts: AdapterParts) -> None:
        """Numbers that were just read, so that the first step need not read them again."""
        with self._lock:
            self._dropped.discard(adapter.key)
            self._offered[adapter.key] = parts
            while len(self._offered) > self._places:
                self._offered.popitem(last=False)

    def drop(self, adapter: Adapter) -> None:
        """The adapter's name is gone: its place is free as soon as no running sequence needs it."""
        with self._lock:
            self._offered.pop(adapter.key, None)
            self._dropped.add(adapter.key)

    def place(self, wanted: Iterable[Adapter]) -> dict[str, int | str]:
        """Give every adapter of a step its place: key -> its number, or why it cannot be had."""
        adapters = {adapter.key: adapter for adapter in wanted}
        self._let_go(set(adapters))
        answers: dict[str, int | str] = {}
        for key in adapters:
            if key in self._held:
                self._held.move_to_end(key)
                answers[key] = self._held[key]
        for key, adapter in adapters.items():
            if key not in answers:
                answers[key] = self._load(adapter, adapters.keys())
        return answers

    def _let_go(self, wanted: set[str]) -> None:
        with self._lock:
            gone = self._dropped - wanted
            self._dropped -= gone
        for key in gone & self._held.keys():
            slot = self._held.pop(key)
            self._model.set_adapter(slot, None)
            self._free.append(slot)

    def _load(self, adapter: Adapter, wanted: Iterable[str]) -> int | str:
        with self._lock:
            parts = self._offered.pop(adapter.key, None)
        try:
            parts = self._read(adapter) if parts is None else parts
        except OctavoError as error:
            log.error("The adapter %r cannot be read again: %s", adapter.name, error)
            return f"The adapter {adapter.name!r} could not be read; the server's log says why."
        slot = self._free.pop() if self._free else self._evict(set(wanted))
        self._model.set_adapter(slot, parts)
        self._held[adapter.key] = slot
        return slot

    def _evict(self, wanted: set[str]) -> int:
        key = next(key for key in self._held if key not in wanted)
        return self._held.pop(key)
