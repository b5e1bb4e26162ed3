"""Where the nearest pixel of a kind lies."""

import cv2
import numpy as np


def nearest(there: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the nearest true pixel of bool [h, w], int [h, w], and its distance, float32 [h, w].

    Where no pixel is true, each is its own nearest one.
    """
    if not there.any():
        return *np.indices(there.shape), np.zeros(there.shape, np.float32)
    away = (~there).astype(np.uint8)
    distance, labels = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    places = np.nonzero(there)
    lookup = np.empty((2, labels.max() + 1), np.intp)
    lookup[:, labels[places]] = places
    rows, columns = lookup[:, labels]
    return rows, columns, distance
