"""Export of sampling as StableHLO: programs that draw a picture with JAX alone, without this package.

Each program is what the pipeline runs, with a symbolic batch, lowered for CPU, CUDA and TPU together by `jax.export`.
Weights and the grammar's tables are inputs, so that one file of weights serves all programs and they stay small. A
program maps two flat dicts, parameters and arrays such as "captions/states", to a third; what one returns, others take
under the same names. docs/export.md has a program that draws with them.
"""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from safetensors.numpy import save_file

from kaleido_jax.array_types import Keys
from kaleido_jax.config.schema import Config
from kaleido_jax.diffusion import samplers
from kaleido_jax.latents.codec import Codec
from kaleido_jax.models import cpu
from kaleido_jax.models.kaleido import Kaleido, abstract_params, build_model
from kaleido_jax.models.t5 import EOS, PAD
from kaleido_jax.sampling import functional

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST, GRAMMAR = "manifest.json", "grammar.safetensors"
FORMAT = 1  # of the manifest

Trees = dict[str, Any]  # of arrays, by name
Named = dict[str, Any]  # the leaves of trees under the names of `named`: arrays or their shapes


class Known(NamedTuple):
    """A tree of which only the form is known."""

    structure: jax.tree_util.PyTreeDef
    shapes: Named  # of the leaves, in their order in the tree


@dataclass(frozen=True, kw_only=True)
class Program:
    """One function of sampling: (params by part, **trees) -> trees."""

    run: Callable[..., Trees]
    parts: tuple[str, ...]  # of the parameters
    inputs: tuple[str, ...]


def write_stablehlo(config: Config, codec: Codec, folder: Path) -> None:
    """Writes a file for each program, the grammar's tables, and manifest.json, which describes them.

    The programs take float32 parameters under the names in model.safetensors, which is not written here.

    Args:
      config: of the model. Sampler, guidance rule and threshold of config.sample are part of the programs; the number
        of steps, gamma and the prior's temperature, top_k and top_p are not.
      codec: of its latents.
      folder: a new one.

    Raises:
      UserError: the vocabulary lacks a piece that the grammar needs.
    """
    folder.mkdir()
    model = build_model(config, codec.tokenizer.base_vocab_size)
    params, described = flatten_dict(abstract_params(model), sep="/"), {}
    known = _given(config, codec if model.has_prior else None)
    for name, program in _programs(model, config).items():
        own = {path: leaf for path, leaf in params.items() if path.split("/")[0] in program.parts}
        inputs = {one: known[one] for one in program.inputs}
        exported, outputs = _exported(program, own, inputs)
        (folder / f"{name}.bin").write_bytes(exported.serialize())
        known |= outputs
        described[name] = {"file": f"{name}.bin", "parts": program.parts}
        described[name] |= {"inputs": _described(_leaves(inputs)), "outputs": _described(_leaves(outputs))}
    if model.has_prior:
        save_file(_tables(codec), folder / GRAMMAR)
        (folder / GRAMMAR).chmod(0o644)  # the library makes it readable for the owner only
    manifest = _settings(config, codec) | {"parameters": _described(params), "programs": described}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def named(trees: Trees) -> Named:
    """The leaves by their paths, e.g. "captions/states"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(trees)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _leaves(trees: dict[str, Known]) -> Named:
    return {name: shape for tree in trees.values() for name, shape in tree.shapes.items()}


def _exported(program: Program, params: Named, inputs: dict[str, Known]) -> tuple[export.Exported, dict[str, Known]]:
    """(the program as a function of two flat dicts, its outputs)."""
    made = {}  # tree -> (structure, names of its leaves), known when the function is traced

    def flat(params: Named, arrays: Named) -> Named:
        trees = {
            name: jax.tree.unflatten(one.structure, [arrays[leaf] for leaf in one.shapes])
            for name, one in inputs.items()
        }
        outputs = program.run(unflatten_dict(params, sep="/"), **trees)
        made.update({name: (jax.tree.structure(tree), list(named({name: tree}))) for name, tree in outputs.items()})
        return named(outputs)

    with cpu.each_platform():
        exported = export.export(jax.jit(flat), platforms=PLATFORMS)(params, _leaves(inputs))
    shapes = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    outputs = {
        name: Known(structure, {leaf: jax.ShapeDtypeStruct(shapes[leaf].shape, shapes[leaf].dtype) for leaf in leaves})
        for name, (structure, leaves) in made.items()
    }
    return exported, outputs


# ------------------------------------------------------------------------------------------ the programs
def _given(config: Config, codec: Codec | None) -> dict[str, Known]:
    """What the user of the programs gives; `codec` is None for a baseline."""
    (b,) = export.symbolic_shape("b")
    max_len = config.latents.max_latents_tokens
    given = {
        "tokens": ((b, config.data.max_caption_tokens), np.int32),
        "image_keys": ((b, 2), np.uint32),
        "gamma": ((), np.float32),
        "evaluation": ((3,), np.int32),
    }
    if codec is not None:
        given |= {
            "latents_keys": ((b, 2), np.uint32),
            "forced": ((b, max_len), np.int32),
            "temperature": ((b,), np.float32),
            "top_k": ((b,), np.int32),
            "top_p": ((b,), np.float32),
            "z": ((b, max_len), np.int32),
        }
    leaf = jax.tree.structure(0)
    known = {name: Known(leaf, {name: jax.ShapeDtypeStruct(*one)}) for name, one in given.items()}
    if codec is not None:
        shapes = {n: jax.ShapeDtypeStruct(table.shape, table.dtype) for n, table in _tables(codec).items()}
        known["grammar"] = Known(jax.tree.structure(codec.constraint), shapes)
    return known


def _tables(codec: Codec) -> dict[str, np.ndarray]:
    tables = named({"grammar": codec.constraint})  # int64 from numpy becomes int32, as it does on the device
    return {name: np.asarray(table, jax.dtypes.canonicalize_dtype(table.dtype)) for name, table in tables.items()}


def _programs(model: Kaleido, config: Config) -> dict[str, Program]:
    """In the order of their use. What they compute and how often they are called is that of `BatchedModel`."""
    kinds = {"diffusion": config.diffusion, "sample": config.sample}
    max_len = config.latents.max_latents_tokens
    settings = ("temperature", "top_k", "top_p")

    def encode(params: Trees, tokens: Any) -> Trees:
        return {"captions": functional.encode_captions(model, params, tokens)}

    def start_latents(params: Trees, captions: Any, grammar: Any) -> Trees:
        options = {"max_len": max_len, "constraint": grammar}
        return {"latents": functional.start_latents(model, params, captions, **options)}

    def latents_step(
        params: Trees, captions: Any, grammar: Any, latents_keys: Any, latents: Any, **options: Any
    ) -> Trees:
        inputs = captions, _keys(latents_keys), latents
        return {"latents": functional.latents_step(model, params, *inputs, constraint=grammar, **options)}

    def condition(params: Trees, captions: Any, z: Any = None) -> Trees:
        z = jnp.zeros((captions.states.shape[0], max_len), jnp.int32) if z is None else z  # a baseline does not read it
        return {"condition": functional.condition_images(model, params, captions, z, None, sample=config.sample)}

    def start_images(params: Trees, image_keys: Any, gamma: Any = None) -> Trees:
        return {"state": functional.start_images(model, _keys(image_keys), gamma, **kinds)}

    def image_step(
        params: Trees, condition: Any, image_keys: Any, state: Any, evaluation: Any, gamma: Any = None
    ) -> Trees:
        inputs = condition, _keys(image_keys), gamma, None, state, evaluation
        state, x0 = functional.image_step(model, params, *inputs, **kinds)
        return {"state": state, "x0": x0}

    def finish(params: Trees, state: Any) -> Trees:
        return {"x": samplers.finish(state, config.sample)[0]}

    prior = {
        "start_latents": Program(run=start_latents, parts=("prior",), inputs=("captions", "grammar")),
        "latents_step": Program(
            run=latents_step,
            parts=("prior",),
            inputs=("captions", "grammar", "latents_keys", "latents", "forced", *settings),
        ),
    }
    # Without guidance the pipeline computes no unconditional rows, and there is no gamma.
    guided = ("gamma",) if config.sample.gamma != 1 else ()
    reads, of = ("prior", "denoiser"), ("captions", "z")
    if not model.has_prior:
        prior, reads, of = {}, reads[1:], of[:1]
    step_inputs = ("condition", "image_keys", "state", "evaluation", *guided)
    return {
        "encode": Program(run=encode, parts=("encoder",), inputs=("tokens",)),
        **(prior if model.has_prior else {}),
        "condition": Program(
            run=condition, parts=reads, inputs=("captions", "z") if model.has_prior else ("captions",)
        ),
        "start_images": Program(run=start_images, parts=(), inputs=("image_keys", *guided)),
        "image_step": Program(run=image_step, parts=("denoiser",), inputs=step_inputs),
        "finish": Program(run=finish, parts=(), inputs=("state",)),
    }


def _keys(data: Any) -> Keys:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


# ------------------------------------------------------------------------------------------ the manifest
def _settings(config: Config, codec: Codec) -> dict[str, Any]:
    tokenizer, sample = codec.tokenizer, config.sample
    evaluations = samplers.evaluations(config.diffusion, sample)
    return {
        "format": FORMAT,
        "name": config.name,
        "jax": importlib.metadata.version("jax"),
        "platforms": PLATFORMS,
        "segments": codec.segments,
        "vocabulary": {"pad": PAD, "eos": EOS, "separator": codec.separator if codec.segments else []}
        | {"pieces": tokenizer.num_pieces, "first_voken": tokenizer.base_vocab_size, "rows": tokenizer.vocab_size},
        "caption_tokens": config.data.max_caption_tokens,
        "latents_tokens": config.latents.max_latents_tokens,
        "sample": {name: getattr(sample, name) for name in ("sampler", "guidance", "guidance_interval", "threshold")},
        "defaults": {name: getattr(sample, name) for name in ("gamma", "temperature", "top_k", "top_p", "num_steps")},
        "evaluations": evaluations.tolist(),
    }


def _described(leaves: Named) -> list[dict[str, Any]]:
    """Name, shape and dtype of each, in the order in which a program takes them."""
    return [
        {"name": name, "shape": [str(n) if export.is_symbolic_dim(n) else n for n in leaf.shape]}
        | {"dtype": str(np.dtype(leaf.dtype))}
        for name, leaf in sorted(leaves.items())
    ]
