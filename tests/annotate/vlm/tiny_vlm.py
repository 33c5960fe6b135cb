"""Random vision-language models of a few kilobytes, written to disk: python tiny_vlm.py KIND FOLDER."""

import sys
from pathlib import Path

LOCATIONS = [f"<loc_{i}>" for i in range(1000)]


def write(kind: str, folder: Path) -> None:
    """KINDS[kind] with its processor files, as transformers' own checkpoints come."""
    import torch

    torch.manual_seed(0)
    model, processor = KINDS[kind]()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _tokenizer(eos, pad, bos=None, more=(), **named):
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token=eos, pad_token=pad, bos_token=bos, extra_special_tokens=named
    )
    tokenizer.add_tokens(list(more), special_tokens=True)
    return tokenizer


def _template(image, start="", end="\n"):
    part = "{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}"
    message = start + "{{ m['role'] }}: {% for p in m['content'] %}" + part + "{% endfor %}" + end
    prompt = "{% if add_generation_prompt %}" + start + "assistant: {% endif %}"
    return "{% for m in messages %}" + message + "{% endfor %}" + prompt


def _llava():
    import transformers as hf

    tokenizer = _tokenizer("</s>", "<pad>", image_token="<image>")
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=image_token)
    processor = hf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=_template("<image>"),
        num_additional_image_tokens=1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen25():
    import transformers as hf

    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer("<|im_end|>", "<|endoftext|>", more=marks)
    start, vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(marks)
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
    )
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>", "<|im_end|>\n"),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _florence():
    import transformers as hf

    tokenizer = _tokenizer("</s>", "<pad>", bos="<s>", more=LOCATIONS, image_token="<image>")
    pictures = hf.CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    pictures.image_seq_length = 2
    text = hf.BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    vision = {
        "embed_dim": [16, 16, 16, 16],
        "num_heads": [2] * 4,
        "num_groups": [2] * 4,
        "depths": [1] * 4,
        "window_size": 2,
        "projection_dim": 32,
    }
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = hf.Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=image_token)
    processor = hf.Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    return hf.Florence2ForConditionalGeneration(config), processor


def _kosmos():
    import transformers as hf

    image_places = [f"<unused_{i}>" for i in range(64)]  # the 64 ids after <unk> stand where the image's states go
    tokenizer = _tokenizer("</s>", "<pad>", bos="<s>", more=["<unk>", *image_places])
    tokenizer.unk_token = "<unk>"
    pictures = hf.CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    processor = hf.Kosmos2Processor(pictures, tokenizer)  # adds its own tokens
    text = {
        "vocab_size": len(tokenizer),
        "embed_dim": 32,
        "layers": 1,
        "ffn_dim": 64,
        "attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = hf.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=64)
    return hf.Kosmos2ForConditionalGeneration(config), processor


KINDS = {"llava": _llava, "qwen2.5": _qwen25, "florence": _florence, "kosmos": _kosmos}

if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
