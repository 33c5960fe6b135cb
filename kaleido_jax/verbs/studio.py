"""studio: a page on this machine where latents are seen, edited and drawn again."""

from pathlib import Path

from kaleido_jax.errors import Terminated, user_error
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.runtime.signals import end_at_once
from kaleido_jax.verbs.verb import Flag, say

HELP = "a page on 127.0.0.1 where latents are seen, edited and drawn again; needs no config"
MODEL, BASELINE, PORT = "emoji-tiny", "emoji-tiny-baseline", 7860
FLAGS = (
    Flag(
        name="model",
        value="DIR",
        help=f"a workdir, an exported folder or the name of a bundled model (the default: {MODEL})",
    ),
    Flag(
        name="baseline",
        value="DIR",
        help=f"a model without latents for the modes view (the default beside {MODEL}: {BASELINE})",
    ),
    Flag(name="port", value="N", help=f"of the page (the default: {PORT}; 0: any free one)", kind=int),
)


def run(model: str | None, baseline: str | None, port: int | None) -> None:
    """Serves the page until Ctrl-C."""
    check_backend()
    from kaleido_jax.sampling.pipeline import find_model
    from kaleido_jax.studio.engine import Engine, check_model
    from kaleido_jax.studio.serve import listen, serve

    name = model or MODEL
    if baseline is None and Path(name).name == MODEL:
        baseline = BASELINE
    paths = [one and find_model(one) for one in (name, baseline)]
    port = PORT if port is None else port
    if not 0 <= port < 2**16:
        raise user_error(f"--port={port}", "0 to 65535", "correct it")
    check_model(paths[0])  # while the terminal is looked at; the page shows a model without its baseline too
    listening = listen(port)
    say(f"studio: http://127.0.0.1:{listening.getsockname()[1]} (Ctrl-C ends it)")
    try:
        serve(Engine(*paths), listening)
    except KeyboardInterrupt as stopped:  # the usual end; the worker may be loading or compiling a model
        end_at_once(75 if isinstance(stopped, Terminated) else 130)
