"""A media host that responds as a test says, and checks of the folder that songs are stored in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WAV = b"RIFF\x00\x00\x00\x00WAVE" + bytes(20_000)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(2_000)

Song = dict[str, Any]
MakeSongs = Callable[..., list[Song]]
#: Runs the operator with these songs and arguments, and returns the manifest.
Transfer = Callable[..., Any]
StartTransfer = Callable[..., "subprocess.Popen[str]"]
Respond = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class MediaHost:
    """
    A media host.

    :param url: Its base URL.
    :param requests: The path and the headers of each request.
    :param responses: How it responds, by path.
    """

    url: str
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    responses: dict[str, Respond] = field(default_factory=dict)

    def song(self, job_id: str = "some-job", **fields: Any) -> Song:
        return {"job_id": job_id, "title": "Midnight Grid", "song_url": f"{self.url}/song", "image_url": None, **fields}

    def count(self, path: str) -> int:
        """Return how many requests there were for a path."""
        return [requested for requested, _ in self.requests].count(path)


def respond(status: int, body: bytes = b"", **headers: str) -> Respond:
    """Respond with these headers, such as ``Content_Type``. An empty header is left out."""

    def serve(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return serve


def respond_in_turn(*responses: Respond) -> Respond:
    """Respond to each request with the next response. The last one repeats."""
    left = iter(responses)
    return lambda handler: next(left, responses[-1])(handler)


@contextmanager
def running_media_host() -> Iterator[MediaHost]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                host.requests.append((self.path, dict(self.headers)))
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                host.responses[self.path.partition("?")[0]](self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host = MediaHost(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield host
    server.shutdown()
    thread.join()
    server.server_close()


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def check_files(folder: Path, manifest: Any) -> set[str]:
    """Check that the manifest and all files that it names are in the folder, and return their names."""
    assert json.loads((folder / manifest["manifest"]).read_text()) == manifest
    names = {manifest["manifest"]}
    for song in manifest["songs"]:
        assert json.loads((folder / song["metadata"]).read_text()) == song
        names.add(song["metadata"])
        for file in (song["audio"], song["cover"]):
            if file is not None:
                content = (folder / file["name"]).read_bytes()
                assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
                names.add(file["name"])
    return names


def assert_complete(folder: Path, manifest: Any) -> None:
    """Check that the folder holds the manifest and all files that it names, each song with a cover, and no others."""
    assert all(song["cover"] for song in manifest["songs"])
    assert file_names(folder) == check_files(folder, manifest)
