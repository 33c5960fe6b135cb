import pytest

from examples import guidance_sweep
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.evaluate.scenes import PretendedModel


def test_one_command_measures_a_pair_and_prints_its_table(tmp_path, monkeypatch, capsys):
    pretended = {"a": PretendedModel(), "b": PretendedModel(collapsed=True)}
    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", pretended.get)
    monkeypatch.setattr(guidance_sweep, "start_logging", lambda: None)
    flags = ["--kaleido=a", "--baseline=b", f"--out={tmp_path}", "--num_samples=20", "--gammas", "1", "4"]
    guidance_sweep.main(flags)
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "sweep.md").read_text().strip()
    assert [line.split(" | ")[:2] for line in printed.splitlines()[2:6]] == [
        ["| baseline", "1"],
        ["| baseline", "4"],
        ["| Kaleido", "1"],
        ["| Kaleido", "4"],
    ]


def test_a_call_without_a_model_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        guidance_sweep.main([f"--out={tmp_path}"])
    assert "--kaleido" in capsys.readouterr().err and not list(tmp_path.iterdir())
