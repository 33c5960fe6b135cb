import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.train.guard import LAG, Watch


def counts(replaced=0, stop=0):
    numbers = {"skipped_in_row": 0, "replaced": replaced, "rows": 100, "stop": stop, "loss": 1}
    return {name: jnp.float32(value) for name, value in numbers.items()}


BATCH = {"sample_id": np.arange(100)}


def test_more_unreadable_records_than_allowed_end_the_run(tmp_path):
    watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.001)
    for step in range(1, 40):  # 4 of 4,000: just allowed
        watch.add(step, BATCH, counts(replaced=step in (10, 20, 30)))
    watch.add(40, BATCH, counts(replaced=1))
    watch.finish()
    watch.add(41, BATCH, counts(replaced=1))
    with pytest.raises(UserError, match=r"5 of 4100 records that cannot be read; .*max_bad_share = 0.001"):
        watch.finish()


def test_one_unreadable_record_of_few_is_no_share_yet(tmp_path):
    watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.001)
    watch.add(1, BATCH, counts(replaced=1))
    watch.finish()
    watch.add(2, BATCH, counts(replaced=1))
    with pytest.raises(UserError, match="2 of 200 records"):
        watch.finish()


def test_all_processes_learn_of_a_stop_at_the_same_step(tmp_path):
    watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.0)
    told = [watch.add(step, BATCH, counts(stop=step == 5)) for step in range(1, 10)]
    assert told.index(True) + 1 == 5 + LAG


def test_a_resumed_run_notes_its_skipped_steps_once(tmp_path):
    """Also where a killed one left half a line."""
    for first, torn in ((0, b'{"step": 9, "lo'), (4, b"")):
        watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.0, resume_step=first)
        for step in range(first + 1, 9):
            watch.add(step, BATCH, counts() | {"skipped_in_row": jnp.float32(step in (2, 6))})
        watch.finish()
        with (tmp_path / "skipped.jsonl").open("ab") as file:
            file.write(torn)
    assert [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [2, 6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_keeps_the_skipped_steps_until_there_is_room(tmp_path):
    path, scalars = tmp_path / "skipped.jsonl", counts() | {"skipped_in_row": jnp.float32(1)}
    path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device.*free space"):
        watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.0)
        watch.add(1, BATCH, scalars)
        watch.finish()
    watch = Watch(tmp_path, max_skipped_steps=3, max_bad_share=0.0, full_disk="continue")
    for step in range(1, 2 + LAG):
        watch.add(step, BATCH, scalars)
    path.unlink()
    watch.finish()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 2 + LAG))
