"""Running pollers, one process after the other, against the raw server on another processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from benchmarks.poller_process import Figures
from benchmarks.pollers import KEY
from benchmarks.server import RawServer, Received

MARGIN_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """
    One process that polled.

    :param figures: What it measured of itself.
    :param received: What the server received from it.
    """

    figures: Figures
    received: Received

    @property
    def polls(self) -> int:
        """How many requests came in the window."""
        return len(self._in_window)

    @property
    def connections_per_poll(self) -> float:
        """Connections per request, from the first one on."""
        return len(self.received.connections) / max(len(self.received.requests), 1)

    @property
    def peak_to_mean(self) -> float:
        """The most requests in a second of the window, as a multiple of the mean."""
        begin, end = self.figures.window
        seconds = int(end - begin)
        counts = [0] * seconds
        for at in self._in_window:
            if at - begin < seconds:
                counts[int(at - begin)] += 1
        return max(counts) * seconds / max(sum(counts), 1)

    @property
    def _in_window(self) -> list[float]:
        begin, end = self.figures.window
        return [at for at in self.received.requests if begin <= at < end]


class Bench:
    """
    The raw server, and the way to run pollers against it.

    :param server: The server.
    :param authorities: The file of the CAs that clients trust; None for http.
    :param home: A directory that is thrown away.
    """

    def __init__(self, server: RawServer, authorities: Path | None, home: Path) -> None:
        self._server = server
        self._ca = None if authorities is None else str(authorities)
        self._home = home

    def run(
        self,
        name: str,
        jobs: int,
        interval: float,
        warm_up: float,
        seconds: float,
        max_requests_per_second: float | None = None,
        profile: Path | None = None,
    ) -> Run:
        """
        Run one poller and return its measurements.

        :param name: Which one, of :data:`benchmarks.pollers.POLLERS`.
        :param jobs: How many jobs.
        :param interval: Seconds between two polls of a job.
        :param warm_up: Seconds before the measurement begins.
        :param seconds: Seconds that it lasts.
        :param max_requests_per_second: The account's limit in our connection; None to give none.
        :param profile: The file for a profile.
        """
        self._server.take_received()
        command = [sys.executable, "-m", "benchmarks.poller_process", name, "--origin", self._server.origin]
        command += ["--jobs", str(jobs), "--interval", str(interval)]
        command += ["--warm-up", str(warm_up), "--seconds", str(seconds)]
        client_cpu, _ = processors()
        if client_cpu is not None:
            command += ["--cpu", str(client_cpu)]
        if self._ca:
            command += ["--ca", self._ca]
        if profile:
            command += ["--profile", str(profile)]
        done = subprocess.run(
            command,
            env=self._environment(max_requests_per_second),
            capture_output=True,
            text=True,
            check=False,
            timeout=warm_up + seconds + MARGIN_SECONDS,
        )
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            raise RuntimeError(f"The poller {name} failed:\n{done.stderr[-2000:]}")
        figures = json.loads(lines[-1])
        figures["window"] = tuple(figures["window"])
        run = Run(Figures(**figures), self._server.take_received())
        if run.figures.ended:
            raise RuntimeError(f"{run.figures.ended} triggers of {name} ended:\n{done.stdout[-2000:]}")
        return run

    def _environment(self, max_requests_per_second: float | None) -> dict[str, str]:
        extra: dict[str, object] = {}
        if self._ca:
            extra["verify"] = self._ca
        if max_requests_per_second:
            extra["max_requests_per_second"] = max_requests_per_second
        whisul = {"conn_type": "whisul", "password": KEY, "host": f"{self._server.origin}/api", "extra": extra}
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        env |= {
            "AIRFLOW_HOME": str(self._home),
            # What a rate limiter has learnt of the account is kept here, for the pollers of this run alone.
            "TMPDIR": str(self._home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_WHISUL_DEFAULT": json.dumps(whisul),
            "AIRFLOW_CONN_HTTP_DEFAULT": json.dumps({"conn_type": "http", "host": self._server.origin}),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if self._ca:
            # The http provider's connection can name no CA for its triggers.
            env["SSL_CERT_FILE"] = self._ca
        return env


@contextmanager
def bench(tls: bool = False) -> Iterator[Bench]:
    """Run the server for as long as the context lasts, on request with https and a CA of our own."""
    with tempfile.TemporaryDirectory(prefix="whisul-bench-") as directory:
        home = Path(directory)
        certificate = authorities = None
        if tls:
            certificate, authorities = home / "server.pem", home / "authorities.pem"
            make_certificate(certificate)
            # Beside all the usual ones: reading them is what makes a TLS context expensive.
            authorities.write_bytes(Path(DEFAULT_CA_BUNDLE_PATH).read_bytes() + certificate.read_bytes())
        with RawServer(processors()[1], certificate) as server:
            yield Bench(server, authorities, home)


def warm_up_seconds(interval: float) -> float:
    """
    Return how many seconds to wait before measuring, so that what a trigger does only once is over.

    The first poll comes between one and two intervals after a trigger's start.

    :param interval: Seconds between two polls of a job.
    """
    return 2 * interval + 1.0


def processors() -> tuple[int | None, int | None]:
    """Return a processor for the client and another for the server; None where there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


def make_certificate(path: Path) -> None:
    """Write a certificate for 127.0.0.1 that signs itself, with its key, to a file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
