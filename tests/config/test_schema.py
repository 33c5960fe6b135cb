import pytest

from kaleido_jax.errors import UserError
from tests.tiny import single_net_config, tiny_config


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sample__sampler": "dpmpp2m"}, "did you mean 'dpmpp_2m'"),
        ({"sample__guidance": "cad"}, "did you mean 'cads'"),
        ({"sample__guidance": "autoguidance"}, "config.sample.autoguidance_step"),
        ({"sample__guidance_interval": (1.0,)}, "config.sample.guidance_interval = "),
        ({"sample__guidance_interval": (2.0, 1.0)}, "0 <= low < high"),
        ({"sample__cads_tau": (0.9, 0.6)}, "config.sample.cads_tau = "),
        ({"sample__apg_momentum": 1.0}, "config.sample.apg_momentum = 1.0"),
        ({"sample__apg_eta": 1.5}, "config.sample.apg_eta = 1.5"),
        ({"annotate__endpoint__base_url": "localhost:8000"}, "expected http://"),
        ({"annotate__endpoint__timeout_s": 0.0}, "config.annotate.endpoint.timeout_s = 0.0"),
        ({"annotate__endpoint__concurrency": 0}, "config.annotate.endpoint.concurrency = 0"),
        ({"annotate__endpoint__image_format": "jpg"}, "did you mean 'jpeg'"),
        ({"annotate__text__kind": "openai"}, "config.annotate.endpoint.base_url and config.annotate.endpoint.model"),
        ({"annotate__bbox__kind": "transformers"}, "config.annotate.bbox.model"),
        (
            {"annotate__bbox__kind": "transformers", "annotate__bbox__model": "x", "annotate__bbox__image_size": 500}
            | {"annotate__bbox__coordinates": "pixels"},
            "use 504",
        ),
        ({"train__mixed_ratio": (2, 1, 1)}, "2 numbers from 0, one a resolution"),
        ({"train__mixed_ratio": (0, 1)}, "config.train.mixed_ratio = "),
        ({"train__mixed_ratio": (1, 99)}, "whose first leaves a row"),
        ({"train__mixed_ratio": (2.5, 1)}, r"config.train.mixed_ratio\[0\] = 2.5"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(changes, told):
    with pytest.raises(UserError, match=told):
        tiny_config(**changes)


def test_what_can_work_is_taken():
    for changes in (
        {"sample__guidance_interval": (0.3, 5.0), "sample__sampler": "heun"},
        {"sample__guidance": "autoguidance", "sample__autoguidance_step": 2},
        {"train__mixed_ratio": (2, 1)},
        {"annotate__text__kind": "transformers", "annotate__text__model": "x"},
        {"annotate__text__kind": "openai", "annotate__text__model": "x"}
        | {"annotate__endpoint__base_url": "http://localhost:8000/v1"},
    ):
        tiny_config(**changes)
    with pytest.raises(UserError, match="1 numbers"):
        single_net_config(train__mixed_ratio=(2, 1))
