import json

import numpy as np
import pytest

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vision.segmenter import Segmenter, onnx_masks, open_segmenter
from kaleido_jax.config.schema import Annotate, AnnotateBlob
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError
from kaleido_jax.latents.geometry import ellipse_mask, ellipse_to_blob, mask_iou, mask_to_ellipse
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents, validate
from tests.annotate.vision import onnx_files

BLOB = (500, 400, 300, 150, 30)


def photo(blob=BLOB, side=100):
    """A white ellipse on black."""
    mask = ellipse_mask(np.array(blob, np.float64), side)
    return Example(id="x", image=np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1), caption=""), mask


def boxes(*corners):
    return Latents(bbox=tuple(Box(phrase=f"thing {i}", box=box) for i, box in enumerate(corners)))


def opened(path, kind="onnx"):
    return open_segmenter(Annotate(blob=AnnotateBlob(kind=kind, model=str(path))))


# ------------------------------------------------------------------------------------- masks -> ellipses
def fixed(masks):
    return Segmenter(masks=lambda image, px: masks[: len(px)], metadata={"model": "fixed"})


def test_blobs_are_the_moments_of_the_masks_under_the_boxes_phrases():
    example, mask = photo()
    [z] = fixed(np.stack([mask, mask.T]))([example], [boxes((0, 0, 500, 500), (1, 1, 9, 9))])
    assert [b.phrase for b in validate(z).blob] == ["thing 0", "thing 1"]
    assert z.blob[0].blob == ellipse_to_blob(mask_to_ellipse(mask))
    np.testing.assert_allclose(z.blob[0].blob, BLOB, atol=2)
    assert z.bbox is None and z.voken is None


def test_an_empty_mask_leaves_its_object_out_and_all_empty_is_a_failure():
    example, mask = photo()
    nothing = np.zeros_like(mask)
    one, none, nobody = fixed(np.stack([nothing, mask])), fixed(np.stack([nothing] * 2)), fixed(None)
    two = boxes((0, 0, 500, 500), (1, 1, 900, 900))
    assert [b.phrase for b in one([example], [two])[0].blob] == ["thing 1"]
    assert none([example], [two]) == [Failure(segment="blob", reason="no mask in any of 2 boxes")]
    assert nobody([example], [boxes()]) == [Latents(blob=())]  # never asked for masks


def test_the_masker_is_asked_in_pixels():
    example, mask = photo(side=200)
    asked = []
    Segmenter(masks=lambda image, px: asked.append(px) or [mask], metadata={})([example], [boxes((100, 0, 505, 1000))])
    np.testing.assert_allclose(asked[0], [(20, 0, 101, 200)])


# ------------------------------------------------------------------------------------------------- ONNX
def test_an_onnx_mask_model_finds_the_bright_ellipse(tmp_path):
    pytest.importorskip("onnxruntime")
    example, mask = photo()
    segmenter = opened(onnx_files.brightness_mask(tmp_path / "m.onnx"))
    [z] = segmenter([example], [boxes((150, 150, 850, 650))])
    found = ellipse_mask(np.array(z.blob[0].blob, np.float64), 100)
    assert mask_iou(found, mask) > 0.9
    assert segmenter.needs == ("bbox",) and len(segmenter.metadata["version"]) == 16


def test_a_mask_stays_inside_its_box_and_does_not_depend_on_other_boxes(tmp_path):
    pytest.importorskip("onnxruntime")
    example, mask = photo()
    masks, _ = onnx_masks(onnx_files.brightness_mask(tmp_path / "m.onnx"))
    asked = np.array([(0.0, 0.0, 50.0, 100.0), (15.0, 15.0, 85.0, 65.0), (99.4, 99.4, 99.5, 99.5)])
    together = masks(example.image, asked)
    assert together.shape == (3, 100, 100) and together.dtype == bool
    assert together[0, :, :50].any() and not together[0, :, 50:].any() and not together[2].any()
    np.testing.assert_array_equal(together[1], masks(example.image, asked[1:2])[0])


def test_normalization_comes_from_the_file_beside_the_model(tmp_path):
    pytest.importorskip("onnxruntime")
    example, mask = photo()
    path = onnx_files.brightness_mask(tmp_path / "m.onnx")
    normalization = tmp_path / "preprocessor_config.json"
    values = json.dumps({"image_mean": [2, 2, 2], "image_std": [1, 1, 1]})  # white comes out below zero
    normalization.write_text(values, encoding="utf-8-sig")  # as an editor on Windows saves it
    assert isinstance(opened(path)([example], [boxes((150, 150, 850, 650))])[0], Failure)
    for bad in ('{"image_std": [0, 1, 1]}', '{"image_mean": 3}', "[", "[1]"):
        normalization.write_text(bad)
        with pytest.raises(UserError, match=r"preprocessor_config\.json"):
            opened(path)


def test_other_models_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="a map"):
        opened(onnx_files.features(tmp_path / "f.onnx", np.ones((4, 3, 2, 2)), 2))
    with pytest.raises(UserError, match="one input"):
        nodes = [onnx_files.node("Add", ["a", "b"], ["c"])]
        shape = (1, 3, 8, 8)
        two = onnx_files.write(
            tmp_path / "t.onnx", nodes, inputs={"a": shape, "b": shape}, outputs={"c": shape}, constants={}
        )
        opened(two)
    with pytest.raises(UserError, match="blob.model is not set"):
        open_segmenter(Annotate(blob=AnnotateBlob(kind="sam")))


# -------------------------------------------------------------------------------------------------- SAM
def save(folder, model, processor):
    """Writes a tiny model with random weights, larger than fresh ones, which all masks lie near zero with."""
    import torch

    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_sam():
    import transformers as hf

    vision = hf.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
        window_size=4, global_attn_indexes=[0], mlp_dim=32, num_pos_feats=16,
    )  # fmt: skip
    prompt = hf.SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8)
    decoder = hf.SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = hf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    size = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    return hf.SamModel(config), hf.SamProcessor(hf.SamImageProcessorPil(**size, mask_size={"longest_edge": 16}))


def tiny_sam2():
    import transformers as hf

    backbone = hf.Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], patch_kernel_size=[7, 7], patch_stride=[4, 4], patch_padding=[3, 3],
        blocks_per_stage=[1, 1, 1, 1], embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 2, 2, 2], global_attention_blocks=[], mlp_ratio=2.0, query_stride=[2, 2],
        num_query_pool_stages=3, window_positional_embedding_background_size=[2, 2],
    )  # fmt: skip
    vision = hf.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = hf.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16)
    decoder = hf.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = hf.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    size = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 16, "width": 16}}
    return hf.Sam2Model(config), hf.Sam2Processor(hf.Sam2ImageProcessor(**size))


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    pytest.importorskip("torch", reason="SAM runs in PyTorch, which is not installed")
    pytest.importorskip("transformers", reason="SAM needs transformers, which is not installed")
    return save(tmp_path_factory.mktemp("sam"), *tiny_sam())


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory):
    for package in ("torch", "transformers", "torchvision"):
        pytest.importorskip(package, reason=f"SAM 2 needs {package}, which is not installed", exc_type=ImportError)
    return save(tmp_path_factory.mktemp("sam2"), *tiny_sam2())


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_sam_gives_a_mask_a_box_as_its_own_program_does_one_by_one(kind, request):
    folder = request.getfixturevalue(f"{kind}_folder")
    import torch
    import transformers as hf

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 48, 3), np.uint8)
    asked = np.array([(4.0, 4, 40, 30), (10, 20, 30, 47), (0, 0, 48, 48)])
    segmenter = opened(folder, "sam")
    masks = segmenter.masks(image, asked)
    assert masks.shape == (3, 48, 48) and masks.dtype == bool and 0 < masks.mean() < 1
    model, processor = (hf.SamModel, hf.SamProcessor) if kind == "sam" else (hf.Sam2Model, hf.Sam2Processor)
    model, processor = model.from_pretrained(folder), processor.from_pretrained(folder)
    for box, mask in zip(asked, masks, strict=True):
        inputs = processor(images=image, input_boxes=[[box.tolist()]], return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].float()
        with torch.inference_mode():
            logits = model(**inputs, multimask_output=False).pred_masks
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        soft = processor.post_process_masks(logits, *sizes, binarize=False)[0][0, 0].numpy()
        decided = np.abs(soft) > 1e-4 * np.abs(soft).max()  # where rounding does not decide
        np.testing.assert_array_equal(mask[decided], soft[decided] > 0)
        assert decided.mean() > 0.99
    assert segmenter.metadata["model"] == kind


def test_sam_as_annotator_and_other_folders(sam_folder, tmp_path):
    example, _ = photo(side=48)
    segmenter = opened(sam_folder, "sam")
    wanted = [boxes((0, 0, 900, 900), (100, 100, 500, 400)), boxes(), boxes((200, 200, 700, 700))]
    answers = segmenter([example] * 3, wanted)
    assert answers[1] == Latents(blob=())
    assert answers[2] == segmenter([example], wanted[2:])[0]
    for answer in answers:
        assert isinstance(answer, Failure) or validate(answer).blob is not None
    with pytest.raises(UserError, match="no model in"):
        opened(tmp_path, "sam")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert'"):
        opened(tmp_path, "sam")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="model.safetensors is a git-LFS pointer"):
        opened(tmp_path, "sam")
