"""The table that `evaluate` prints."""

from kaleido_jax.verbs.evaluate import table


def test_a_run_stands_beside_others_with_its_settings_first():
    run = {"kind_right": 0.67671, "of": {"step": 18_000, "sample": {"gamma": 4.0, "num_steps": 20}, "num_samples": 600}}
    lines = table({"this run": run | {"parsed": 1.0}, "real scenes": {"kind_right": 0.991}}).splitlines()
    assert [line.split() for line in lines] == [
        ["this", "run", "real", "scenes"],
        ["step", "18,000", "-"],
        ["gamma", "4", "-"],
        ["num_steps", "20", "-"],
        ["num_samples", "600", "-"],
        ["kind_right", "0.6767", "0.991"],
        ["parsed", "1", "-"],
    ]
    assert len({len(line) for line in lines}) == 1  # aligned
