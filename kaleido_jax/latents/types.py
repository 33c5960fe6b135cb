"""Latents, the z of one image in readable form: any of the registered segments."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.validity import check_keys, latents_error


class Latents:
    """The z of one image: immutable, with one attribute for each segment.

    None means that a segment was not made, an empty tuple that nothing was found. Lists become tuples. Only `validate`
    checks the values, so that latents that cannot be written can still be shown and corrected.
    """

    __slots__ = ("_values",)
    _values: dict[str, Hashable]

    def __init__(self, **segments: Any) -> None:
        """Keeps the segments that are not None.

        Raises:
          LatentsError: unknown name.
        """
        frozen = {name: registry.get(name).freeze(value) for name, value in segments.items() if value is not None}
        in_order = {name: frozen[name] for name in registry.names() if name in frozen}
        object.__setattr__(self, "_values", in_order)

    def __getattr__(self, name: str) -> Any:
        # Called only if there is no method of that name. During unpickling `_values` itself may be missing.
        if name != "_values" and (name in self._values or name in registry.names()):
            return self._values.get(name)
        raise AttributeError(f"latents have no segment {name!r}; they have {', '.join(registry.names())}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"latents are immutable; use replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"latents are immutable; use replace({name}=None)")

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Latents) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Latents({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_values, (self._values,)

    def replace(self, **segments: Any) -> "Latents":
        """The same latents with other values of these segments; None removes one."""
        return Latents(**self._values | segments)

    def to_json(self) -> dict[str, Any]:
        """The JSON form (plain dicts, lists, ints and strings); absent segments are left out."""
        return {name: registry.get(name).to_json(value) for name, value in self._values.items()}

    @staticmethod
    def from_json(value: Any) -> "Latents":
        """Reads and validates the JSON form.

        Raises:
          LatentsError: unknown key, wrong type or invalid latents.
        """
        check_keys(value, registry.names(), "latents")
        read = {n: registry.get(n).from_json(v) for n, v in value.items() if v is not None}
        return validate(Latents(**read))


def _from_values(values: Mapping[str, Hashable]) -> Latents:
    return Latents(**values)


def segments_of(z: Latents) -> tuple[str, ...]:
    """The segments that z holds, in order."""
    return tuple(name for name in registry.names() if getattr(z, name) is not None)


def select(z: Latents, segments: Sequence[str]) -> Latents:
    """The given segments of z, without the others.

    Raises:
      LatentsError: unknown or disordered segment names, or z lacks one of them.
    """
    check_segments(segments)
    for segment in segments:
        if getattr(z, segment) is None:
            have = ", ".join(segments_of(z)) or "no segment"
            raise latents_error(
                f"latents without {segment}", f"all of {', '.join(segments)}", f"add it; these have {have}"
            )
    return Latents(**{s: getattr(z, s) for s in segments})


def check_segments(segments: Sequence[str]) -> tuple[str, ...]:
    """The segments as a tuple, if they are registered, distinct and in order.

    Raises:
      LatentsError: otherwise.
    """
    for segment in segments:
        registry.get(segment)
    in_order = tuple(s for s in registry.names() if s in segments)
    if tuple(segments) != in_order:
        raise latents_error(f"segments {tuple(segments)}", f"{in_order}", "name each once, in this order")
    return in_order


def validate(z: Latents) -> Latents:
    """Returns z unchanged if it is valid, which implies parse(serialize(z)) == z.

    Raises:
      LatentsError: names the segment, what was found and how to correct it.
    """
    for segment in segments_of(z):
        registry.get(segment).check(getattr(z, segment))
    return z
