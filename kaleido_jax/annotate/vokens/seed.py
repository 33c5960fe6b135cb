"""SEED image tokenizer (Ge et al. 2023, SEED and SEED-LLaMA): 32 tokens per image, one codebook of 8192.

The paper's vokens. Of its public weights (AILab-CVC, `seed_quantizer.pt`) only the part that produces tokens is used:

    image 224x224 -> BLIP-2's ViT-g -> layer norm -> 32 queries of a *causal* Q-Former -> linear, tanh, linear
                  -> the nearest code by squared distance

Network, names and preprocessing follow the authors' published program. The real weights could not be run here: tests
compare this module with an independent forward pass, using tiny random weights under the same names. The authors run in
float16 on a GPU; here it is float32, so a token may differ if two codes are almost equally near.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int
from PIL import Image as PillowImage

from kaleido_jax.annotate.annotator import Failure, Sees
from kaleido_jax.annotate.torch_models import BATCH_IMAGES, import_torch, torch_device
from kaleido_jax.annotate.vision.onnx_model import Normalization, normalize
from kaleido_jax.array_types import Image
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.torch_zip import TorchZip
from kaleido_jax.interop.source import read_weight
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import fingerprint

WEIGHTS_FILE = "seed_quantizer.pt"
VISION_FILE = "eva_vit_g.pth"  # BLIP-2's, for a checkpoint without the image encoder; same names without prefix
_VISION = "visual_encoder."
_QUERIES = "Qformer.bert."
# Settings that the weights' shapes do not show.
_VISION_HEAD_DIM, _QUERY_HEAD_DIM = 88, 64
_VISION_LAYERS = 39  # BLIP-2 leaves EVA-CLIP's last block out
_VISION_EPS, _VISION_OUT_EPS, _QUERY_EPS = 1e-6, 1e-5, 1e-12
_CROSS_EVERY = 2  # every other Q-Former layer, from the first on, attends to the image
_CLIP = Normalization(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


@runtime_checkable
class TokenIds(Protocol):
    """SEED's forward pass."""

    def __call__(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Int[np.ndarray, "b t"]:
        """The ids of each image's tokens; pixels are normalized."""
        ...


@dataclass(frozen=True, kw_only=True)
class SeedTokenizer:
    """The annotator of the voken segment."""

    ids: TokenIds
    image_size: int  # px, of the model's input
    vokens_per_image: int
    codebook_size: int
    fingerprint: str
    segments: tuple[str, ...] = ("voken",)
    needs: tuple[str, ...] = ()
    sees: Sees = "record"

    @property
    def metadata(self) -> dict[str, str]:
        """Provenance."""
        return {"model": "seed", "version": self.fingerprint}

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """Latents with vokens_per_image vokens, each 0..codebook_size-1; it never fails for one image."""
        return [Latents(voken=tuple(int(i) for i in row)) for row in self.encode([e.image for e in examples])]

    def encode(self, images: Sequence[Image]) -> Int[np.ndarray, "n t"]:
        """The tokens of each image, in order; images are stretched to the model's square by Pillow's bicubic filter."""
        rows = [np.empty((0, self.vokens_per_image), np.int64)]
        for start in range(0, len(images), BATCH_IMAGES):
            some = images[start : start + BATCH_IMAGES]
            pixels = np.zeros((BATCH_IMAGES, 3, self.image_size, self.image_size), np.float32)
            for row, image in zip(pixels, some, strict=False):
                size = (self.image_size, self.image_size)
                row[:] = normalize(
                    np.asarray(PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BICUBIC)), _CLIP
                )
            rows.append(self.ids(pixels)[: len(some)])
        return np.concatenate(rows)


def open_seed(config: Annotate, *, vokens_per_image: int, codebook_size: int) -> SeedTokenizer:
    """SEED from the weights at config.voken.model.

    Args:
      config: the group annotate; voken.model is seed_quantizer.pt or its folder. The pickle in it is not run. If it
        has no image encoder, eva_vit_g.pth (BLIP-2's) is read beside it.
      vokens_per_image: config.latents.vokens_per_image, which must be SEED's.
      codebook_size: config.latents.codebook_size, at least SEED's.

    Raises:
      UserError: torch or transformers are missing; weights are missing, damaged or of another network; or SEED's
        tokens do not fit those numbers.
    """
    seed = load_seed(seed_file(config))
    if seed.vokens_per_image != vokens_per_image or seed.codebook_size > codebook_size:
        raise user_error(
            f"{seed.vokens_per_image} vokens an image of {seed.codebook_size} codes",
            f"config.latents.vokens_per_image = {vokens_per_image}, codebook_size = {codebook_size}",
            "set these to SEED's",
        )
    return seed


def seed_file(config: Annotate) -> Path:
    """The file of weights at config.voken.model.

    Raises:
      UserError: none is named, or it is not there.
    """
    if config.voken.model is None:
        raise user_error("config.annotate.voken.model is not set", f"the folder of {WEIGHTS_FILE}", "set it")
    path = Path(config.voken.model)
    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise user_error(f"no file {path}", "SEED's weights", "set config.annotate.voken.model, or fetch them")
    return path


def load_seed(path: Path) -> SeedTokenizer:
    """The tokenizer of one file; see open_seed.

    Raises:
      UserError: as open_seed.
    """
    torch, transformers = import_torch()
    weights = _Weights(path)
    vision, image_size = _vision(torch, transformers, weights)
    queries = torch.from_numpy(weights.take("query_tokens"))
    former = _former(torch, transformers, weights, queries.shape[-1])
    (hidden, width), (out, _) = (weights.shape(f"encode_task_layer.{i}.weight") for i in (0, 2))
    head = torch.nn.Sequential(torch.nn.Linear(width, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, out))
    head = _load(torch, head, {n: weights.take(f"encode_task_layer.{n}") for n in head.state_dict()}, weights)
    codes = torch.from_numpy(weights.take("quantize.embedding.weight"))
    device = torch_device(torch)
    for module in (vision, former, head):
        module.to(device).eval()
    queries, codes = queries.to(device), codes.to(device)
    count = queries.shape[1]
    # Query i attends to queries 0..i. As an additive mask it goes by the encoder itself, past the model's own.
    causal = torch.full((count, count), torch.finfo(torch.float32).min, device=device).triu(1)[None, None]
    norms = (codes**2).sum(1)

    def ids(pixels: Float32[np.ndarray, "b 3 s s"]) -> Int[np.ndarray, "b t"]:
        with torch.inference_mode():
            seen = vision(pixel_values=torch.from_numpy(pixels).to(device)).last_hidden_state
            states = former.layernorm(queries.expand(len(pixels), -1, -1))
            mask = causal.expand(len(pixels), -1, -1, -1)
            out = former.encoder(states, attention_mask=mask, encoder_hidden_states=seen, query_length=count)
            z = head(out.last_hidden_state)
            return (norms - 2 * z @ codes.T).argmin(-1).cpu().numpy()

    return SeedTokenizer(
        ids=ids,
        image_size=image_size,
        vokens_per_image=count,
        codebook_size=len(codes),
        fingerprint=weights.fingerprint(),
    )


# ------------------------------------------------------------------------------------ names and shapes
class _Weights:
    """The tensors of a checkpoint under SEED's names, float32, and a fingerprint of those taken."""

    def __init__(self, path: Path) -> None:
        self.path, self._taken = path, []
        self._files = [(self._open(path), "")]
        if not any(name.startswith(_VISION) for name in self._files[0][0].names):
            self._files.append((self._open(path.parent / VISION_FILE), _VISION))
        self.names = tuple(prefix + name for file, prefix in self._files for name in file.names)

    def fingerprint(self) -> str:
        return fingerprint(*self._taken)

    def shape(self, name: str) -> tuple[int, ...]:
        file, inner = self._find(name)
        return file.shape(inner)

    def take(self, name: str) -> np.ndarray:
        file, inner = self._find(name)
        array = np.array(read_weight(file, inner), np.float32)
        self._taken.append(fingerprint(name, array.tobytes()))
        return array

    def layers(self, pattern: str) -> int:
        """Number of layers, from names that match `pattern` with the layer's number as its group."""
        return 1 + max((int(m[1]) for name in self.names if (m := re.match(pattern, name))), default=-1)

    def _find(self, name: str) -> tuple[TorchZip, str]:
        for file, prefix in self._files:
            if name.startswith(prefix) and name.removeprefix(prefix) in file.names:
                return file, name.removeprefix(prefix)
        raise user_error(f"{self.path} without {name}", "the weights of SEED's tokenizer", "fetch them again")

    @staticmethod
    def _open(path: Path) -> TorchZip:
        if not path.is_file():
            raise user_error(
                f"no file {path}", "the public weights of SEED's tokenizer", "fetch them, or correct the path"
            )
        return TorchZip(path)


def _load(torch: ModuleType, module: Any, tensors: Mapping[str, np.ndarray], weights: _Weights) -> Any:
    """Puts tensors into a module that was built for their shapes; each must be there."""
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    have, want = ({n: tuple(t.shape) for n, t in s.items()} for s in (state, module.state_dict()))
    if have != want:
        wrong = min(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
        raise user_error(
            f"{weights.path} with {wrong} of shape {have.get(wrong)}", f"{want.get(wrong)}", "name SEED's own weights"
        )
    module.load_state_dict(state)
    return module


def _vision(torch: ModuleType, transformers: ModuleType, weights: _Weights) -> tuple[Any, int]:
    """The image encoder without its last block, and its input's side in px."""
    width, _, patch, _ = weights.shape(_VISION + "patch_embed.proj.weight")
    side = round((weights.shape(_VISION + "pos_embed")[1] - 1) ** 0.5)
    layers = min(weights.layers(re.escape(_VISION) + r"blocks\.(\d+)\."), _VISION_LAYERS)
    config = transformers.Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=weights.shape(_VISION + "blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // _VISION_HEAD_DIM),
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=_VISION_EPS,
    )
    model = transformers.Blip2VisionModel(config)
    model.post_layernorm.eps = _VISION_OUT_EPS
    tensors = {
        "embeddings.class_embedding": weights.take(_VISION + "cls_token"),
        "embeddings.position_embedding": weights.take(_VISION + "pos_embed"),
        "embeddings.patch_embedding.weight": weights.take(_VISION + "patch_embed.proj.weight"),
        "embeddings.patch_embedding.bias": weights.take(_VISION + "patch_embed.proj.bias"),
        "post_layernorm.weight": weights.take("ln_vision.weight"),
        "post_layernorm.bias": weights.take("ln_vision.bias"),
    }
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.projection"}
    parts |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(layers):
        theirs, ours = f"{_VISION}blocks.{i}.", f"encoder.layers.{i}."
        for there, here in parts.items():
            for kind in ("weight", "bias"):
                tensors[f"{ours}{here}.{kind}"] = weights.take(f"{theirs}{there}.{kind}")
        tensors[ours + "self_attn.qkv.weight"] = weights.take(theirs + "attn.qkv.weight")
        q, v = (weights.take(f"{theirs}attn.{name}_bias") for name in "qv")
        tensors[ours + "self_attn.qkv.bias"] = np.concatenate([q, np.zeros_like(q), v])  # keys have none
    return _load(torch, model, tensors, weights), side * patch


def _former(torch: ModuleType, transformers: ModuleType, weights: _Weights, width: int) -> Any:
    layer = _QUERIES + "encoder.layer."
    config = transformers.Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=weights.layers(re.escape(layer) + r"(\d+)\."),
        num_attention_heads=max(1, width // _QUERY_HEAD_DIM),
        intermediate_size=weights.shape(layer + "0.intermediate_query.dense.weight")[0],
        hidden_act="gelu",
        layer_norm_eps=_QUERY_EPS,
        cross_attention_frequency=_CROSS_EVERY,
        encoder_hidden_size=weights.shape("ln_vision.weight")[0],
        use_qformer_text_input=False,
    )
    model = transformers.Blip2QFormerModel(config)
    tensors = {}
    for name in model.state_dict():
        there = name.replace("attention.attention.", "attention.self.")
        there = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", there)
        tensors[name] = weights.take(_QUERIES + there)
    return _load(torch, model, tensors, weights)
