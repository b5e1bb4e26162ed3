"""What every test shares: eight CPU devices, quick compilation, repeatable property tests, the folder of reference
outputs, and commands that run without a process of their own."""

import atexit
import contextlib
import functools
import gc
import math
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import warnings

# All must be set before the first import of jax. The environment passes them on to xdist's workers and to commands.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # XLA's newer generators of code set up a compiler of their own for each kernel: a third of what compiling costs.
    # Code generation in parts costs a quarter of it, and the workers use all cores.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters,xla_cpu_disable_tiled_emitter"
        " --xla_cpu_parallel_codegen_split_count=1"
    ).strip()
# Tests mostly compile: little optimization, and one folder of compiled programs for all.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)

import hypothesis
import numpy as np
import pytest
import torch
from absl import app, flags
from absl.testing import flagsaver

# lpips and open_clip import torchvision; PyPI's CUDA build of it fails beside a CPU build of torch unless these exist.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


# Test files that take the longest, longest first.
LONGEST = (
    "tests/eval/test_real_weights.py",
    "tests/test_train.py",
    "tests/parallel/test_scale.py",
    "tests/training/test_diffusion_step.py",
    "tests/recipes/test_adversarial.py",
    "tests/pipelines/test_m3ddm.py",
    "tests/models/test_globalpaint.py",
    "tests/parallel/test_processes.py",
    "tests/models/test_unet3d.py",
    "tests/training/test_gan_step.py",
    "tests/recipes/test_globalpaint.py",
    "tests/recipes/test_diffusion.py",
    "tests/pipelines/test_in2out.py",
    "tests/pipelines/test_isvi.py",
    "tests/models/test_i3d.py",
    "tests/weights/test_inpainting.py",
    "tests/pipelines/test_propagation.py",
    "tests/models/test_e2fgvi.py",
    "tests/models/test_lpips.py",
    "tests/test_plan.py",
    "tests/test_precompute.py",
    "tests/test_convert.py",
    "tests/flow/test_propagation.py",
    "tests/eval/test_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Run the longest files first: a long file that starts last leaves the other worker idle."""
    rank = {path: place for place, path in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def pytest_collection_finish():
    """Garbage is looked for less often, and not in what was imported: tracing makes so many objects that the search
    takes a quarter of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Folder of reference outputs ($M3DDM_GOLDENS or ../shared/goldens); who asks for it skips where neither exists."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("M3DDM_GOLDENS", root.parent / "shared" / "goldens"))
    if not folder.is_dir():
        pytest.skip(f"reference outputs are not here: {folder} is no folder (set M3DDM_GOLDENS)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def parameter_shapes_are_cached():
    """Flax traces the initialiser of each parameter that a module reads, to compare shapes: a quarter of tracing."""
    import jax
    from flax.core import meta
    from flax.core.scope import Scope

    read = Scope.param

    @functools.lru_cache(maxsize=10_000)
    def shape_of(initialiser, args):
        return jax.eval_shape(lambda: initialiser(jax.random.key(0), *args))

    def param(self, name, initialiser, *args, unbox=True, **options):
        if not options and self.has_variable("params", name):
            expected = shape_of(initialiser, tuple(tuple(a) if isinstance(a, list) else a for a in args))
            value = self.get_variable("params", name)
            if not isinstance(value, meta.AxisMetadata) and np.shape(value) == np.shape(expected):
                self.reserve(name, "params")
                return value
        return read(self, name, initialiser, *args, unbox=unbox, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scope, "param", param)
        yield


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(mean, standard deviation) of the random numbers of a variable, by the last part of its path."""
    if name in ("mean", "var"):
        return float(name == "var"), 0.0  # as they are before calibration
    if len(shape) > 1:
        return 0.0, math.prod(shape[:-1]) ** -0.5
    return float(name == "scale"), 0.1


@pytest.fixture(scope="module")
def quick_init():
    """Replace `registry.init` by one that draws all parameters at once, which compiles in a tenth of the time.

    Kernels are normal with variance 1 / fan-in; biases and scales of norms vary by 0.1; BatchNorm statistics are those
    before calibration; spectral vectors fit their kernels. For tests that need no value of the real initialisation.
    """
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict, unflatten_dict

    from m3ddm_jax.models import registry

    real_init = registry.init

    @functools.cache
    def shapes_of(module):
        return jax.eval_shape(lambda: real_init(module, jax.random.key(0)))

    def unit(vector):
        return vector / jnp.linalg.norm(vector)

    def init(module, key):
        shapes = flatten_dict(dict(shapes_of(module)))
        if not shapes:
            return {}
        stops = np.cumsum([leaf.size for leaf in shapes.values()])
        parts = jnp.split(jax.random.normal(key, (stops[-1],)), stops[:-1])
        variables = {}
        for (path, leaf), part in zip(shapes.items(), parts, strict=True):
            mean, deviation = _moments(path[-1], leaf.shape)
            variables[path] = (mean + deviation * part).reshape(leaf.shape).astype(leaf.dtype)
        for path in [path for path in variables if path[0] == "spectral" and path[-1] == "u"]:
            kernel, scope = variables[("params", *path[1:-1], "kernel")], path[:-1]
            variables[(*scope, "u")] = unit(variables[(*scope, "u")])
            variables[(*scope, "v")] = unit(kernel.reshape(-1, kernel.shape[-1]) @ variables[(*scope, "u")])
        return unflatten_dict(variables)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "init", init)
        yield


@contextlib.contextmanager
def at_its_level():
    import jax

    level = jax.config.jax_optimization_level
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", level)


@pytest.fixture
def traced():
    """A list that grows by an event for each function that jax traces, as it does before it compiles one."""
    import jax

    events = []

    def note(event: str, *_, **about) -> None:
        if event.endswith("jaxpr_trace_duration"):
            events.append(about)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture
def run_module(capfd, monkeypatch):
    """Function (module, *arguments): runs `python -m module arguments` in this process; returns what a process would.

    What absl sets up for a whole process is left out: handlers of logging and of faults.
    """

    def run(main, flags_parser=app.parse_flags_with_usage):
        sys.exit(main(flags_parser(sys.argv)))

    def run_module(module: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [module, *map(str, arguments)]
        monkeypatch.setattr(app, "run", run)
        monkeypatch.setattr(sys, "argv", command)
        capfd.readouterr()
        # Flags that it defines go when it ends, and so does the compiler's level.
        with at_its_level(), flagsaver.flagsaver(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
            with pytest.raises(SystemExit) as stop:
                runpy.run_module(module, run_name="__main__")
        flags.FLAGS.unparse_flags()
        return subprocess.CompletedProcess(command, stop.value.code or 0, *capfd.readouterr())

    return run_module
