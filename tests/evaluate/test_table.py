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


def test_settings_in_which_runs_differ_are_told():
    sample = {"gamma": 4.0, "sampler": "ddpm", "top_p": 0.98, "guidance_interval": [0.8, 1e9], "grammar": False}
    other = sample | {"sampler": "heun", "guidance_interval": None, "grammar": True, "sigma_min": 0.0}  # a default
    lines = table({"this run": {"of": {"sample": other}, "a": 1.0}, "emoji-tiny": {"of": {"sample": sample}, "a": 2.0}})
    rows = [line.split(maxsplit=1) for line in lines.splitlines()]
    assert [row[0] for row in rows[1:]] == [
        *("step", "gamma", "num_steps", "num_samples"),
        *("sampler", "guidance_interval", "grammar", "a"),
    ]
    assert rows[5][1].split() == ["heun", "ddpm"] and rows[7][1].split() == ["True", "False"]
    assert rows[6][1].split() == ["-", "(0.8,", "1e+09)"]
