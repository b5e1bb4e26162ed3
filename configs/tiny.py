"""The old path of configs/m3ddm_embedded.py."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    raise ValueError("configs/tiny.py is configs/m3ddm_embedded.py now")
