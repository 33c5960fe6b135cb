"""Choice of the vision-language model that a config names for one segment: on a server or local."""

from kaleido_jax.annotate.vlm.endpoint import Endpoint
from kaleido_jax.annotate.vlm.local_model import LocalModel
from kaleido_jax.annotate.vlm.model import VisionModel
from kaleido_jax.config.schema import Annotate, AnnotateBbox, AnnotateText


def open_model(config: Annotate, settings: AnnotateText | AnnotateBbox, *, max_tokens: int) -> VisionModel:
    """The model of `settings`, a group of `config` whose kind is "openai" or "transformers".

    Raises:
      UserError: no server or key is named, a package or the folder of weights is missing.
    """
    if settings.kind == "openai":
        return Endpoint(config.endpoint, max_tokens=max_tokens, model=settings.model)
    return LocalModel(settings.model, max_tokens=max_tokens, batch_size=settings.batch_size)
