"""Connect to a Ray cluster within bounded time, or start one for the length of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantry import PluginError, UsageError

__all__ = ["connected", "import_ray"]

_PROBE_S = 5.0
_STORE_BYTES = 100 << 20  # results are numbers: the least that Ray accepts, with room
# what a gRPC server answers by a SETTINGS frame, type 4 (RFC 9113, 3.4 and 6.5)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HINT = "Name the head of a running cluster, HOST:PORT (6379 unless `ray start` said otherwise)."


def import_ray() -> Any:
    """The module, whose types are not complete. Raises PluginError where it cannot be imported."""
    try:
        import ray
    except ImportError as e:
        raise PluginError(f"ray cannot be imported: {e}", hint='pip install "quantry[ray]"') from e
    return ray


@contextlib.contextmanager
def connected(address: str | None, jobs: int | None = None) -> Iterator[None]:
    """Within the block this process is a driver of the cluster.

    address: HOST:PORT; None or "auto": what RAY_ADDRESS names, else a cluster of `jobs` cores, by default
    all, is started here and ended after the block; "local": that in any case. A connection that the process
    has already is used and kept. Raises UsageError for an address that does not answer or is of another kind,
    PluginError where Ray is missing, broken or of another version than the cluster's.
    """
    ray = import_ray()
    named = address if address not in (None, "", "auto") else os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        _check_same(address, ray.get_runtime_context().gcs_address)
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of workers that died; stdout is for data
        if named in ("auto", "local"):
            with _local(jobs):
                yield
        else:
            _join(named)
            try:
                yield
            finally:
                ray.shutdown()


@contextlib.contextmanager
def _local(jobs: int | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        # else Ray leaves one in the home folder, and the user's next cluster asks for it
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # of its own: nobody takes the cluster for a lasting one; short: a socket's path has 107 bytes at most
    base = "/tmp" if Path("/tmp").is_dir() else None
    folder = tempfile.mkdtemp(prefix="quantry-ray-", dir=base)
    try:
        try:
            _init(
                "local", num_cpus=jobs or os.cpu_count() or 1, include_dashboard=False,
                object_store_memory=_STORE_BYTES, _temp_dir=folder,
            )  # fmt: skip
        except Exception as e:
            raise PluginError(
                f"no Ray cluster can be started here: {e}", hint="`ray start --head` shows why."
            ) from e
        yield
    finally:
        import_ray().shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _join(address: str) -> None:
    _probe(address)
    try:
        _init(address)
    except getattr(import_ray().exceptions, "AuthenticationError", ()) as e:  # older Ray knows no tokens
        raise _needs_token(address) from e
    except ConnectionError as e:
        if "AuthToken" in str(e.__cause__):
            raise _needs_token(address) from e
        raise UsageError(
            f"the Ray cluster at {address} does not take this process as one of its own: {e}",
            hint=f"Run it on a machine of the cluster; `ray start --address={address}` makes this one such.",
        ) from e
    except RuntimeError as e:
        if "Version mismatch" not in str(e):
            raise UsageError(f"the Ray cluster at {address} cannot be joined: {e}", hint=_HINT) from e
        raise PluginError(
            f"the Ray cluster at {address} is of another version. {' '.join(str(e).split())}",
            hint="Install the cluster's versions of Ray and Python here.",
        ) from e


def _needs_token(address: str) -> UsageError:
    # never on our own account: Ray hands no token to an address that is named, unless the user says so
    return UsageError(
        f"the Ray cluster at {address} asks for a token that this process does not show",
        hint="If you trust that address: RAY_AUTH_MODE=token, and its token as `ray get-auth-token` tells.",
    )


def _init(address: str, **options: object) -> None:
    ray = import_ray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray announces its own plans, which no user of ours can act on
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, found, rest = address.partition("://")
    if found:
        what = {"ray": "a Ray client's address", "http": "the address of `ray job submit`"}
        kind = what.get(scheme.removesuffix("s"), f"no address of a cluster: {scheme}")
        raise UsageError(
            f"{address} is {kind}; work is handed out by a process on a machine of the cluster",
            hint=f"Run quantry there and name the head, {rest.partition(':')[0]}:6379.",
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{address!r} is no address of a Ray cluster", hint=_HINT)
    return host.strip("[]"), int(port)


def _probe(address: str) -> None:
    """Ray itself would wait for minutes."""
    place = _host_and_port(address)
    try:
        with socket.create_connection(place, _PROBE_S) as connection:
            connection.settimeout(_PROBE_S)
            connection.sendall(_PREFACE)
            head = connection.recv(9)
    except OSError as e:
        raise UsageError(f"no Ray cluster answers at {address}: {e.strerror or e}", hint=_HINT) from e
    if len(head) < 4 or head[3] != 4:
        raise UsageError(f"what answers at {address} is no Ray cluster", hint=_HINT)


def _check_same(address: str | None, connected_to: str) -> None:
    if address in (None, "", "auto", connected_to):
        return
    raise UsageError(
        f"this process is connected to the Ray cluster at {connected_to} already, not to {address}",
        hint="Leave the address out, or call ray.shutdown() first.",
    )
