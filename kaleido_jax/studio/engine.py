"""What the studio does with the models: requests in, news and results out, one at a time.

Images are drawn alone, one compiled function for all of them: on a CPU a batch is no faster, and the picture is then
bit for bit the one that `pipe.draw` draws.
"""

import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.config.fields import field_type
from kaleido_jax.config.fields import words as allowed
from kaleido_jax.config.schema import Config
from kaleido_jax.data.records import default_captions
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.types import Latents, segments_of
from kaleido_jax.runtime.compile_times import compiling, expected
from kaleido_jax.sampling.batched import COMPILED_IN
from kaleido_jax.sampling.functional import weights_checksum
from kaleido_jax.sampling.output import KaleidoOutput, pixels_of, png_bytes
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import Recipe
from kaleido_jax.sampling.tokens import unknown_characters
from kaleido_jax.sampling.weights import check_there
from kaleido_jax.studio.jobs import Job, OtherModel
from kaleido_jax.studio.requests import LIMITS, SETTINGS, Draw, Edit, Generate, Modes

WHAT = "the model"  # of the lines about compiling
log = logging.getLogger(__name__)

PREVIEW_PX, PREVIEW_SEC = 256, 0.08  # largest side of a preview, least time between two


class Engine:
    """A model and maybe its baseline, loaded and compiled in the worker thread.

    `waiting` says what the first request waits for; "" once everything is compiled.
    """

    def __init__(self, model: str | Path, baseline: str | Path | None = None) -> None:
        self.waiting = "loading the model"
        self.problem = ""  # why there is no model
        self._baseline_problem = ""  # why there is no baseline, if there should be one
        self._paths = model, baseline
        self._pipeline: KaleidoPipeline | None = None
        self._baseline: KaleidoPipeline | None = None
        self._compiled: set[tuple[Any, ...]] = set()
        self._compile_sec = 0.0
        self._suggestions: list[str] = []
        self._weights = ""
        self._ready = threading.Event()

    # ------------------------------------------------------------------------------------------ loading
    def load(self) -> None:
        """Loads the models and compiles what most requests need; errors are kept for the requests.

        Raises:
          Exception: one that nobody expects; requests then say that there is no model.
        """
        try:
            pipeline = _open(self._paths[0])
            self._weights = weights_checksum(pipeline.params)
            self._pipeline = pipeline
            self._suggestions = _captions(self._pipeline, Path(self._paths[0]))
            self._ready.set()
            self._load_baseline()
            start = time.monotonic()
            settings = self._pipeline.override({"num_steps": 2})
            made_of = self._pipeline.compiled_for(settings)
            self.waiting = f"compiling the model, {expected(WHAT, *made_of)}"
            with compiling(WHAT, *made_of):
                recipe = self._pipeline.sampled_recipe(
                    (self._suggestions or ["a"])[0], seed=0, indices=[0], sample=settings
                )
                self._pipeline.draw(recipe)
            self._compiled.add(self._program(recipe))
            self._compile_sec = time.monotonic() - start
            log.info("ready after %.0f s of compiling", self._compile_sec)
        except (UserError, FloatingPointError) as error:
            self.problem = str(error)
            log.error("no model to show: %s", self.problem)
        finally:
            if self._pipeline is None and not self.problem:
                self.problem = "an error while the model was loaded; see the terminal"
            self.waiting = ""
            self._ready.set()

    def _load_baseline(self) -> None:
        """The model is shown without its baseline too, so why that is missing is told beside it."""
        if self._paths[1] is None:
            return
        try:
            self._baseline = _open(self._paths[1])
        except UserError as error:
            self._baseline_problem = f"no baseline: {error}"
            log.warning("%s", self._baseline_problem)

    def _loaded(self) -> KaleidoPipeline:
        """The model, waited for.

        Raises:
          UserError: it could not be loaded.
        """
        self._ready.wait()
        if self._pipeline is None:
            raise UserError(self.problem)
        return self._pipeline

    def _program(self, recipe: Recipe) -> tuple[Any, ...]:
        """What the compiled function of a recipe's settings depends on."""
        sample = recipe["sample"]
        return *(str(sample[name]) for name in COMPILED_IN), sample["gamma"] == 1

    def check_weights(self, shown: str) -> None:
        """Checks that a page shows this model, once it is known; "" fits any.

        Raises:
          OtherModel: the server was started again with other weights. What it draws would stand under the wrong name.
        """
        if shown and self._pipeline is not None and shown != self._weights:
            name = f"{self._pipeline.config.name}, step {self._pipeline.step}"
            raise OtherModel(f"the server has another model now ({name}); reload the page")

    def describe(self) -> dict[str, Any]:
        """What a page shows before anything is sampled."""
        about = {"waiting": self.waiting, "problem": self.problem, "limits": LIMITS, "ready": self._ready.is_set()}
        if self._pipeline is None:
            return about
        config, guidances = self._pipeline.config, list(_words("sample.guidance"))
        if self._pipeline.bad_params is None:
            guidances.remove("autoguidance")
        return about | {
            "name": config.name,
            "step": self._pipeline.step,
            "weights": self._weights,
            "image_size": config.model.denoiser.image_size,
            "segments": list(config.latents.segments),
            "suggestions": self._suggestions,
            "codebook_size": config.latents.codebook_size,
            "vokens_per_image": config.latents.vokens_per_image,
            "coordinate_step": config.latents.coordinate_step,
            "settings": {name: getattr(config.sample, name) for name in SETTINGS},
            "baseline": self._baseline.config.name if self._baseline else None,
            "baseline_problem": self._baseline_problem,
            "samplers": list(_words("sample.sampler")),
            "guidances": guidances,
        }

    # ------------------------------------------------------------------------------------------ requests
    def work(self, job: Job) -> dict[str, Any]:
        """The result of a job.

        Raises:
          UserError: it does not fit the model, or the page shows another one.
          Cancelled: at a step after it was cancelled.
        """
        if self.waiting:
            job.tell("waiting", message=self.waiting)
        pipeline = self._loaded()
        self.check_weights(job.weights)
        match job.request:
            case Generate():
                return self._generate(pipeline, job, job.request)
            case Edit():
                return self._edit(pipeline, job, job.request)
            case Draw():
                return self._draw(pipeline, job, job.request.recipe)
            case _:
                return self._modes(pipeline, job, job.request)

    def _generate(self, pipeline: KaleidoPipeline, job: Job, request: Generate) -> dict[str, Any]:
        sample = pipeline.override({**request.settings, "grammar": True})
        options = {"seed": request.seed, "indices": request.indices, "sample": sample, "prefix": request.keep}
        recipe = pipeline.sampled_recipe(request.caption, **options)
        job.check()
        job.tell("latents", latents=[row["latents"] for row in recipe["rows"]])
        return {"images": self._images(pipeline, job, recipe), "notices": _notices(pipeline, request.caption)}

    def _draw(self, pipeline: KaleidoPipeline, job: Job, recipe: Recipe) -> dict[str, Any]:
        return {"images": self._images(pipeline, job, recipe, compare=True)}

    def _images(
        self, pipeline: KaleidoPipeline, job: Job, recipe: Recipe, compare: bool = False
    ) -> list[dict[str, Any]]:
        images: list[dict[str, Any]] = []
        singles = _singles(recipe)
        for i, one in enumerate(singles):
            watch = self._watch(job, one, i, len(singles), [image["png"] for image in images])
            drawn = pipeline.draw(one, watch)
            self._compiled.add(self._program(one))
            known = one["rows"][0].get("pixels") if compare else None
            images.append(_image(drawn, None if known is None else known == drawn.recipe["rows"][0]["pixels"]))
        return images

    def _edit(self, pipeline: KaleidoPipeline, job: Job, request: Edit) -> dict[str, Any]:
        edited = pipeline.edit(request.recipe, watch=self._watch_edit(job, request.recipe), **request.arguments)
        self._compiled.add(self._program(edited.recipe))
        return {
            "image": _shown(edited.after, edited.recipe, edited.latents),
            "before": _shown(edited.before, edited.recipe_before, edited.latents_before),
            "difference": _data(png_bytes(edited.difference)),
            "messages": edited.messages,
        }

    def _modes(self, pipeline: KaleidoPipeline, job: Job, request: Modes) -> dict[str, Any]:
        if not pipeline.config.latents.segments:
            raise user_error(f"modes of {pipeline.config.name}, a baseline", "a model with latents", "name another")
        sample = pipeline.override({**request.settings, "grammar": True})
        rows: list[dict[str, Any]] = []
        for index in range(request.count):
            job.check()
            recipe = pipeline.sampled_recipe(request.caption, seed=request.seed, indices=[index], sample=sample)
            rows.append(recipe["rows"][0] | {"index": index})
            job.tell("progress", step=index + 1, of=request.count, previews=[])
        job.tell("latents", latents=[row["latents"] for row in rows])
        return {
            "groups": grouped(rows),
            "count": request.count,
            "caption": request.caption,
            "seed": request.seed,
            "baseline": self._baseline_images(job, request),
            "notices": _notices(pipeline, request.caption),
        }

    def _baseline_images(self, job: Job, request: Modes) -> list[str]:
        if self._baseline is None:
            return []
        of_images = {n: v for n, v in request.settings.items() if n not in ("temperature", "top_k", "top_p")}
        sample = self._baseline.override(of_images)
        images: list[str] = []
        for index in range(request.count):
            recipe = self._baseline.sampled_recipe(request.caption, seed=request.seed, indices=[index], sample=sample)
            watch = self._watch(job, recipe, index, request.count, images)
            images.append(_data(png_bytes(self._baseline.draw(recipe, watch).images[0][0])))
        return images

    def _watch(
        self, job: Job, recipe: Recipe, image: int, of_images: int, before: Sequence[str]
    ) -> Callable[[int, int, Any], None]:
        """Tells progress with a preview now and then; ends the drawing if the job is not to go on."""
        if self._program(recipe) not in self._compiled and self._compile_sec:
            job.tell("waiting", message=f"compiling for these settings, about {max(self._compile_sec, 1):.0f} s")
        shown = 0.0

        def watch(done: int, of: int, x0: Any) -> None:
            nonlocal shown
            job.check()
            pixels = np.asarray(x0)  # waits for the step, so that a cancelled job leaves nothing on the device
            if done < of and time.monotonic() - shown < PREVIEW_SEC:
                return
            shown = time.monotonic()
            previews = [*before, _preview(pixels)]
            job.tell("progress", step=image * of + done, of=of_images * of, previews=previews)

        job.check()
        return watch

    def _watch_edit(self, job: Job, recipe: Recipe) -> Callable[[int, int, Any], None]:
        """The same for `pipe.edit`, which draws the image before the edit first: that one is not shown again."""
        after, drawings = self._watch(job, recipe, 1, 2, []), 0

        def watch(done: int, of: int, x0: Any) -> None:
            nonlocal drawings
            drawings += done == 1
            if drawings > 1:
                return after(done, of, x0)
            job.check()
            np.asarray(x0)
            return job.tell("progress", step=done, of=2 * of, previews=[])

        return watch


def check_model(folder: Path) -> None:
    """Checks that a folder holds a model of images, as far as that is known without reading its weights.

    Raises:
      UserError: it has no config or no weights, or is a model of points.
    """
    _check_images(folder, Config.from_json(folder))
    check_there(folder)


def _open(model: str | Path) -> KaleidoPipeline:
    pipeline = KaleidoPipeline.from_pretrained(model, chunk=1)
    _check_images(model, pipeline.config)
    return pipeline


def _check_images(model: str | Path, config: Config) -> None:
    if config.model.denoiser is None:
        raise user_error(f"{model}, a model of points", "one of images", "name another")


def _notices(pipeline: KaleidoPipeline, caption: str) -> list[str]:
    """What a page should say of a caption; of an edit's it is among the messages."""
    return unknown_characters([caption], pipeline.codec.tokenizer)


def _captions(pipeline: KaleidoPipeline, folder: Path) -> list[str]:
    """Captions that the model knows: those of its config, or the class names of its data."""
    captions = pipeline.config.sample.captions or default_captions(pipeline.config, folder)
    return list(dict.fromkeys(captions))[: LIMITS["suggestions"]]


def _words(path: str) -> tuple[str, ...]:
    """The words that a field of the config allows."""
    return allowed(field_type(Config, path), path)


# --------------------------------------------------------------------------------------------------- JSON
def grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a recipe, each with its index, by what their latents speak of; the largest group first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(label_of(row["latents"]), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        {
            "label": label,
            "count": len(members),
            "share": len(members) / len(rows),
            "indices": [member["index"] for member in members],
            "latents": members[0]["latents"],
        }
        for label, members in ordered
    ]


def label_of(latents: dict[str, Any] | None) -> str:
    """What a z speaks of: the phrases of its objects, else its text, else its vokens."""
    if latents is None:
        return "not parsable"
    z = Latents.from_json(latents)
    for name in segments_of(z):
        objects = getattr(z, name)
        if name not in ("text", "voken") and objects:
            return " + ".join(sorted(one.phrase for one in objects))
    if z.text is not None:
        return z.text
    return " ".join(map(str, z.voken or ())) or "nothing"


def _singles(recipe: Recipe) -> list[Recipe]:
    """A recipe for each image."""
    found: list[Recipe] = []
    for row in recipe["rows"]:
        for i, noise in enumerate(row["noise_indices"]):
            lists = {name: row.get(name) and [row[name][i]] for name in ("pixels", "batch")}
            one = {name: value for name, value in row.items() if name != "files"}
            found.append(recipe | {"rows": [one | lists | {"noise_indices": [noise]}]})
    return found


def _image(drawn: KaleidoOutput, matches: bool | None) -> dict[str, Any]:
    (row,) = drawn.recipe["rows"]
    image = drawn.images[0][0]
    return {
        "png": _data(png_bytes(image, drawn.recipe)),
        "recipe": drawn.recipe,
        "latents": row.get("latents"),
        "problem": row.get("problem", ""),
        "matches": matches,
    }


def _shown(image: Image.Image, recipe: Recipe, z: Latents) -> dict[str, Any]:
    png = _data(png_bytes(image, recipe))
    return {"png": png, "recipe": recipe, "latents": z.to_json(), "problem": "", "matches": None}


def _preview(x0: np.ndarray) -> str:
    image = Image.fromarray(pixels_of(np.clip(np.nan_to_num(x0), -1, 1)))
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return _data(buffer.getvalue())


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
