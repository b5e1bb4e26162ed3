import numpy as np

from m3ddm_jax.pipelines.latent_cache import LatentCache


def test_the_first_version_guides_and_the_last_is_shown():
    versions = np.random.default_rng(0).normal(size=(3, 2, 4, 3)).astype(np.float32)
    with LatentCache() as cache:
        for version in versions:
            cache.write(5, version)
            np.testing.assert_array_equal(cache.first(5), versions[0])
            np.testing.assert_array_equal(cache.last(5), version)
        assert cache._file.seek(0, 2) <= 2 * versions[0].nbytes


def test_places_are_used_again():
    with LatentCache() as cache:
        for frame in range(40):
            latents = np.full((2, 2, 3), frame, np.float32)
            cache.write(frame, latents)
            cache.write(frame, -latents)
            cache.forget(frame - 3)
            for kept in range(max(0, frame - 3), frame + 1):
                assert (cache.first(kept) == kept).all() and (cache.last(kept) == -kept).all()
        assert cache._file.seek(0, 2) <= 12 * 4 * 12
