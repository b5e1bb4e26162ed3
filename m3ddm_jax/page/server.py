"""Serve the page from this machine, without a call to any other."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The browser loads from the page's own address alone, whatever Gradio's frontend names.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'"
)
# Read by Gradio and by huggingface_hub when they are imported.
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextlib.contextmanager
def serving(host: str, port: int, megabytes: int) -> Iterator[str]:
    """The page's address, while it is served; its files are deleted at the end.

    port: 0 for any that is free. megabytes: of a video, at most.
    Raises ValueError for a port that is in use, and where gradio is not installed.
    """
    port = _free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="m3ddm-demo-") as folder:
        uploads = Path(folder) / "uploads"
        os.environ.update(_QUIET, GRADIO_TEMP_DIR=str(uploads))
        try:
            import gradio as gr
            from starlette.middleware import Middleware
        except ImportError:
            raise ValueError('the page needs gradio: pip install "m3ddm-jax[demo]"') from None
        from m3ddm_jax.page.layout import STATIC, Page

        page = Page(Path(folder), uploads)
        _, address, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=megabytes << 20,
            allowed_paths=[folder],
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=[STATIC / "page.css"],
            app_kwargs={"middleware": [Middleware(_OwnAddressOnly)]},
        )
        try:
            yield address
        finally:
            page.close()
            page.blocks.close(verbose=False)


def _free_port(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"`port` {port} of {host} cannot be used: {error.strerror}") from None
        return probe.getsockname()[1]


class _OwnAddressOnly:
    """ASGI middleware that adds the policy to every answer."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self._app(scope, receive, send_with_policy)
