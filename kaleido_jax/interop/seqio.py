"""seqio Tasks over our records, so that t5x and other seqio programs can train or measure p(z | c).

Needs the extra [seqio] (TensorFlow); nothing else in the package imports this module. Batches of these Tasks under
seqio.EncDecFeatureConverter equal those of `data.loader` except for the images, which seqio features do not include.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from kaleido_jax.data.records import MANIFEST, Records, open_records, read_manifest
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.grammar import parse, serialize
from kaleido_jax.latents.segments import names
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.latents.validity import LatentsError


def kinds() -> dict[str, tuple[str, ...]]:
    """Task -> segments of z: one for each registered segment, and the paper's combination."""
    return {segment: (segment,) for segment in names()} | {"combined": ("text", "bbox", "voken")}


class PriorVocabulary(seqio.Vocabulary):
    """Our tokenizer with the vokens' rows as a seqio vocabulary; all rows count as base ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps a tokenizer."""
        super().__init__(extra_ids=0)  # the tokenizer's sentinels are among its rows
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PriorVocabulary) and other.tokenizer.fingerprint == self.tokenizer.fingerprint

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    @property
    def bos_id(self) -> int:
        """0, which starts the decoder."""
        return self.tokenizer.pad_id

    @property
    def eos_id(self) -> int:
        """1."""
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int:
        """2."""
        return self.tokenizer.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        # An untrained prior may sample rows that only pad the table, which have no text.
        unused = range(self.tokenizer.num_text_ids, self.tokenizer.base_vocab_size)
        return self.tokenizer.decode([self.unk_id if i in unused else i for i in ids if i != self.pad_id])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: np.ndarray | bytes) -> np.ndarray:  # bytes in a graph, an array of them if run eagerly
            return np.asarray(self._encode(np.asarray(text).item().decode()), np.int32)

        return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(array: np.ndarray) -> np.ndarray:
            rows = [self._decode(row.tolist()) for row in array.reshape(-1, array.shape[-1])]
            return np.asarray(rows, object).reshape(array.shape[:-1])

        return tf.numpy_function(decode, [ids], tf.string)


def vocabulary(name: str = "t5", codebook_size: int = 8192) -> PriorVocabulary:
    """The vocabulary of config.model.t5.vocabulary and config.latents.codebook_size.

    Raises:
      UserError: see `load_tokenizer`.
    """
    return PriorVocabulary(load_tokenizer(name, codebook_size))


def register(records: str | Path, name: str = "t5", codebook_size: int = 8192, verify: str = "full") -> list[str]:
    """Adds kaleido_prior_{text,bbox,blob,voken,combined} to seqio's registry, replacing earlier ones.

    Features of an example: `inputs` (caption, eos) and `targets` (z, eos), both int32 (T,), and for readers `id`,
    `inputs_pretokenized` and `targets_pretokenized`. Metrics: the share of predictions that parse, and the mean
    log-likelihood of z.

    Args:
      records: folder whose splits (train, test, ...) hold manifest.json and shards.
      name: config.model.t5.vocabulary of the records.
      codebook_size: config.latents.codebook_size of the records.
      verify: "full" or "size", see `open_records`.

    Returns:
      The names of the Tasks.

    Raises:
      UserError: no records there. Records of another vocabulary or without a Task's segments are refused when that
        Task is read.
    """
    splits = {path.parent.name: path.parent for path in sorted(Path(records).glob(f"*/{MANIFEST}"))}
    if not splits:
        raise user_error(f"no records in {records}", f"folders such as train/ with a {MANIFEST}", "correct the folder")
    words = vocabulary(name, codebook_size)
    return [_register(kind, splits, words, verify) for kind in kinds()]


def task(kind: str, records: str, name: str = "t5", codebook_size: int = 8192, verify: str = "full") -> str:
    """Registers all Tasks (see `register`) and returns the name of one, for gin files.

    Raises:
      UserError: see `register`; an unknown kind.
    """
    if kind not in kinds():
        raise user_error(f"kind {kind!r}", f"one of {', '.join(kinds())}", "correct it")
    return register(records, name, codebook_size, verify)[list(kinds()).index(kind)]


def _register(kind: str, splits: dict[str, Path], words: PriorVocabulary, verify: str) -> str:
    name, segments = f"kaleido_prior_{kind}", kinds()[kind]
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    feature = seqio.Feature(vocabulary=words, add_eos=True)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset_fn=_dataset_fn(splits, Codec(tokenizer=words.tokenizer, segments=segments), verify),
            splits=tuple(splits),
            num_input_examples={split: read_manifest(folder).num_records for split, folder in splits.items()},
        ),
        preprocessors=[_refuse_overlong],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[_parse_rate(segments), mean_log_likelihood],
    )
    return name


# ---------------------------------------------------------------------------------------------- records
def _dataset_fn(splits: dict[str, Path], codec: Codec, verify: str) -> Callable[..., tf.data.Dataset]:
    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        folder = splits[split]
        manifest = read_manifest(folder)
        # Tokens are read as they are stored, so size and step are whatever the records were made with.
        made = dataclasses.replace(codec, coordinate_step=manifest.coordinate_step)
        records = open_records(folder, codec=made, image_size=manifest.source["image_size"], verify=verify)
        order = np.random.default_rng(seed).permutation(len(records)) if shuffle_files else range(len(records))
        return tf.data.Dataset.from_generator(
            lambda: (_example(records, int(index), codec) for index in order),
            output_signature={
                "inputs": tf.TensorSpec([None], tf.int32),
                "targets": tf.TensorSpec([None], tf.int32),
                "id": tf.TensorSpec([], tf.string),
                "inputs_pretokenized": tf.TensorSpec([], tf.string),
                "targets_pretokenized": tf.TensorSpec([], tf.string),
            },
        )

    return dataset_fn


def _example(records: Records, index: int, codec: Codec) -> dict:
    record = records[index]
    return {
        "inputs": np.asarray([*record.caption_tokens, codec.tokenizer.eos_id], np.int32),
        "targets": np.asarray(codec.join(record.tokens), np.int32),
        "id": record.id,
        "inputs_pretokenized": record.caption,
        "targets_pretokenized": serialize(record.latents, codec.segments),
    }


def _refuse_overlong(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None) -> tf.data.Dataset:
    """Fails with the sample's id if seqio would cut off its end, including eos."""

    def check(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        checks = [
            tf.debugging.assert_less_equal(
                tf.size(example[key]),
                length,
                tf.strings.join([key, " of sample ", example["id"], " is longer than its task_feature_length"]),
            )
            for key, length in (sequence_length or {}).items()
            if key in ("inputs", "targets")
        ]
        with tf.control_dependencies(checks):
            return tf.nest.map_structure(tf.identity, example)

    return dataset.map(check)


# ---------------------------------------------------------------------------------------------- metrics
def _parse_rate(segments: Sequence[str]) -> Callable[[Sequence[str], Sequence[str]], dict[str, float]]:
    def parse_rate(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """Share of the sampled lines that hold the segments."""
        del targets
        return {"parse_rate": sum(_parses(line, segments) for line in predictions) / len(predictions)}

    return parse_rate


def _parses(line: str, segments: Sequence[str]) -> bool:
    try:
        parse(line, segments)
    except LatentsError:
        return False
    return True


def mean_log_likelihood(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Mean of log p(z | c) over samples, summed over tokens as t5x scores them."""
    del targets
    return {"mean_log_likelihood": float(np.mean(scores))}
