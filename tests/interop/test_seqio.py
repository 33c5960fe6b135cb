"""seqio's batches against Grain's, and what launch/t5x says; both need extras that the core goes without."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
HAVE_SEQIO = all(importlib.util.find_spec(name) for name in ("seqio", "tensorflow", "tensorflow_text"))
NEEDS_SEQIO = pytest.mark.skipif(not HAVE_SEQIO, reason="the extra [seqio] is not installed")
NEEDS_GIN = pytest.mark.skipif(importlib.util.find_spec("gin") is None, reason="gin-config is not installed")
SIZES = {"inputs": 8, "targets": 96}


def run(source, *args):
    """JSON in the last line that a process of its own prints: TensorFlow stays out of this one."""
    done = subprocess.run(
        [sys.executable, "-c", source, *map(str, args)],
        cwd=REPO,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """(folder, tokenizer) of records in two shards."""
    from kaleido_jax.latents.tokenizer import load_tokenizer
    from tests.emoji import make_records

    folder, tokenizer = tmp_path_factory.mktemp("records"), load_tokenizer("emoji", 64)
    sizes = {"num_examples": 24, "image_size": 16, "codebook_size": 8, "shard_size": 16, "fit_examples": 50}
    make_records(folder, tokenizer=tokenizer, coordinate_step=10, **sizes)
    return folder, tokenizer


# ------------------------------------------------------------------------------------------- batches
BATCHES = """
import json, sys
import numpy as np, seqio, tensorflow as tf
from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import open_records
from kaleido_jax.errors import UserError
from kaleido_jax.interop import seqio as seqio_tasks
from kaleido_jax.latents.codec import Codec
folder, sizes = sys.argv[1], json.loads(sys.argv[2])
names = seqio_tasks.register(folder, "emoji", 64)
words = seqio_tasks.vocabulary("emoji", 64)
shown = {"names": names, "same": [], "weights": 0}

def seqio_batches(name, sizes, **options):
    converter = seqio.EncDecFeatureConverter(pack=False)
    data = seqio.get_dataset(name, sizes, dataset_split="train", feature_converter=converter, **options)
    return list(data.batch(8, drop_remainder=True).as_numpy_iterator())

for kind, segments in seqio_tasks.kinds().items():
    codec = Codec(tokenizer=words.tokenizer, segments=segments, coordinate_step=10)
    records = open_records(folder + "/train", codec=codec, image_size=16)
    ours = list(make_loader(records, codec=codec, batch_size=8, seed=0, shuffle=False,
                            num_epochs=1, max_caption_tokens=sizes["inputs"], max_latents_tokens=sizes["targets"]))
    theirs = seqio_batches("kaleido_prior_" + kind, sizes, shuffle=False)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs):
        assert a.keys() - b.keys() == {"image", "sample_id", "replaced"} and not b.keys() - a.keys()
        for key in b:
            np.testing.assert_array_equal(a[key], b[key], err_msg=kind + " " + key)
            assert a[key].dtype == b[key].dtype or key == "decoder_loss_weights"  # seqio's are 0 and 1 as int32
        shown["weights"] += int(b["decoder_loss_weights"].sum())
    shown["same"].append(kind)

def ids(seed):
    data = seqio.get_mixture_or_task("kaleido_prior_text").get_dataset(sizes, "train", shuffle=True, seed=seed)
    return [example["id"].decode() for example in data.as_numpy_iterator()]

shown["shuffled"] = [ids(1), ids(1), ids(2)]
example = next(seqio.get_mixture_or_task("kaleido_prior_combined").get_dataset(sizes, "train", shuffle=False)
               .as_numpy_iterator())
shown["example"] = {key: example[key].decode() for key in ("id", "inputs_pretokenized", "targets_pretokenized")}
shown["decoded"] = [words.decode(example["targets"]), words.decode_tf(tf.constant(example["targets"])).numpy().decode(),
                   words.decode_tf(tf.constant([example["inputs"]] * 2)).numpy()[1].decode()]
shown["encoded"] = [words.encode("a fruit"), words.encode_tf(tf.constant("a fruit")).numpy().tolist(),
                   tf.data.Dataset.from_tensors("a fruit").map(words.encode_tf).get_single_element().numpy().tolist()]
shown["unused row"] = words.decode([words.tokenizer.num_text_ids, 5])
shown["equal"] = [words == seqio_tasks.vocabulary("emoji", 64), words == seqio_tasks.vocabulary("emoji", 65)]
try:
    seqio_batches("kaleido_prior_combined", sizes | {"targets": 30}, shuffle=False)
except tf.errors.InvalidArgumentError as error:
    shown["overlong"] = str(error)
for call in (lambda: seqio_tasks.register(folder + "/none"), lambda: seqio_tasks.task("boxes", folder)):
    try:
        call()
    except UserError as error:
        shown.setdefault("refused", []).append(str(error))

evaluator = seqio.Evaluator("kaleido_prior_combined", seqio.EncDecFeatureConverter(pack=False), "train",
                            sequence_length=sizes)
def predict(dataset):  # all but one parse
    targets = [(i, example["decoder_target_tokens"]) for i, example in dataset.as_numpy_iterator()]
    return [(i, np.where(np.arange(len(ids)) < 3, ids, 0) if i == 0 else ids) for i, ids in targets]
evaluated = evaluator.evaluate(compute_metrics=True, predict_fn=predict,
                               score_fn=lambda dataset: [(i, -2.0) for i, _ in dataset])
shown["metrics"] = {key: float(value) for key, value in evaluated[0].result()["kaleido_prior_combined"].items()}
print(json.dumps(shown))
"""


@NEEDS_SEQIO
@pytest.mark.slow
def test_batches_of_seqio_equal_those_of_grain(records):
    folder, tokenizer = records
    shown = run(BATCHES, folder, json.dumps(SIZES))
    kinds = ["text", "bbox", "blob", "voken", "combined"]
    assert shown["same"] == kinds and shown["names"] == [f"kaleido_prior_{kind}" for kind in kinds]
    assert shown["weights"] > 0
    first, again, other = shown["shuffled"]
    assert first == again != other and sorted(first) == sorted(other) and len(set(first)) == 24
    line = shown["example"]["targets_pretokenized"]
    assert shown["example"]["id"] == "emoji/train/000000" and line.count(" | ") == 2
    assert [text.replace(" ", "") for text in shown["decoded"][:2]] == [line.replace(" ", "")] * 2
    assert shown["decoded"][2] == shown["example"]["inputs_pretokenized"]
    assert shown["encoded"] == [tokenizer.encode("a fruit")] * 3
    assert shown["unused row"] == tokenizer.decode([tokenizer.unk_id, 5])
    assert shown["equal"] == [True, False]
    assert "targets of sample emoji/train/000000 is longer" in shown["overlong"]
    assert "no records in" in shown["refused"][0] and "kind 'boxes'" in shown["refused"][1]
    assert shown["metrics"] == {"parse_rate": pytest.approx(23 / 24), "mean_log_likelihood": -2.0}


# --------------------------------------------------------------------------------------- t5x's configs
GIN = """
import json, sys
from tests.interop import t5x_stub
t5x_stub.install()
import gin
program = gin.configurable(getattr(sys.modules["__main__"], sys.argv[3]))  # t5x's programs do so before they parse
gin.parse_config_files_and_bindings([sys.argv[1]], json.loads(sys.argv[2]))
called = program()
module, data, model = called["model"].module, called["dataset_cfg"], called["model"]
print(json.dumps({
    "network": type(module).__name__,
    "sizes": [module.encoder_vocab_size, module.config.vocab_size, module.config.emb_dim],
    "gated": module.config.mlp_activations, "dropout": module.config.dropout_rate,
    "task": data["mixture_or_task_name"], "lengths": data["task_feature_lengths"], "split": data["split"],
    "path": called["restore_checkpoint_cfg"]["path"], "output": called["output_dir"],
    "rows": model.output_vocabulary.vocab_size, "equal": model.input_vocabulary == model.output_vocabulary,
    "decode": model.decode_fn(),
    "iterator": called.get("checkpoint_ds_iter"), "mode": called.get("mode"),
}))
"""


@NEEDS_SEQIO
@NEEDS_GIN
@pytest.mark.slow
@pytest.mark.parametrize(("file", "name", "output"), [("infer", "infer", "INFER"), ("eval", "evaluate", "EVAL")])
def test_gin_files_build_the_model_and_the_data(file, name, output, records, tmp_path):
    bindings = {
        "CHECKPOINT_PATH": "there/checkpoint_0",
        "RECORDS": str(records[0]),
        f"{output}_OUTPUT_DIR": str(tmp_path),
        "T5_VOCABULARY": "emoji",
        "CODEBOOK_SIZE": 64,
        "PRIOR_VOCAB_SIZE": records[1].vocab_size,
        "KIND": "voken",
    }
    shown = run(GIN, f"launch/t5x/{file}.gin", json.dumps([f"{k} = {v!r}" for k, v in bindings.items()]), name)
    assert shown["network"] == "TwoTables" and shown["sizes"] == [32128, records[1].vocab_size, 2048]
    assert (shown["gated"], shown["dropout"]) == (["gelu", "linear"], 0.0)
    assert (shown["task"], shown["split"]) == ("kaleido_prior_voken", "test")
    assert shown["lengths"] == {"inputs": 128, "targets": 416}
    assert (shown["path"], shown["output"]) == ("there/checkpoint_0", str(tmp_path))
    assert (shown["rows"], shown["equal"]) == (records[1].vocab_size, True)
    assert shown["decode"]["temperature"] == 1.0 and shown["decode"]["topk"] == 0
    assert (shown["iterator"], shown["mode"]) == ((False, "predict") if file == "infer" else (None, None))


# ------------------------------------------------------------------------------------ t5x's network
NETWORK = """
import json, sys
from tests.interop import t5x_stub
t5x_stub.install()
import jax, numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from kaleido_jax.interop.t5.load import load_t5, open_t5
from kaleido_jax.interop.t5.layout import t5_shapes, sizes
from kaleido_jax.interop.t5.t5x_network import TwoTables
from kaleido_jax.models.t5 import Decoder, Encoder
from t5x.examples.t5.network import T5Config
source, rows = open_t5(sys.argv[1]), json.loads(sys.argv[2])
c, _ = sizes(source)
config = T5Config(vocab_size=rows[1], emb_dim=c.d_model, num_heads=c.num_heads, head_dim=c.head_dim, mlp_dim=c.d_ff,
                  num_encoder_layers=c.num_encoder_layers, num_decoder_layers=c.num_decoder_layers)
model = TwoTables(config, encoder_vocab_size=rows[0])
captions, inputs = np.asarray([[5, 6, 1, 0], [7, 1, 0, 0]]), np.asarray([[0, 9, 3], [0, rows[1] - 1, 4]])
shapes = jax.eval_shape(model.init, jax.random.key(0), captions, inputs)["params"]
shapes = {name: list(leaf.shape) for name, leaf in flatten_dict(jax.tree.map(lambda x: getattr(x, "value", x), shapes,
          is_leaf=lambda x: hasattr(x, "value")), sep="/").items()}
theirs_of = lambda name: name.replace("/token_embedder/", "/shared_embedding/")
stored = {theirs_of(name): name for name in source.names}
for name in stored:
    assert (source.path.parent / ("target." + name.replace("/", "."))).is_dir(), name
params = unflatten_dict({name: source.read(ours) for name, ours in stored.items()}, sep="/")
theirs = model.apply({"params": params}, captions, inputs)
targets = dict(zip(("encoder", "prior"), (t5_shapes(c, n)[i] for i, n in enumerate(rows))))
loaded = load_t5(sys.argv[1], targets, num_pieces=1, base_vocab_size=rows[0], seed=0)
h_c = Encoder(c, rows[0]).apply({"params": loaded["encoder"]}, captions)
_, logits = Decoder(c, rows[1]).apply({"params": loaded["prior"]}, inputs, h_c, captions != 0)
off = float(np.abs(np.asarray(theirs) - np.asarray(logits)).max())
print(json.dumps({"shapes": shapes, "stored": {n: list(source.shape(ours)) for n, ours in stored.items()}, "off": off}))
"""


def test_a_model_with_two_tables_has_the_names_of_its_t5x_checkpoint(tmp_path):
    import numpy as np

    from kaleido_jax.config.schema import T5
    from kaleido_jax.interop.t5.layout import TABLE, expected_shapes, layouts
    from kaleido_jax.interop.t5.t5x import write_t5x
    from tests.interop.t5.test_t5_checkpoints import Arrays

    config, rows = T5(d_model=8, d_ff=12, num_heads=2, head_dim=3, num_encoder_layers=2, num_decoder_layers=1), (16, 24)
    rng, shapes = np.random.default_rng(0), expected_shapes(layouts(config, rows[1]))
    del shapes[TABLE]
    shapes |= {f"{stack}/{TABLE}": (size, 8) for stack, size in zip(("encoder", "decoder"), rows, strict=True)}
    write_t5x(Arrays({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}), tmp_path)
    shown = run(NETWORK, tmp_path, json.dumps(rows))
    assert shown["shapes"] == shown["stored"]
    assert {name: shown["shapes"][name][0] for name in shown["shapes"] if "shared_embedding" in name} == {
        "encoder/shared_embedding/embedding": 16,
        "decoder/shared_embedding/embedding": 24,
    }
    assert shown["off"] < 1e-5
