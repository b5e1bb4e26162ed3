"""Outpaint in the browser: python -m m3ddm_jax.demo [--port=7860]

Serves a page on this machine: drop a video, choose the canvas, outpaint, compare and download. Ctrl-C ends it. Exit
code 2 with one line that says what is wrong.
"""

import threading

from absl import flags

from m3ddm_jax import cli
from m3ddm_jax.page.server import serving


def main() -> None:
    values = flags.FLAGS
    with serving(values.host, values.port, values.max_megabytes) as address:
        print(f"demo: {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    flags.DEFINE_string("host", "127.0.0.1", "Address to serve on; 0.0.0.0 lets other machines connect.")
    flags.DEFINE_integer("port", 7860, "Port to serve on.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_integer("max_megabytes", 500, "Largest video that is accepted, in MiB.", lower_bound=1)
    cli.enable_compilation_cache()
    cli.run("demo", main)
