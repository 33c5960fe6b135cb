"""train: the records, the training, the grid and the measures; each is skipped where it is done already."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.verbs import evaluate, sample
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, say

HELP = "train, and sample a grid at the end; resumes from the workdir's latest checkpoint"
FLAGS = (CONFIG, WORKDIR)


def run(config: Config, workdir: Path) -> None:
    """Trains, then samples and measures as the config says."""
    if config.recipe == "figure3":
        from kaleido_jax.evaluate import figure3

        say(figure3.run(config, workdir))
        return
    from kaleido_jax.train.fit import fit

    if not fit(config, workdir):
        say(f"training is finished: {workdir / 'checkpoints'} holds step {config.train.num_steps}")
    if config.train.sample_at_end:
        sample.run(config, workdir)
    if config.eval.protocol != "none":
        evaluate.run(config, workdir)
