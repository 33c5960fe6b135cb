"""Config of an experiment: the schema, checks across its fields, and configs from files, flags and JSON."""

from kaleido_jax.config.checks import validate
from kaleido_jax.config.load import base_config, load_config
from kaleido_jax.config.schema import Config, PointNet, UNet, default_config, to_config_dict

__all__ = [
    "Config",
    "PointNet",
    "UNet",
    "base_config",
    "default_config",
    "load_config",
    "to_config_dict",
    "validate",
]
