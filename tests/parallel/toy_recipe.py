"""`m3ddm_jax.train` of a recipe that compiles in a second: from a pixel, if it is known, to a pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.experimental import multihost_utils

from m3ddm_jax import cli, recipes, train
from m3ddm_jax.recipes import base
from m3ddm_jax.training.encoding import to_unit_range
from m3ddm_jax.training.state import abstract_state, init_state
from m3ddm_jax.training.update import apply_update

WIDTH = 2048  # enough for `fsdp` to split


class ToyRecipe:
    """The Recipe of any config with sections data and train."""

    frozen, fixed = {}, {"kind": "toy"}

    def __init__(self, config):
        self._config = config
        self._optimizer = optax.adam(config.train.learning_rate)

    def dataset(self, seed, sources=None):
        return base.make_clips(self._config, seed, sources)

    def _init(self, key):
        first, second = jax.random.split(key)
        params = {"in": jax.random.normal(first, (4, WIDTH)), "out": jax.random.normal(second, (WIDTH, 3))}
        return {"params": params | {"bias": jnp.zeros(3)}}

    def abstract_state(self, rng, mesh):
        return abstract_state(self._init, self._optimizer, rng, mesh)

    def begin(self, rng, abstract_state, batch, frozen):
        return init_state(self._init, self._optimizer, rng, abstract_state)

    def step(self, state, batch, frozen):
        video, unknown = to_unit_range(batch["video"]), batch["mask"].astype(jnp.float32)
        seen = jnp.concatenate([video * (1 - unknown), unknown], axis=-1)
        seen = seen + 0.01 * jax.random.normal(jax.random.fold_in(state.rng, state.step), seen.shape)

        def block(hidden):
            return jnp.tanh(jnp.sin(hidden))

        if self._config.model.remat == "blocks":
            block = jax.checkpoint(block)

        def loss(params):
            hidden = block(block(block(seen @ params["in"])))
            return jnp.mean(jnp.square(hidden @ params["out"] / WIDTH + params["bias"] - video))

        value, grads = jax.value_and_grad(loss)(state.params)
        train = self._config.train
        state, metrics = apply_update(
            state, grads, self._optimizer, spike_patience=train.spike_patience, ema_decay=train.ema_decay
        )
        return state.replace(step=state.step + 1), {"loss": value} | metrics

    def export(self, folder, state):
        params = multihost_utils.process_allgather(state.ema_params, tiled=True)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            np.savez(folder / "weights.npz", **params)


def main(*workdirs):
    """Trains in the folder of the flag, and then in further ones; on four CPU devices a process."""
    train.main()
    for workdir in workdirs:
        train.train(flags.FLAGS.config, workdir)


if __name__ == "__main__":
    recipes.RECIPES["toy"] = ToyRecipe
    train._define_flags()
    flags.DEFINE_multi_string("then", [], "Further workdirs, trained in one after the other.")
    cli.run("train", lambda: main(*flags.FLAGS.then))
