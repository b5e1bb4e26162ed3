"""ISVI's style fusion, on real frames and simulated changes of their style, for one accelerator."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.style()
    config.data.update(sources=({"kind": "shards", "path": "clips", "weight": 1.0},), num_threads=16)
    return config
