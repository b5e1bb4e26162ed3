"""What every outpainter is, the options of each method, and the table of methods.

A new method is one file, whose class takes its options from a dataclass here, and one row of OUTPAINTERS: the command
line makes flags, checks and help from both.
"""

import dataclasses
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable

import numpy as np

from m3ddm_jax.checked import accepted_instead
from m3ddm_jax.geometry import Canvas, Masks
from m3ddm_jax.video import FrameSource


class Outpainter(Protocol):
    """Makes a video larger than it is, in memory that does not grow with its length."""

    def __call__(
        self, source: FrameSource, canvas: Canvas, rng: Any, masks: Masks | None = None
    ) -> Iterator[np.ndarray]:
        """Yields canvas frames, uint8 [n,H,W,3], in time order; the caller pastes the source and writes.

        rng: a jax random key; a deterministic outpainter takes None. masks: of the canvas's size, what is generated
        besides the border; only methods whose row says `masks` have this argument.
        """


COMPLETION_NETWORKS = ("lama", "migan", "deepfill")
"""Kinds of the networks that complete an image; of several, the first is used."""
ISVI_NETWORKS = ("raft", "igfc", "asfn", *COMPLETION_NETWORKS)
"""Kinds of the networks of `isvi`, and names of the sub-folders that its model folder may have."""


@runtime_checkable
class OverModels(Protocol):
    """What outpainters over model folders have in addition.

    models: option that names a folder -> the local folder, and the settings (a dataclass) that are used of it.
    """

    models: Mapping[str, tuple[Path, Any]]


def option(default: Any, help_: str, **about: Any) -> Any:
    """A field that is an option of a method.

    about: `least`, the smallest whole number that is accepted; `flag`, the name on the command line where it is another
    one.
    """
    return dataclasses.field(default=default, metadata={"help": help_, **about})


def _settings() -> Any:
    return option(None, "NAME=VALUE, one setting; docs/models/ lists them", flag="set")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a method: the fields of a dataclass that the method's class derives from."""

    def __post_init__(self):
        """Where a method's class checks its options and loads its networks."""


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    model: str | Path | None = option(None, "model folder, or hf:OWNER/NAME; m3ddm, isvi and lite do without")
    _: dataclasses.KW_ONLY
    settings: Mapping[str, Any] | None = _settings()


@dataclasses.dataclass(frozen=True)
class NetworkOptions(ModelOptions):
    dtype: Literal["float32", "bfloat16"] = option("float32", "what networks compute in")


@dataclasses.dataclass(frozen=True)
class DiffusionOptions(NetworkOptions):
    steps: int | None = option(None, "denoising steps; else the model's default", least=1)
    windows: int | None = option(None, "windows that are sampled at once; else one a device, on CPUs one", least=1)
    propagate: bool = option(False, "pixels that other frames show count as known")


@dataclasses.dataclass(frozen=True)
class LiteOptions(ModelOptions):
    _: dataclasses.KW_ONLY
    prefer: Literal["faithful", "sharp"] | None = option(
        None, "complete what no frame shows (sharp), or the least expected error (faithful); else sharp without adapt"
    )
    adapt: int = option(0, "updates of a small network on each shot of the video itself, 60 are usual", least=0)
    cache: str | Path | None = option(None, "folder where adapted networks are cached; empty: no cache")


@dataclasses.dataclass(frozen=True)
class M3ddmOptions(DiffusionOptions):
    preset: str | None = option(None, "official: outpaint as the released code does; else the model's default")


@dataclasses.dataclass(frozen=True)
class GlobalpaintOptions(DiffusionOptions):
    interpolation_model: str | Path | None = option(None, "folder of the second model; model is the first")
    sequential: bool = option(False, "clip after clip by model alone, without key frames")


@dataclasses.dataclass(frozen=True)
class In2outOptions(NetworkOptions):
    pass


@dataclasses.dataclass(frozen=True)
class IsviOptions(ModelOptions):
    pass


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table. Called with values of its options, it makes the outpainter.

    target: "module:class", imported when it is called: classical methods need no jax. stochastic: whether it draws from
    a random key. masks: whether it generates what masks say too. kinds: of models; a folder that holds
    some of them and no others selects the method.
    """

    target: str
    options: type[Options] = Options
    stochastic: bool = False
    masks: bool = False
    kinds: tuple[str, ...] = ()

    def __call__(self, *arguments: Any, **options: Any) -> Outpainter:
        return pkgutil.resolve_name(self.target)(*arguments, **options)


_HERE = "m3ddm_jax.pipelines"
OUTPAINTERS: dict[str, Method] = {
    "lite": Method(f"{_HERE}.lite:Lite", LiteOptions, kinds=COMPLETION_NETWORKS),
    "m3ddm": Method(f"{_HERE}.m3ddm:M3DDM", M3ddmOptions, stochastic=True, kinds=("m3ddm",)),
    "globalpaint": Method(
        f"{_HERE}.globalpaint:GlobalPaint", GlobalpaintOptions, stochastic=True, kinds=("globalpaint",)
    ),
    "in2out": Method(f"{_HERE}.in2out:In2Out", In2outOptions, masks=True, kinds=("e2fgvi",)),
    "isvi": Method(f"{_HERE}.isvi:Isvi", IsviOptions, masks=True, kinds=ISVI_NETWORKS),
    "edge": Method(f"{_HERE}.baselines:Edge"),
    "blur": Method(f"{_HERE}.baselines:Blur"),
    "telea": Method(f"{_HERE}.baselines:Telea"),
    "mosaic": Method(f"{_HERE}.mosaic:Mosaic"),
}
"""name -> what makes the outpainter of that name."""


def make_outpainter(method: str, **options: Any) -> Outpainter:
    """The outpainter of that name; options that are None count as not given.

    Raises ValueError for an unknown name, an option of other methods, a value that the option does not accept, or a
    model that cannot be loaded, TypeError for an option that no method has.
    """
    if method not in OUTPAINTERS:
        raise ValueError(f"`method` must be one of {', '.join(OUTPAINTERS)}, found {method!r}")
    row = OUTPAINTERS[method]
    given = {name: value for name, value in options.items() if value is not None}
    kinds, fields = typing.get_type_hints(row.options), {field.name: field for field in dataclasses.fields(row.options)}
    for name, value in given.items():
        if name not in fields:
            _refuse_option(name, method)
        accepted = accepted_instead(kinds[name], value, fields[name].metadata.get("least", 1))
        if accepted:
            raise ValueError(f"`{name}` must be {accepted.removesuffix(' or null')}, found {value!r:.100}")
    return row(**given)


def option_names(method: str) -> list[str]:
    """Names of the options of a method."""
    return [field.name for field in dataclasses.fields(OUTPAINTERS[method].options)]


def _refuse_option(name: str, method: str) -> NoReturn:
    methods = [other for other in OUTPAINTERS if name in option_names(other)]
    if not methods:
        raise TypeError(f"there is no option `{name}`")
    raise ValueError(f"`{name}` is an option of {', '.join(methods)}, found `method` {method}")
