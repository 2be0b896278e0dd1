"""The process of `gensar serve`: it listens, serves the application and the page, and ends cleanly."""

import math
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import uvicorn

from gensar_hf.errors import InputError
from gensar_hf.pipeline import GenSARPipeline
from gensar_hf.serving.app import create_app
from gensar_hf.serving.settings import ServingSettings


def run(load: Callable[[], GenSARPipeline], settings: ServingSettings, announce: Callable[[str], None]) -> None:
    """Serve until the process is told to end, then answer what is under way.

    Args:
        load: loads the model. It is called when the port is taken, so that an unusable one is reported at once.
        settings: of the server.
        announce: called with the address when requests are answered.

    Raises:
        InputError: the address cannot be listened at, or the model cannot be loaded.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=1024)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise InputError(f"{settings.host}:{settings.port} cannot be listened at ({reason}); choose another.") from None
    with listener:
        server = http_server(load(), replace(settings, port=listener.getsockname()[1]))
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        server.on_start = lambda: announce(f"http://{host}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


def http_server(pipe: GenSARPipeline, settings: ServingSettings) -> "HTTPServer":
    """The server of a model, with the page if the settings want it; its `run(sockets=[…])` serves."""
    app = create_app(pipe, settings)
    if settings.page:
        from gensar_hf.serving.page import add_page  # takes seconds to import

        add_page(app, app.state.server)
    seconds = math.ceil(settings.timeout_s)  # after which no answer is under way
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=seconds
    )
    return HTTPServer(config, app.state.server.streams)


class HTTPServer(uvicorn.Server):
    """Calls `on_start` when it is ready. At its end it answers what is under way, but does not wait for open pages."""

    def __init__(self, config: uvicorn.Config, streams: set[Any]) -> None:
        super().__init__(config)
        self.on_start: Callable[[], None] = lambda: None
        self._streams = streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup(sockets)
        if self.started:
            self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections of open pages, then answer what is under way."""
        for task in [*self._streams]:
            task.cancel()
        await super().shutdown(sockets)
