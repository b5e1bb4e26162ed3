"""ISVI's flow completion, on the flow that a RAFT finds between frames of real clips, for one accelerator.

Its RAFT is the folder that `convert raft` made. configs.common.flow says which numbers are whose.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.flow()
    config.flow.update(raft="models/raft")
    config.data.update(sources=({"kind": "shards", "path": "clips", "weight": 1.0},), num_threads=16)
    return config
