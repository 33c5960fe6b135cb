"""Registry of data sources: each file in this folder registers its own; others may be registered from outside."""

import importlib
import pkgutil

from kaleido_jax.config.schema import Data, allow
from kaleido_jax.data.sources.base import Opener, Source, SourceKind, SourceSettings
from kaleido_jax.errors import user_error

_KINDS: dict[str, SourceKind] = {}


def register(name: str, opener: Opener, *, splits: tuple[str, ...] = ()) -> None:
    """Adds a kind of source under a name for config.data.source.

    Args:
      name: of the kind; replaces an earlier kind of this name.
      opener: SourceSettings -> Source, at the top level of a module, so that worker processes can import it.
      splits: of a generated kind, whose records `train` makes itself; see SourceKind.
    """
    allow("data.source", name)
    _KINDS[name] = SourceKind(name=name, open=opener, splits=splits)


def source_kind(name: str) -> SourceKind:
    """The registered kind.

    Raises:
      UserError: no kind has this name.
    """
    if name not in _KINDS:
        for module in pkgutil.iter_modules(__path__):  # only now, since loading a config must stay fast
            importlib.import_module(f"{__name__}.{module.name}")
    if name not in _KINDS:
        raise user_error(f"data source {name!r}", f"one of {', '.join(sorted(_KINDS))}", "correct config.data.source")
    return _KINDS[name]


def open_source(data: Data, *, seed: int = 0, image_size: int = 32) -> Source:
    """The source that config.data names.

    Args:
      data: config.data.
      seed: of generated examples.
      image_size: px of generated examples; other sources keep the size of their files.

    Raises:
      UserError: unknown name or split, a size out of range, or a table that is missing or damaged.
    """
    return source_kind(data.source).open(SourceSettings(data=data, seed=seed, image_size=image_size))
