import json
import multiprocessing
import os
import shutil
import signal
import threading

import numpy as np
import pytest
from absl import flags

from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import decode_image, open_records
from kaleido_jax.errors import UserError
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments import names
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import select
from tests.emoji import make_records

SIZES = {"batch_size": 8, "max_caption_tokens": 8, "max_latents_tokens": 96, "seed": 5}


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("emoji", 64)


@pytest.fixture(scope="module")
def records(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("records")
    sizes = {"num_examples": 44, "image_size": 32, "codebook_size": 8, "shard_size": 20, "fit_examples": 50}
    make_records(folder, tokenizer=tokenizer, **sizes)
    return open_records(folder / "train", codec=Codec(tokenizer=tokenizer, segments=names()), image_size=32)


@pytest.fixture
def loader(records, tokenizer):
    def make(segments=("text", "bbox", "voken"), **changes):
        return make_loader(records, codec=Codec(tokenizer=tokenizer, segments=segments), **SIZES | changes)

    return make


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_larger_records_serve_a_smaller_denoiser(records, tokenizer):
    """Each pixel is the mean of those it covers, as in the denoiser's pyramid, so one set serves every stage."""
    codec = Codec(tokenizer=tokenizer, segments=())
    small = open_records(records._folder, codec=codec, image_size=16)
    a, b = (next(make_loader(r, codec=codec, **SIZES))["image"] for r in (records, small))
    assert b.dtype == np.float32 and b.shape == (8, 16, 16, 3)
    np.testing.assert_allclose(b * 128 + 127, a.reshape(8, 16, 2, 16, 2, 3).mean((2, 4)), atol=1e-4)


def test_batch_holds_what_the_records_hold(loader, records, tokenizer):
    codec = Codec(tokenizer=tokenizer, segments=("text", "bbox", "voken"), vokens_per_image=8)
    batch = next(loader())
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "encoder_input_tokens": ((8, 8), "int32"),
        "decoder_input_tokens": ((8, 96), "int32"),
        "decoder_target_tokens": ((8, 96), "int32"),
        "decoder_loss_weights": ((8, 96), "float32"),
        "image": ((8, 32, 32, 3), "uint8"),
        "sample_id": ((8,), "int64"),
        "replaced": ((8,), "float32"),
    }
    for row, index in enumerate(batch["sample_id"]):
        record, target = records[int(index)], batch["decoder_target_tokens"][row]
        assert tokenizer.decode(batch["encoder_input_tokens"][row]) == record.caption
        assert codec.decode(target) == select(record.latents, codec.segments)
        np.testing.assert_array_equal(batch["decoder_loss_weights"][row], target != 0)
        np.testing.assert_array_equal(batch["decoder_input_tokens"][row], [0, *target[:-1]])
        np.testing.assert_array_equal(batch["image"][row], decode_image(record.image))


def test_baseline_has_no_decoder_tokens(loader):
    assert set(next(loader(segments=()))) == {"encoder_input_tokens", "image", "sample_id", "replaced"}


def test_each_epoch_shows_every_record_once_in_a_new_order(loader):
    epochs = np.concatenate([b["sample_id"] for b in take(loader(batch_size=4), 22)]).reshape(2, 44)
    for epoch in epochs:
        assert sorted(epoch) == list(range(44))
    assert (epochs[0] != epochs[1]).any() and (epochs[0] != np.arange(44)).any()


def test_resume_from_state_gives_the_same_batches_with_any_number_of_threads(loader, monkeypatch):
    straight = loader()
    take(straight, 4)
    state = json.loads(json.dumps(straight.get_state()))  # a checkpoint stores it as JSON
    expected = take(straight, 8)  # runs into the second epoch
    resumed = loader()
    resumed.set_state(state)
    assert_same(take(resumed, 8), expected)
    monkeypatch.setattr("kaleido_jax.data.loader._NUM_THREADS", 1)
    alone = loader()
    alone.set_state(state)
    assert_same(take(alone, 8), expected)


def test_processes_split_the_same_batches(loader):
    """In the order of one process, so that a run may go on with another number of them."""
    alone = take(loader(), 6)
    shares = [take(loader(rows=rows), 6) for rows in (slice(0, 4), slice(4, 8))]
    together = [
        {key: np.concatenate([part[key] for part in parts]) for key in alone[0]} for parts in zip(*shares, strict=True)
    ]
    assert_same(together, alone)


def test_buckets_pad_less_and_lose_nothing(loader, records, tokenizer):
    codec = Codec(tokenizer=tokenizer, segments=("text", "bbox", "voken"), vokens_per_image=8)
    lengths = np.asarray([len(codec.join(records[i].tokens)) for i in range(len(records))])
    np.testing.assert_array_equal(records.latents_lengths(codec), lengths)
    np.testing.assert_array_equal(records.latents_lengths(codec), lengths)  # from the file
    batches = take(loader(batch_size=4, length_buckets=(40, 56)), 11)
    for batch in batches:
        ids, width = batch["sample_id"], batch["decoder_target_tokens"].shape[1]
        assert {next(b for b in (40, 56, 96) if lengths[i] <= b) for i in ids} == {width}
        np.testing.assert_array_equal(batch["decoder_loss_weights"].sum(1), lengths[ids])
    assert len({batch["decoder_target_tokens"].shape[1] for batch in batches}) > 1


def unreadable(self, index):
    raise UserError(f"record {index} is damaged")


def without_lengths(records):
    for path in records._folder.glob(".lengths-*"):
        path.unlink()


def test_a_record_that_could_not_be_read_for_once_has_its_length_at_the_next_start(records, tokenizer, monkeypatch):
    codec, read = Codec(tokenizer=tokenizer, segments=("text", "bbox")), type(records).training_record
    expected = records.latents_lengths(codec)
    without_lengths(records)
    with monkeypatch.context() as patch:
        patch.setattr(type(records), "training_record", lambda self, i: (unreadable if i == 3 else read)(self, i))
        found = records.latents_lengths(codec)
    assert np.flatnonzero(found != expected).tolist() == [3]
    np.testing.assert_array_equal(records.latents_lengths(codec), expected)
    assert list(records._folder.glob(".lengths-*"))


def test_processes_take_the_lengths_of_the_main_one_or_end(records, tokenizer, monkeypatch):
    """Otherwise their batches would have other records, and other shapes."""
    codec, told = Codec(tokenizer=tokenizer, segments=("text", "bbox")), []
    distributed = "kaleido_jax.data.records.distributed"
    monkeypatch.setattr(f"{distributed}.tell", lambda name, make, timeout_s: told.append(make()) or told[0])
    expected = records.latents_lengths(codec)  # as the main process: it reads them and keeps them
    monkeypatch.setattr(f"{distributed}.is_main", lambda: False)
    monkeypatch.setattr(f"{distributed}.tell", lambda name, make, timeout_s: told[0])
    with monkeypatch.context() as patch:
        patch.setattr(type(records), "training_record", unreadable)
        np.testing.assert_array_equal(records.latents_lengths(codec), expected)  # from the file alone
        without_lengths(records)
        with pytest.raises(UserError, match="latents of the same lengths in every process; start again"):
            records.latents_lengths(codec)
    np.testing.assert_array_equal(records.latents_lengths(codec), expected)  # read by itself, from a disk of its own


def test_batches_kept_in_memory_are_those_that_are_read(loader, records, monkeypatch):
    """In the first epoch, in later ones, in buckets, of one process's rows, and after a resume."""
    read, count = type(records).training_record, []
    for options in ({"length_buckets": (40, 56), "batch_size": 4}, {"rows": slice(4, 8)}, {"segments": ()}):
        expected = take(loader(**options), 25)
        monkeypatch.setattr(type(records), "training_record", lambda self, i: count.append(i) or read(self, i))
        kept = loader(in_memory=True, **options)
        assert_same(take(kept, 20), expected[:20])
        kept.set_state(kept.get_state())
        count.clear()
        assert_same(take(kept, 5), expected[20:])
        if "rows" not in options:  # every record was seen once
            assert not count
        monkeypatch.undo()


@pytest.mark.slow
def test_worker_processes_read_the_same_batches(loader):
    buckets = {"length_buckets": (48,), "batch_size": 4}
    expected = take(loader(**buckets), 7)
    workers = loader(num_workers=2, **buckets)
    try:
        assert_same(take(workers, 3), expected[:3])
        state = workers.get_state()
        workers.set_state(state)
        assert_same(take(workers, 4), expected[3:])
    finally:
        workers.close()


def test_worker_processes_go_on_after_signals_to_the_whole_group(loader):
    """What they hold ready is less than what is taken after the signals."""
    before = {*multiprocessing.active_children()}
    workers = loader(num_workers=1)
    try:
        batches = take(workers, 1)
        (process,) = {*multiprocessing.active_children()} - before
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        batches += take(workers, 11)
        assert process.is_alive()
        assert_same(batches, take(loader(), 12))
    finally:
        workers.close()
    process.join(timeout=60)
    assert not process.is_alive()


def test_workers_that_are_killed_are_started_again_at_the_same_batch(loader, monkeypatch, caplog):
    monkeypatch.setattr("kaleido_jax.data.loader.MOST_LOST", 1)
    before, workers = {*multiprocessing.active_children()}, loader(num_workers=1)

    def kill():
        for process in {*multiprocessing.active_children()} - before:
            os.kill(process.pid, signal.SIGKILL)

    try:
        batches = take(workers, 2)
        kill()  # what was read ahead may still come
        batches += take(workers, 10)
        assert_same(batches, take(loader(), 12))
        assert "a data worker was killed by signal 9, perhaps for memory; all are started again" in caplog.text
        kill()
        with pytest.raises(UserError, match="killed by signal 9, the 2th; expected memory for 1 of them"):
            take(workers, 20)
    finally:
        workers.close()


def test_signals_to_the_whole_group_do_not_reach_processes_that_start(loader):
    before = {*multiprocessing.active_children()}
    signaled, seen = [], threading.Event()

    def signal_from_birth():
        while not seen.is_set():
            for process in {*multiprocessing.active_children()} - before:
                if process.pid:
                    for number in (signal.SIGINT, signal.SIGTERM):
                        os.kill(process.pid, number)
                    signaled.append(process.pid)
            seen.wait(0.01)

    thread = threading.Thread(target=signal_from_birth, daemon=True)
    workers = loader(num_workers=2)
    try:
        thread.start()
        batches = take(workers, 2)
        seen.set()
        thread.join()
        assert len({*signaled}) == 2 and len(signaled) > 20
        assert_same(batches, take(loader(), 2))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        seen.set()
        workers.close()


def test_one_unshuffled_epoch_ends(loader):
    seen = [batch["sample_id"] for batch in loader(shuffle=False, num_epochs=1)]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(40))  # the incomplete batch is left out


def test_overlong_samples_are_named_before_the_first_batch(loader):
    with pytest.raises(
        UserError, match=r"latents of sample emoji/train/\d+ has \d+ tokens.*latents.max_latents_tokens = 40"
    ):
        loader(max_latents_tokens=40)
    with pytest.raises(UserError, match=r"caption of sample emoji/train/\d+ .*data.max_caption_tokens = 3"):
        loader(max_caption_tokens=3)
    next(loader(segments=("voken",), max_latents_tokens=16))  # exactly long enough


def test_a_batch_larger_than_the_records_of_all_epochs_is_refused(loader):
    with pytest.raises(UserError, match="a full batch of 64"):
        loader(batch_size=64, num_epochs=1)
    with pytest.raises(UserError, match="batches of 4.*batches of 8"):
        loader().set_state(loader(batch_size=4).get_state())


def test_damage_met_while_training_is_a_user_error(records, tokenizer, tmp_path):
    folder = shutil.copytree(records._folder, tmp_path / "train")
    for path in folder.glob("*.array_record"):
        path.write_bytes(bytes(path.stat().st_size))
    codec = Codec(tokenizer=tokenizer, segments=names())
    damaged = open_records(folder, codec=codec, image_size=32, verify="size")
    with pytest.raises(UserError, match="is damaged"):
        next(make_loader(damaged, codec=codec, **SIZES))


def test_another_record_of_its_length_stands_in_for_one_that_cannot_be_read(loader, records, monkeypatch, caplog):
    expected, lost = next(loader()), 3
    index = int(expected["sample_id"][lost])
    read = type(records).training_record

    def damaged(self, number):
        if number == index:
            raise UserError(f"record {number} is damaged")
        return read(self, number)

    monkeypatch.setattr(type(records), "training_record", damaged)
    batch = next(loader())
    assert batch["sample_id"][lost] == (index + 1) % 44 and list(batch["replaced"]) == [0, 0, 0, 1, 0, 0, 0, 0]
    assert f"record {index} is damaged; the next record" in caplog.text
    others = np.arange(8) != lost
    np.testing.assert_array_equal(batch["image"][others], expected["image"][others])


def test_the_scale_of_a_sample_is_the_shorter_side_of_its_photo(loader, records):
    batch = next(loader(micros=("scale",)))
    assert "micro_scale" not in next(loader())
    sides = [records[int(i)].shorter_side_px for i in batch["sample_id"]]
    assert min(sides) > 0
    np.testing.assert_array_equal(batch["micro_scale"], np.asarray(sides, np.float32))


def test_a_place_among_fewer_records_goes_on_among_more_and_says_so(loader, records, caplog):
    batches = loader()
    take(batches, 2)
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {"batch": 2, "batch_size": 8, "records": 44}
    expected = take(batches, 1)
    batches.close()
    for before, said in ((44, ""), (40, "there were 40 records and now there are 44"), (None, "")):
        caplog.clear()
        again = loader()
        again.set_state({key: value for key, value in (state | {"records": before}).items() if value is not None})
        assert_same(take(again, 1), expected)
        again.close()
        assert said in caplog.text and (said or not caplog.text)
