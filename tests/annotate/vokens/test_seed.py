"""SEED's tokenizer against a forward pass written from the papers and the published names, with tiny weights."""

import math

import numpy as np
import pytest
from PIL import Image
from scipy.special import erf

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.config.schema import Annotate, AnnotateVoken
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from tests.interop.files import torch_files

pytest.importorskip("torch", reason="SEED runs in PyTorch, which is not installed")
pytest.importorskip("transformers", reason="SEED needs transformers, which is not installed")

from kaleido_jax.annotate.vokens import seed as seed_tokenizer  # noqa: E402

SIDE, PATCH, WIDTH, VISION_MLP, VISION_LAYERS = 28, 14, 176, 48, 2  # two heads of 88
QUERIES, HIDDEN, QUERY_MLP, QUERY_LAYERS = 5, 128, 96, 3  # two heads of 64
CODES, CODE_DIM = 20, 6  # codes around the vector of each query of each image


def random_weights(seed=0):
    rng = np.random.default_rng(seed)
    w = {}

    def add(name, *shape, mean=0.0, std=0.3):
        w[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def linear(name, out, into):
        add(f"{name}.weight", out, into, std=1.5 / math.sqrt(into))
        add(f"{name}.bias", out)

    def norm(name, width):
        add(f"{name}.weight", width, mean=1.0)
        add(f"{name}.bias", width)

    v = "visual_encoder."
    add(v + "cls_token", 1, 1, WIDTH)
    add(v + "pos_embed", 1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    add(v + "patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH, std=0.1)
    add(v + "patch_embed.proj.bias", WIDTH)
    for i in range(VISION_LAYERS):
        b = f"{v}blocks.{i}."
        norm(b + "norm1", WIDTH)
        norm(b + "norm2", WIDTH)
        add(b + "attn.q_bias", WIDTH)
        add(b + "attn.v_bias", WIDTH)
        add(b + "attn.qkv.weight", 3 * WIDTH, WIDTH, std=1.5 / math.sqrt(WIDTH))
        linear(b + "attn.proj", WIDTH, WIDTH)
        linear(b + "mlp.fc1", VISION_MLP, WIDTH)
        linear(b + "mlp.fc2", WIDTH, VISION_MLP)
    norm("ln_vision", WIDTH)
    add("query_tokens", 1, QUERIES, HIDDEN, std=1.0)
    norm("Qformer.bert.embeddings.LayerNorm", HIDDEN)
    w["Qformer.bert.embeddings.position_ids"] = np.arange(512)[None]
    for i in range(QUERY_LAYERS):
        b = f"Qformer.bert.encoder.layer.{i}."
        for attention, into in (("attention", HIDDEN), *([("crossattention", WIDTH)] if i % 2 == 0 else [])):
            for part, source in (("query", HIDDEN), ("key", into), ("value", into)):
                linear(f"{b}{attention}.self.{part}", HIDDEN, source)
            linear(f"{b}{attention}.output.dense", HIDDEN, HIDDEN)
            norm(f"{b}{attention}.output.LayerNorm", HIDDEN)
        linear(b + "intermediate_query.dense", QUERY_MLP, HIDDEN)
        linear(b + "output_query.dense", HIDDEN, QUERY_MLP)
        norm(b + "output_query.LayerNorm", HIDDEN)
    linear("encode_task_layer.0", HIDDEN, HIDDEN)
    linear("encode_task_layer.2", CODE_DIM, HIDDEN)
    add("pos_embed_image", 1, QUERIES, HIDDEN)  # of the way back, which tokens do not need
    linear("decode_task_layer.0", CODE_DIM, CODE_DIM)
    # Codes close to each other and to what is quantized: a forward pass that is a little off finds others.
    z = np.concatenate([forward(w, normalized(picture)) for picture in images(3)])
    codes = np.repeat(z, CODES, axis=0)
    w["quantize.embedding.weight"] = (codes + 0.1 * rng.standard_normal(codes.shape)).astype(np.float32)
    return w


def images(count, side=SIDE):
    return list(np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8))


def normalized(picture):
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return ((picture / 255 - mean) / std).transpose(2, 0, 1)


# ------------------------------------------------------------- the forward pass, in float64 and without torch
def forward(w, pixels):
    """(3, s, s) normalized pixels -> the vectors to be quantized, (queries, code_dim)."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x, name, eps):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + erf(x / math.sqrt(2))) / 2

    def attend(q, k, v, dim, causal=False):
        out = []
        for h in range(q.shape[1] // dim):
            part = slice(h * dim, (h + 1) * dim)
            scores = q[:, part] @ k[:, part].T / math.sqrt(dim)
            if causal:
                scores = np.where(np.tri(len(q)) > 0, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        return np.concatenate(out, axis=1)

    w = {name: np.asarray(value, np.float64) for name, value in w.items()}
    v, n = "visual_encoder.", SIDE // PATCH
    patches = pixels.reshape(3, n, PATCH, n, PATCH).transpose(1, 3, 0, 2, 4).reshape(n * n, -1)
    x = patches @ w[v + "patch_embed.proj.weight"].reshape(WIDTH, -1).T + w[v + "patch_embed.proj.bias"]
    x = np.concatenate([w[v + "cls_token"][0], x]) + w[v + "pos_embed"][0]
    for i in range(VISION_LAYERS):
        b = f"{v}blocks.{i}."
        q, k, val = np.split(norm(x, b + "norm1", 1e-6) @ w[b + "attn.qkv.weight"].T, 3, axis=1)
        x = x + linear(attend(q + w[b + "attn.q_bias"], k, val + w[b + "attn.v_bias"], 88), b + "attn.proj")
        x = x + linear(gelu(linear(norm(x, b + "norm2", 1e-6), b + "mlp.fc1")), b + "mlp.fc2")
    image = norm(x, "ln_vision", 1e-5)
    x = norm(w["query_tokens"][0], "Qformer.bert.embeddings.LayerNorm", 1e-12)
    for i in range(QUERY_LAYERS):
        b = f"Qformer.bert.encoder.layer.{i}."
        for name, source in (("attention", None), ("crossattention", image)):
            if name == "crossattention" and i % 2:
                continue
            a, other = f"{b}{name}.", x if source is None else source
            parts = [linear(s, f"{a}self.{p}") for s, p in ((x, "query"), (other, "key"), (other, "value"))]
            out = linear(attend(*parts, 64, causal=source is None), a + "output.dense")
            x = norm(x + out, a + "output.LayerNorm", 1e-12)
        out = linear(gelu(linear(x, b + "intermediate_query.dense")), b + "output_query.dense")
        x = norm(x + out, b + "output_query.LayerNorm", 1e-12)
    return linear(np.tanh(linear(x, "encode_task_layer.0")), "encode_task_layer.2")


def nearest(w, z):
    distance = np.sum((z[:, None] - np.float64(w["quantize.embedding.weight"])[None]) ** 2, axis=-1)
    ordered = np.sort(distance, axis=1)
    assert (ordered[:, 1] - ordered[:, 0]).min() > 1e-5  # float32 must not decide
    return distance.argmin(axis=1)


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def tokenizer(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    torch_files.write(folder / "seed_quantizer.pt", weights)
    config = Annotate(voken=AnnotateVoken(kind="seed", model=str(folder)))
    return seed_tokenizer.open_seed(config, vokens_per_image=QUERIES, codebook_size=8192)


def test_tokens_are_those_of_the_independent_forward_pass(weights, tokenizer):
    pictures = images(3)
    expected = [nearest(weights, forward(weights, normalized(picture))) for picture in pictures]
    np.testing.assert_array_equal(tokenizer.encode(pictures), expected)
    assert len({tuple(row) for row in expected}) == 3  # the image matters


def test_a_query_does_not_see_those_after_it(weights, tokenizer, tmp_path):
    changed = dict(weights, query_tokens=weights["query_tokens"].copy())
    changed["query_tokens"][:, 3:] = np.float32(np.random.default_rng(5).standard_normal((1, QUERIES - 3, HIDDEN)))
    other = seed_tokenizer.load_seed(torch_files.write(tmp_path / "w.pt", changed))
    before, after = tokenizer.encode(images(4)), other.encode(images(4))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any()
    assert other.fingerprint != tokenizer.fingerprint


def test_an_answer_does_not_depend_on_the_batch_and_fits_the_interface(tokenizer):
    pictures = images(11, side=40)
    examples = [Example(id=str(i), image=p, caption="") for i, p in enumerate(pictures)]
    together = tokenizer(examples, [Latents()] * 11)
    assert together == [tokenizer([example], [Latents()])[0] for example in examples]
    assert not any(isinstance(z, Failure) for z in together)
    assert {len(z.voken) for z in together} == {QUERIES}
    assert tokenizer.metadata == {"model": "seed", "version": tokenizer.fingerprint} and tokenizer([], []) == []


def test_other_sizes_are_stretched_by_the_bicubic_filter(tokenizer):
    wide = np.random.default_rng(2).integers(0, 256, (50, 90, 3), np.uint8)
    small = np.asarray(Image.fromarray(wide).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(tokenizer.encode([wide]), tokenizer.encode([small]))


def test_the_image_encoder_may_lie_in_a_file_of_its_own(weights, tokenizer, tmp_path):
    vision = {n.removeprefix("visual_encoder."): a for n, a in weights.items() if n.startswith("visual_encoder.")}
    torch_files.write(tmp_path / "eva_vit_g.pth", vision)
    rest = {n: a for n, a in weights.items() if not n.startswith("visual_encoder.")}
    split = seed_tokenizer.load_seed(torch_files.write(tmp_path / "seed_quantizer.pt", rest))
    assert split.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(split.encode(images(2)), tokenizer.encode(images(2)))


def test_what_does_not_fit_is_refused(weights, tmp_path):
    path = torch_files.write(tmp_path / "seed_quantizer.pt", weights)
    config = Annotate(voken=AnnotateVoken(kind="seed", model=str(path)))
    with pytest.raises(UserError, match=r"5 vokens an image of 300 codes; expected .*vokens_per_image = 32"):
        seed_tokenizer.open_seed(config, vokens_per_image=32, codebook_size=8192)
    with pytest.raises(UserError, match="voken.model is not set"):
        seed_tokenizer.open_seed(Annotate(), vokens_per_image=5, codebook_size=300)
    lacking = {n: a for n, a in weights.items() if n != "quantize.embedding.weight"}
    with pytest.raises(UserError, match=r"without quantize\.embedding\.weight"):
        seed_tokenizer.load_seed(torch_files.write(tmp_path / "lacking.pt", lacking))
    bent = dict(weights) | {"ln_vision.bias": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="post_layernorm.bias of shape"):
        seed_tokenizer.load_seed(torch_files.write(tmp_path / "bent.pt", bent))
    with pytest.raises(UserError, match=r"no file .*eva_vit_g\.pth"):
        seed_tokenizer.load_seed(torch_files.write(tmp_path / "r.pt", {"query_tokens": weights["query_tokens"]}))
