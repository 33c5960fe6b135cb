"""Images per second of a core at 256 px: the training loader beside plain Pillow decoding of the same PNGs.

python -m benchmarks.loader > benchmarks/results/loader.md
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from benchmarks.machine import describe
from kaleido_jax.config.load import load_config
from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import Manifest, Record, Records, encode_image, write_shard
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents

BATCH, REPEATS = 32, 5


def photos(number: int, size: int) -> list[bytes]:
    """PNGs of noise with the spectrum of photographs (1 / f), as the records store them."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    out = []
    for _ in range(number):
        noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, size, size))) / frequency, (size, size))
        noise = (noise - noise.mean()) / noise.std() * 50 + 127
        out.append(encode_image(np.moveaxis(noise.clip(0, 255), 0, -1).astype(np.uint8)))
    return out


def make_records(folder: Path, images: list[bytes], size: int) -> Records:
    """Records of these images, with a text of 200 tokens each."""
    tokens = list(np.random.default_rng(1).integers(3, 200, 200).tolist())
    records = [
        Record(
            id=str(i),
            image=image,
            caption="a photo",
            caption_tokens=tokens[:8],
            latents=Latents(text="a photo"),
            tokens={"text": tokens},
            provenance={},
        )
        for i, image in enumerate(images)
    ]
    shard = write_shard(folder / "a.array_record", records)
    empty = dict.fromkeys(("provenance", "reasons", "agreement"), {}) | dict.fromkeys(("class_names", "failures"), [])
    manifest = Manifest(
        version=4,
        source={"image_size": size},
        vocabulary="",
        codebook_size=8,
        coordinate_step=1,
        counts={"text": len(images)},
        max_tokens={"caption": 9, "text": 201},
        left_out=0,
        shards=[shard],
        date="",
        **empty,
    )
    return Records(folder, manifest, size)


def decode_all(images: list[bytes]) -> None:
    """The peer: nothing but decoding."""
    for image in images:
        np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def main() -> None:
    """Prints one table; medians of runs in turn, by CPU time of all threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=512)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    images = photos(options.number, options.size)
    config = load_config("emoji_combined")
    codec = Codec(tokenizer=load_tokenizer(config.model.t5.vocabulary, 8), segments=("text",))
    rates: dict[str, list[float]] = {"plain Pillow decode": [], "training loader": []}
    with tempfile.TemporaryDirectory() as folder:
        records = make_records(Path(folder), images, options.size)
        for _ in range(REPEATS):
            start = time.process_time()
            decode_all(images)
            rates["plain Pillow decode"].append(len(images) / (time.process_time() - start))
            lengths = {"max_caption_tokens": 16, "max_latents_tokens": 256}
            loader = make_loader(records, codec=codec, batch_size=BATCH, seed=0, num_epochs=1, **lengths)
            start = time.process_time()
            count = sum(len(batch["image"]) for batch in loader)
            rates["training loader"].append(count / (time.process_time() - start))
            loader.close()
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    peer = medians["plain Pillow decode"]
    print("# The training loader beside plain decoding\n")
    what = f"{options.number} PNGs of {options.size} px in records"
    print(f"{what}; CPU time of all threads, median of {REPEATS} in turn.\n")
    print(describe("grain", "pillow", "array-record") + "\n")
    print("| | images/s of a core | of the peer |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} | {value / peer:.2f} |")


if __name__ == "__main__":
    main()
