"""Models that a config names are looked for before a job writes anything."""

import importlib.util

import pytest

from kaleido_jax.annotate.models import check_models
from kaleido_jax.config.schema import Annotate, AnnotateBlob, AnnotateText, AnnotateVoken
from kaleido_jax.errors import UserError
from kaleido_jax.main import main
from tests.data.sources.opening import photo

CASES = {
    "not set": (Annotate(segments=("blob",), blob=AnnotateBlob(kind="sam")), "blob.model = None; expected the model"),
    "not there": (
        Annotate(segments=("blob",), blob=AnnotateBlob(kind="onnx", model="none.onnx")),
        "blob.model = 'none.onnx', which is not there",
    ),
    "feature": (
        Annotate(segments=("voken",), voken=AnnotateVoken(feature="autoencoder")),
        "voken.feature_model = None; expected the model for 'autoencoder'",
    ),
    "text": (
        Annotate(segments=("text",), text=AnnotateText(kind="transformers", model="/none")),
        "text.model = '/none', which is not there",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_missing_is_one_line(case):
    annotate, message = CASES[case]
    with pytest.raises(UserError) as error:
        check_models(annotate)
    assert message in str(error.value) and str(error.value).count(";") == 2


def test_labels_and_a_fitted_quantizer_need_no_model():
    check_models(Annotate())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="without torch and transformers; .*pip install torch transformers"):
        check_models(Annotate(segments=("blob",), blob=AnnotateBlob(kind="sam", model=str(tmp_path / "model"))))


def test_a_job_without_its_model_writes_nothing(tmp_path):
    photo(tmp_path / "data" / "cat" / "1.png")
    flags = ["--config.data.source=folder", f"--config.data.root={tmp_path / 'data'}"]
    with pytest.raises(UserError, match="gone.onnx', which is not there"):
        main(
            ["annotate", "--config=annotate_onnx", *flags, f"--workdir={tmp_path / 'w'}"]
            + ["--config.annotate.bbox.model=gone.onnx"]
        )
    assert not (tmp_path / "w").exists()
