"""Addresses that lead to no cluster are refused by name, and soon."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from quantry import UsageError
from quantry.isq import quantize_checkpoint
from quantry_ray.cluster import connected


def refusal(address):
    with pytest.raises(UsageError) as e, connected(address):
        pass
    return e.value


@contextlib.contextmanager
def answering(*says):
    """A port where each connection is told something and closed; told nothing, it stays open."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    for line in says:
                        held[-1].recv(64)
                        held[-1].sendall(line)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def test_a_closed_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    e = refusal(address)
    assert e.problem.startswith(f"no Ray cluster answers at {address}: ")
    assert "HOST:PORT" in e.hint


def test_a_port_that_says_nothing(monkeypatch):
    monkeypatch.setattr("quantry_ray.cluster._PROBE_S", 0.2)
    with answering() as address:
        assert refusal(address).problem == f"no Ray cluster answers at {address}: timed out"


def test_a_port_of_something_else():
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert refusal(address).problem == f"what answers at {address} is no Ray cluster"


def test_a_host_without_an_address(monkeypatch):
    def unknown(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no Ray cluster answers at nowhere.invalid:6379" in refusal("nowhere.invalid:6379").problem


def test_ray_address_is_taken_and_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert address in refusal(None).problem
    assert address in refusal("auto").problem


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "a Ray client's address"),
        ("http://head:8265", "the address of `ray job submit`"),
        ("https://head", "the address of `ray job submit`"),
        ("redis://head:6379", "no address of a cluster: redis"),
    ],
)
def test_other_ways_to_a_cluster_are_named(address, problem):
    e = refusal(address)
    assert e.problem.startswith(f"{address} is {problem}")
    assert "head:6379" in e.hint


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:x", "head:70000", "head:0"])
def test_what_is_no_address(address):
    assert refusal(address).problem == f"{address!r} is no address of a Ray cluster"


def failing(kind):
    """What Ray raises, as it was seen: its ConnectionError tells of a token in the cause only."""
    if kind == "token":
        error = ConnectionError("Failed to connect to Ray cluster at 192.0.2.7:6379")
        error.__cause__ = RuntimeError("Failed to connect to GCS. RPC error: InvalidAuthToken: ...")
        return error
    kinds = {"node": ConnectionError("Failed to connect to Ray cluster at 192.0.2.7:6379")}
    return kinds.get(kind) or RuntimeError("something else")


@pytest.mark.parametrize(
    ("kind", "problem", "hint"),
    [
        ("token", "asks for a token that this process does not show", "RAY_AUTH_MODE=token"),
        ("node", "does not take this process as one of its own", "ray start --address="),
        ("other", "cannot be joined: something else", "HOST:PORT"),
    ],
)
def test_a_cluster_that_does_not_take_the_process(monkeypatch, kind, problem, hint):
    def init(address, **options):
        raise failing(kind)

    monkeypatch.setattr("quantry_ray.cluster._init", init)
    with answering(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as address:
        e = refusal(address)
    assert e.problem.startswith(f"the Ray cluster at {address} {problem}")
    assert hint in e.hint


def test_nothing_is_left_where_the_output_would_be(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="is no address"):
        quantize_checkpoint(tmp_path, tmp_path / "out" / "x.uqff", "f16", executor="ray", address="head")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}
