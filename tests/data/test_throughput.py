import shutil

import pytest

from data import throughput


def test_rates_and_their_ratios_are_told(video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(throughput, "CLIPS", 2)
    monkeypatch.setattr(throughput, "PAUSE", 0)
    monkeypatch.setattr(throughput, "BUCKET", (16, 16))
    monkeypatch.setattr(throughput, "WORKERS", ())  # tests/data/test_pipeline.py has some
    monkeypatch.setattr(throughput, "MADE_CLIPS", 1)
    monkeypatch.setattr(throughput, "MADE_FRAMES", 6)
    shutil.copy(video_folder / "clip0.mp4", tmp_path)
    for path in (tmp_path, None):
        result = throughput.measure(path, num_threads=1)
        assert result["threads"] == 1 and min(result.values()) > 0
        assert result["pipeline_over_bare"] == pytest.approx(
            result["pipeline_frames_per_second"] / result["bare_frames_per_second"]
        )
