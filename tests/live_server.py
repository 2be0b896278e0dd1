"""A server of a model in a thread of this process, for tests that need real connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gensar_hf import GenSARPipeline
from gensar_hf.serving.server import http_server
from gensar_hf.serving.settings import ServingSettings


@contextmanager
def live_server(pipe: GenSARPipeline, **settings: Any) -> Iterator[str]:
    """Serve at a free port; gives the address without a slash at its end."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]
        server = http_server(pipe, ServingSettings(port=port, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive(), "The server did not start."
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()
