"""The tree of declarations: a layer holds Params and other layers, and says which ops to call on a value."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.ops.contract import Ops, Param, Value


class Layer:
    """A plain declaration. Its Params and children are found among its attributes; it holds no numbers."""

    def __call__(self, op: Ops, x: Value) -> Value:
        """One pass over a value: x [tokens, width] unless the layer says otherwise."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it computes")

    def children(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) of each direct child in order of assignment; a list's members are `name.0`,
        `name.1`.
        """
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list | tuple):
                for i, member in enumerate(value):
                    if isinstance(member, Layer):
                        yield f"{name}.{i}", member

    def own_params(self) -> Iterator[tuple[str, Param]]:
        """(attribute, Param) of this layer alone."""
        for name, value in vars(self).items():
            if isinstance(value, Param):
                yield name, value

    def walk(self, path: str = "") -> Iterator[tuple[str, Layer]]:
        """(path, layer) of this layer and all below it; the root's path is empty."""
        yield path, self
        for name, child in self.children():
            yield from child.walk(f"{path}.{name}" if path else name)

    def named_params(self) -> Iterator[tuple[str, Param]]:
        """(path, Param) of the whole tree, a shared (tied) Param once, under its first path."""
        seen: set[int] = set()
        for path, layer in self.walk():
            for name, param in layer.own_params():
                if id(param) not in seen:
                    seen.add(id(param))
                    yield (f"{path}.{name}" if path else name), param
