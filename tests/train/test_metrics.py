import json

import jax.numpy as jnp

from kaleido_jax.train.metrics import Averages, MetricWriter


def test_averages_are_means_and_start_anew():
    averages = Averages()
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss": jnp.float32(value)})
    assert averages.compute() == {"loss": 3.0}
    assert averages.compute() == {}


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a run that was killed while writing
    writer = MetricWriter(tmp_path, resume_step=20)
    writer.write_scalars(30, {"loss": 3.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 3.0)]
