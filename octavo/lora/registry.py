"""The adapters that a server or an LLM knows by name."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from octavo.errors import BadRequest, NotFound
from octavo.log import logger
from octavo.lora.load import AdapterLoader
from octavo.lora.store import AdapterStore
from octavo.types.lora import Adapter, LoRARequest

log = logger(__name__)


@dataclass(frozen=True)
class Named:
    """One adapter as it was given."""

    adapter: Adapter
    path: str
    """As written."""
    base: str | None
    """The base model's name, when whoever gave it said one."""
    number: int
    """From 1; a script's own, or the next free one."""


class Adapters:
    """Names to adapters. Every method may be called from any thread; `add` takes as long as reading takes."""

    def __init__(self, loader: AdapterLoader, store: AdapterStore, reserved: Iterable[str] = ()) -> None:
        """`reserved`: the base model's names."""
        self._loader = loader
        self._store = store
        self._reserved = frozenset(reserved)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._named: dict[str, Named] = {}

    def list(self) -> tuple[Named, ...]:
        """In the order in which they were added."""
        with self._lock:
            return tuple(self._named.values())

    def find(self, name: str) -> Adapter | None:
        """The adapter of that name."""
        with self._lock:
            named = self._named.get(name)
        return named.adapter if named else None

    def add(
        self, name: str, path: str, *, base: str | None = None, in_place: bool = False, number: int = 0
    ) -> Adapter:
        """Read an adapter and give it a name. Raises NotFound when there is none at `path`, AdapterError for
        one that does not fit the model, BadRequest for a name that is taken (`in_place`: it is replaced).
        """
        self._check_name(name, in_place)
        loaded = self._loader.read(name, path)
        with self._lock:
            before = self._named.get(name)
            if before is not None and not in_place:
                raise _taken(name)
            number = number or 1 + max((named.number for named in self._named.values()), default=0)
            self._named[name] = Named(loaded.adapter, path, base, number)
        self._store.offer(loaded.adapter, loaded.parts)
        if before is not None and before.adapter != loaded.adapter:
            self._store.drop(before.adapter)
        log.info(
            "Adapter %s: rank %d, %d matrices, %.1f MiB, from %s",
            name,
            loaded.rank,
            len(loaded.parts),
            loaded.nbytes / 2**20,
            path,
        )
        return loaded.adapter

    def remove(self, name: str) -> None:
        """Forget a name; requests that run with it finish. Raises NotFound."""
        with self._lock:
            named = self._named.pop(name, None)
        if named is None:
            raise NotFound(f"The lora adapter {name[:200]!r} cannot be found.", param="lora_name")
        self._store.drop(named.adapter)

    def request(self, wanted: LoRARequest) -> Adapter:
        """The adapter that a script asks for, read when it is new. Raises as `add`; BadRequest when the name
        stands for another path.
        """
        if (known := self._known(wanted)) is not None:
            return known
        with self._reading:  # others that ask for it meanwhile find it here
            return self._known(wanted) or self.add(
                wanted.lora_name,
                wanted.lora_path,
                base=wanted.base_model_name,
                in_place=wanted.load_inplace,
                number=wanted.lora_int_id,
            )

    def _known(self, wanted: LoRARequest) -> Adapter | None:
        """The adapter when it need not be read. Raises BadRequest when its name stands for another path."""
        with self._lock:
            named = self._named.get(wanted.lora_name)
        if named is None or wanted.load_inplace:
            return None
        if named.path != wanted.lora_path:
            raise BadRequest(
                f"The adapter {wanted.lora_name!r} was read from {named.path}, not {wanted.lora_path}.",
                hint="Use another lora_name, or load_inplace=True.",
                param="lora_request",
            )
        return named.adapter

    def _check_name(self, name: str, in_place: bool) -> None:
        if not name or len(name) > 200 or not name.isprintable():
            raise BadRequest("A lora_name has 1 to 200 printable characters.", param="lora_name")
        if name in self._reserved:
            raise BadRequest(f"{name!r} is the base model's own name.", param="lora_name")
        if not in_place and self.find(name) is not None:
            raise _taken(name)


def _taken(name: str) -> BadRequest:
    return BadRequest(
        f"The lora adapter {name!r} has already been loaded.",
        hint="If you want to load the adapter in place, set 'load_inplace' to True.",
        param="lora_name",
    )
