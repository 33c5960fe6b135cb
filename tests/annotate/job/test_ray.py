"""The job on a real Ray cluster on this machine; needs the extra `annotate`."""

import hashlib
import os
import signal
import threading
import time

import pytest

from kaleido_jax.annotate.job import run as runner
from kaleido_jax.annotate.job.engines import RayCluster
from kaleido_jax.config.schema import Annotate
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from tests.emoji import make_records

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'ray>=2.50')")

SETTINGS = {
    "num_examples": 1500,
    "seed": 0,
    "image_size": 32,
    "codebook_size": 16,
    "fit_examples": 100,
    "shard_size": 500,
}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _hashes(folder):
    files = sorted((folder / "train").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_killed_ray_worker_loses_nothing_and_changes_no_byte(tmp_path, monkeypatch):
    seen = {}

    class Killing(RayCluster):
        """Kills the process of one actor in the middle of its first shard."""

        def make(self, shards, advance, asked):
            actor = self.actors[0]
            killer = threading.Thread(target=kill, args=(actor,))
            killer.start()
            yield from super().make(shards, advance, asked)
            killer.join()
            seen["after"] = ray.get(actor.process_id.remote())

    def kill(actor):
        while not (done := ray.get(actor.images_done.remote())):
            time.sleep(0.01)
        seen["done"], seen["before"] = done, ray.get(actor.process_id.remote())
        os.kill(seen["before"], signal.SIGKILL)

    def engine(job, **settings):
        return Killing(job, address=None, num_workers=settings["num_workers"], num_cpus=1, num_gpus=0)

    annotate = Annotate(engine="ray", num_workers=2, date="2026-01-01")
    tokenizer = load_tokenizer("emoji", 64)
    alone = make_records(tmp_path / "a", tokenizer=tokenizer, annotate_settings=Annotate(date="2026-01-01"), **SETTINGS)
    monkeypatch.setattr(runner, "open_engine", engine)
    manifest = make_records(tmp_path / "b", tokenizer=tokenizer, annotate_settings=annotate, **SETTINGS)
    assert 0 < seen["done"] < SETTINGS["shard_size"]
    assert seen["before"] != seen["after"]  # another process took its place
    assert manifest == alone and manifest.num_records == SETTINGS["num_examples"]
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_a_user_error_in_a_ray_worker_stays_one_line(tmp_path):
    annotate = Annotate(engine="ray", num_workers=1)
    folder = tmp_path / "records"
    with pytest.raises(UserError, match="scenes of 4 px; expected at least 16") as error:
        make_records(
            folder, tokenizer=load_tokenizer("emoji", 64), annotate_settings=annotate, **SETTINGS | {"image_size": 4}
        )
    assert "\n" not in str(error.value)
