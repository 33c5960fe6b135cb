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
    ):
        tiny_config(**changes)
    with pytest.raises(UserError, match="1 numbers"):
        single_net_config(train__mixed_ratio=(2, 1))
