"""Responses that are kept: in memory, bounded by count and bytes, each for its key only."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence

import msgspec

from octavo.errors import NotFound, QueueFull
from octavo.server.openai.responses.items import Item
from octavo.server.openai.responses.replies import ResponseReply

_ENCODE = msgspec.json.Encoder().encode
_RETRY_S = 10.0


class Record:
    """One response, what it answered, and while it runs in the background the task that makes it."""

    def __init__(self, reply: ResponseReply, given: Sequence[Item], before: Sequence[Item]) -> None:
        """`given`: this request's items; `before`: the conversation up to them."""
        self.reply = reply
        self.given = tuple(given)
        self.before = tuple(before)
        self.task: asyncio.Task[None] | None = None
        self.events: list[bytes] | None = None
        """The stream of a background response, event by event; None: there is none to be had again."""
        self.done = False
        self._news = asyncio.Event()

    @property
    def output(self) -> tuple[Item, ...]:
        """What was answered, as items of the next request; only whole calls are."""
        items = [msgspec.to_builtins(item) for item in self.reply.output]
        return tuple(i for i in items if i["type"] != "function_call" or i["status"] == "completed")

    def tell(self, events: bytes) -> None:
        """Keep more of the stream and wake those who follow it."""
        if self.events is not None and events:
            self.events.extend(part + b"\n\n" for part in events.split(b"\n\n")[:-1])
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """The stream from event number `start` on, until the response is done."""
        while self.events is not None:
            news = self._news
            if start < len(self.events):
                yield b"".join(self.events[start:])
                start = len(self.events)
            elif self.done:
                return
            else:
                await news.wait()

    def size_bytes(self) -> int:
        """About what it holds in memory, as JSON."""
        texts = (self.reply, self.given, self.before)
        return sum(len(_ENCODE(t)) for t in texts) + sum(map(len, self.events or ()))


class Store:
    """Records by (key holder, id), the least recently used forgotten first; running ones never."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._records: OrderedDict[tuple[str, str], Record] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        self._items: dict[tuple[str, str], tuple[str, Item]] = {}
        """By (key holder, item's id): the latest response that has the item, and the item."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def held_bytes(self) -> int:
        """What the finished ones hold."""
        return self._bytes

    def has(self, tenant: str, name: str) -> bool:
        """Whether that response is kept."""
        return (tenant, name) in self._records

    def get(self, tenant: str, name: str) -> Record:
        """A record of that key holder. Raises NotFound."""
        found = self._records.get((tenant, name))
        if found is None:
            shown = name if len(name) <= 80 else name[:77] + "..."
            raise NotFound(
                f"There is no response {shown!r}.",
                hint="Responses are kept in memory, the latest ones only.",
                param="response_id",
            )
        self._records.move_to_end((tenant, name))
        return found

    def find_item(self, tenant: str, name: str) -> Item | None:
        """An item that a finished response was given or has answered, by its id."""
        found = self._items.get((tenant, name))
        return found[1] if found is not None else None

    def hold(self, tenant: str, record: Record) -> None:
        """Keep a response that is being made. Raises QueueFull when all that is kept is being made."""
        running = sum(1 for other in self._records.values() if not other.done)
        if running >= self._most:
            raise QueueFull(f"{running} responses are being made in the background.", retry_after_s=_RETRY_S)
        self._records[(tenant, record.reply.id)] = record
        self._trim()

    def keep(self, tenant: str, record: Record) -> None:
        """Keep a response that is finished, unless it is larger than all there is room for."""
        record.done = True
        key = (tenant, record.reply.id)
        size = record.size_bytes()
        if size > self._most_bytes or self._most == 0:
            self._records.pop(key, None)
            return
        self._records[key] = record
        self._records.move_to_end(key)
        self._bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        for item in (*record.given, *record.output):
            self._items[tenant, item["id"]] = (record.reply.id, item)
        self._trim()

    def remove(self, tenant: str, name: str) -> Record:
        """Forget a response. Raises NotFound."""
        found = self.get(tenant, name)
        self._forget((tenant, name))
        return found

    def _forget(self, key: tuple[str, str]) -> None:
        tenant, name = key
        record = self._records.pop(key)
        self._bytes -= self._sizes.pop(key, 0)
        for item in (*record.given, *record.output):
            if self._items.get((tenant, item["id"]), ("",))[0] == name:
                del self._items[tenant, item["id"]]

    def _trim(self) -> None:
        """Forget old ones until the bounds hold."""
        for key in [key for key, record in self._records.items() if record.done]:
            if len(self._records) <= self._most and self._bytes <= self._most_bytes:
                return
            self._forget(key)
