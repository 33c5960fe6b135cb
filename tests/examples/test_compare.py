import pytest

from examples import compare
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.evaluate.scenes import PretendedModel


def test_one_command_draws_a_pair(tmp_path, monkeypatch, capsys):
    pretended = {"a": PretendedModel(), "b": PretendedModel(collapsed=True)}
    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", pretended.get)
    monkeypatch.setattr(compare, "start_logging", lambda: None)
    compare.main(["--kaleido=a", "--baseline=b", f"--out={tmp_path}", "--gammas", "1", "4", "--caption=bird"])
    assert capsys.readouterr().out == f"picture: {tmp_path / 'compare.png'}\n"
    assert (tmp_path / "compare.png").is_file()
    assert [len(model.sampled) for model in pretended.values()] == [16, 16]


def test_a_call_without_a_model_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([f"--out={tmp_path}"])
    assert "--kaleido" in capsys.readouterr().err and not list(tmp_path.iterdir())
