"""GlobalPaint's key-frame model in minutes on two cores, from random weights, on synthetic clips."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    return common.globalpaint_tiny()
