"""plan: the parameters of a config, counted from shapes alone."""

import dataclasses
from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, say

HELP = "the number of parameters of a config, from shapes alone; trains nothing"
FLAGS = (CONFIG, dataclasses.replace(WORKDIR, missing=""))  # so that any command with this verb becomes a plan


def run(config: Config, workdir: Path | None = None) -> None:
    """Prints the number of parameters of each part, and whether it is trained or frozen."""
    check_backend()
    del workdir
    from kaleido_jax.latents.tokenizer import load_tokenizer
    from kaleido_jax.models.kaleido import abstract_params, build_model, count_params, split_frozen

    tokenizer = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size)
    params = abstract_params(build_model(config, tokenizer.base_vocab_size))
    trainable, frozen = split_frozen(params, config)
    for name, part in params.items():
        state = "trainable" if name in trainable else "frozen"
        say(f"{name:<10} {count_params(part):>15,} parameters, {state}")
    say(f"{'total':<10} {count_params(trainable):>15,} trainable, {count_params(frozen):,} frozen")
