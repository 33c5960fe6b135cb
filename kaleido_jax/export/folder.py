"""Export of a trained model as a folder for inference: config, weights, vocabulary, measures, model card.

`KaleidoPipeline.from_pretrained` reads it, and it can be uploaded as it is as a repository of the Hugging Face Hub. It
holds no optimizer state and no path of the machine that wrote it.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.annotate.prepare import makes_records
from kaleido_jax.config.schema import AnnotateEndpoint, Config, Init, Mesh, Sample
from kaleido_jax.errors import user_error
from kaleido_jax.export.stablehlo import write_stablehlo
from kaleido_jax.interop.files.safetensors import write_safetensors
from kaleido_jax.latents.tokenizer import SHIPPED
from kaleido_jax.runtime.checkpoints import check_path, write_params
from kaleido_jax.runtime.files import new_folder, read_json, write_atomically
from kaleido_jax.runtime.workdir import VOCABULARY
from kaleido_jax.sampling.functional import weights_checksum
from kaleido_jax.sampling.pipeline import KaleidoPipeline, find_model
from kaleido_jax.sampling.weights import EXPORT, is_export, read_export

log = logging.getLogger(__name__)

PRECISIONS = ("float32", "float16", "bfloat16")
LIMITS = """## Limits

The measures above are all that is known about it. It draws captions like those of its data; for others the images may
look sure and be wrong. Nothing filters what it draws, and what its data lack or favor, it lacks or favors too.
Whoever publishes it adds its license, the origin of its data, and what it must not be used for.
"""
CARD, ORBAX, STABLEHLO = "README.md", "orbax", "stablehlo"


def export_folder(
    source: str | Path,
    output: Path,
    precision: str = "float16",
    step: int | None = None,
    sigma_rel: float | None = None,
    *,
    orbax: bool = False,
    stablehlo: bool = False,
) -> Path:
    """Writes the EMA of a workdir's latest checkpoint: config.json, model.safetensors, spiece.model, README.md, eval/.

    With `step` or `sigma_rel` it has no eval/, since the workdir's measures are of other weights. Reports that say that
    they are of other weights, such as those of an earlier checkpoint, are left out with a warning.

    Args:
      source: a workdir with a checkpoint, or what was exported: a folder or the name of a bundled model.
      output: a folder that does not exist or is empty.
      precision: dtype of the stored weights, one of PRECISIONS; sampling computes in the config's all the same.
      step: of a workdir, the step to take instead of the latest.
      sigma_rel: relative width of an average made of a workdir's snapshots, instead of the EMA; between 0 and 0.2886.
      orbax: also writes the weights as an Orbax checkpoint in orbax/, for other programs.
      stablehlo: also writes sampling as StableHLO in stablehlo/, to draw pictures without this package.

    Returns:
      The folder.

    Raises:
      UserError: no checkpoint or snapshot, another precision, a weight that float16 cannot hold, or the output exists.
    """
    if precision not in PRECISIONS:
        raise user_error(f"precision {precision!r}", f"one of {', '.join(PRECISIONS)}", "choose one")
    if orbax:
        check_path(output)  # before the weights are read
    pipeline = KaleidoPipeline.from_pretrained(source, step=step, sigma_rel=sigma_rel)
    config, folder_read = portable(pipeline.config), find_model(source)
    if is_export(folder_read):  # what it is, if it is not an ordinary EMA, stays written beside it
        sigma_rel = (read_export(folder_read) or {}).get("sigma_rel")
        reports = measures(folder_read)
    else:
        reports = _of_weights(measures(folder_read), pipeline) if (step, sigma_rel) == (None, None) else {}
    with new_folder(output, "--output") as folder:
        vocabulary = config.model.t5.vocabulary
        (folder / VOCABULARY).write_bytes(pipeline.codec.tokenizer.model)
        if vocabulary not in SHIPPED:
            config = _with_vocabulary(config, VOCABULARY)
        write_safetensors(_tensors(pipeline.params, precision), folder)
        (folder / "config.json").write_text(config.to_json())
        width = {} if sigma_rel is None else {"sigma_rel": sigma_rel}
        metadata = {"step": pipeline.step, "precision": precision} | width
        (folder / EXPORT).write_text(json.dumps(metadata, indent=2) + "\n")
        if orbax:
            params = unflatten_dict(dict(_tensors(pipeline.params, precision)), sep="/")
            write_params(folder / ORBAX, params, {"name": config.name} | metadata)
        if stablehlo:
            write_stablehlo(config, pipeline.codec, folder / STABLEHLO)
        for name, report in reports.items():
            write_atomically(folder / "eval" / f"{name}.json", json.dumps(report).encode())
        (folder / CARD).write_text(model_card(pipeline, reports, sigma_rel))
    return output


def portable(config: Config) -> Config:
    """The config without what belongs to one machine: where data, records, weights and annotators are, and the mesh.

    Autoguidance becomes plain guidance, since its worse model is not exported.
    """
    replace, annotate, sample = dataclasses.replace, config.annotate, config.sample
    if sample.guidance == "autoguidance":
        sample = replace(sample, guidance="cfg", autoguidance_step=0)
    annotators = {name: replace(getattr(annotate, name), model=None) for name in ("text", "bbox", "blob", "voken")}
    annotators["voken"] = replace(annotators["voken"], feature_model=None)
    tfds, tar = config.data.tfds, config.data.tar
    data = replace(
        config.data,
        root=None,
        records=None,
        labels=tuple(map(_below_root, config.data.labels)),
        images=_below_root(config.data.images),
        tfds=replace(tfds, folder=_below_root(tfds.folder)),
        tar=replace(tar, classes=_below_root(tar.classes), index=""),
    )
    return replace(
        config,
        model=replace(config.model, t5=replace(config.model.t5, checkpoint=None)),
        data=data,
        annotate=replace(annotate, ray_address=None, endpoint=AnnotateEndpoint(), **annotators),
        sample=replace(sample, autoguidance_workdir=None),
        init=Init(),
        mesh=Mesh(),
    )


def _below_root(path: str) -> str:
    """A path below the data's folder stays as it is; of another, the name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def _with_vocabulary(config: Config, vocabulary: str) -> Config:
    t5 = dataclasses.replace(config.model.t5, vocabulary=vocabulary)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, t5=t5))


def _tensors(params: dict[str, Any], precision: str) -> Iterator[tuple[str, np.ndarray]]:
    largest = float(jnp.finfo(precision).max)
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.asarray(leaf)
        if np.abs(array).max(initial=0) > largest:
            found = f"{name} with {np.abs(array).max():.3g}, above {precision}'s {largest:.3g}"
            raise user_error(found, "weights that it can hold", "export with --precision=bfloat16 or float32")
        yield name, array.astype(jnp.dtype(precision))


def measures(workdir: Path) -> dict[str, Any]:
    """The reports in a workdir's eval/ by their names, numbers with six digits; {} where nothing was measured.

    Without the measures of real data. What a report depends on, its `of`, stays to the last digit. Hidden files, such
    as those that macOS writes beside others, are none.

    Raises:
      UserError: a report is damaged.
    """
    paths = (path for path in sorted((workdir / "eval").glob("*.json")) if not path.name.startswith("."))
    told = "a report that `evaluate` wrote", "measure again, or remove it"
    reports = {path.stem: read_json(path, *told) for path in paths}
    return {
        name: {key: value if key == "of" else _six_digits(value) for key, value in one.items() if key != "real"}
        for name, one in reports.items()
    }


def _of_weights(reports: dict[str, Any], pipeline: KaleidoPipeline) -> dict[str, Any]:
    """The reports of these very weights, and those that do not say of which they are."""
    weights, kept = weights_checksum(pipeline.params), {}
    for name, report in reports.items():
        model = _object_in(_object_in(report, "of"), "model")
        if model.get("weights", weights) == weights:
            kept[name] = report
            continue
        step, other = model.get("step"), "other weights"
        if step is not None and step != pipeline.step:
            other = f"step {step}, not of {pipeline.step}"
        log.warning("eval/%s.json is of %s, and is left out; measure again", name, other)
    return kept


def _six_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _six_digits(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_six_digits(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# ----------------------------------------------------------------------------------------------- the card
def model_card(pipeline: KaleidoPipeline, reports: dict[str, Any], sigma_rel: float | None = None) -> str:
    """A model card in Markdown, after the Hub's metadata: what it is, how it was trained, what was measured, its use.

    `sigma_rel` is that of a post-hoc EMA, None for the ordinary one.
    """
    config, step = pipeline.config, pipeline.step
    counts = {part: sum(leaf.size for _, leaf in _leaves(tree)) for part, tree in pipeline.params.items()}
    segments = ", ".join(config.latents.segments) or "none: a baseline, which draws from the caption alone"
    denoiser, planned = config.model.denoiser, config.train.num_steps
    size = f"{denoiser.image_size} px" if denoiser else "points"
    rows = [
        ("latents", segments),
        ("images", size),
        ("parameters", ", ".join(f"{part} {count / 1e6:.2f}M" for part, count in counts.items())),
        (
            "training",
            f"{step:,} steps of {config.train.batch_size} samples ({step * config.train.batch_size:,} images)"
            + (f", stopped before the planned {planned:,}" if step < planned else ""),
        ),
        ("data", f"source {config.data.source}"),
        ("weights", "EMA of training" if sigma_rel is None else f"post-hoc EMA with sigma_rel {sigma_rel:g}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    needed = "" if makes_records(config) else " --config.data.records=RECORDS"
    needed += "" if config.model.t5.encoder.trainable else " --config.model.t5.checkpoint=T5"
    measured = "\n".join(_measured(name, report) for name, report in reports.items()) or "Nothing was measured.\n"
    return f"""---
library_name: kaleido_jax
{"pipeline_tag: text-to-image" + chr(10) if denoiser else ""}tags: [kaleido-diffusion, jax, flax]
---

# {config.name}

A Kaleido diffusion model of kaleido_jax.

| | |
|---|---|
{table}

## Measures

{measured}
{LIMITS}
## Use

```python
import kaleido_jax as kj

pipe = kj.KaleidoPipeline.from_pretrained("PATH OF THIS FOLDER")
pipe(["a caption"] * 4).grid().save("grid.png")
```

`config.json` is the config that it was trained with, without paths. The command that trains it again:

```bash
python -m kaleido_jax.main --config=config.json --workdir=DIR{needed}
```
"""


def _leaves(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(flatten_dict(tree, sep="/").items())


def _measured(name: str, report: dict[str, Any]) -> str:
    numbers = {key: value for key, value in report.items() if isinstance(value, int | float)}
    of = _object_in(report, "of")
    sample = _object_in(of, "sample")
    defaults = json.loads(json.dumps(dataclasses.asdict(Sample())))
    shown = {"gamma", "sampler", "num_steps"} | {key for key in sample if sample[key] != defaults.get(key)}
    known = {"samples": of.get("num_samples")} | {key: sample[key] for key in sample if key in shown}
    settings = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    return f"`eval/{name}.json`{f' ({settings})' if settings else ''}:\n\n| measure | value |\n|---|---|\n" + "".join(
        f"| {key} | {value:.4g} |\n" for key, value in numbers.items()
    )


def _object_in(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
