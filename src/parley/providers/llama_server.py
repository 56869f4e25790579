"""The embedded model's process: llama.cpp's own server on loopback, which runs until standard input closes.

`parley.providers.embedded` runs it as `python -m parley.providers.llama_server`, writes an `Order` to its standard
input and reads a `Report` from its standard output. It is a separate process because llama.cpp can crash at exit if a
request is in flight, and because all workers share one model.
"""

from __future__ import annotations

import os
import sys
from typing import Final, Literal

import msgspec

SLOTS: Final = 2
SLOT_CONTEXT_TOKENS: Final = 4096

# Variables that the dynamic loader, Python, OpenMP and GPU drivers read.
_VARIABLES: Final = {"HOME", "LANG", "LANGUAGE", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "__PYVENV_LAUNCHER__"}
_PREFIXES: Final = (
    *("DYLD_", "LC_", "LD_", "MALLOC_", "PYTHON"),
    *("GOMP_", "KMP_", "OMP_"),
    *("CUDA_", "GGML_", "GPU_", "HIP_", "HSA_", "NVIDIA_", "ROCR_", "VK_"),
)


class Order(msgspec.Struct, frozen=True):
    """The model to serve, the API key to require, and the port; 0 means any free port."""

    model_path: str
    api_key: str
    port: int = 0


class Report(msgspec.Struct, frozen=True):
    """Where the model is served, or why it is not."""

    url: str | None = None
    problem: Literal["no_package", "no_library", "no_model"] | None = None


def environment() -> dict[str, str]:
    """Return the environment variables that the process needs; none of them is a secret."""
    return {name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith(_PREFIXES)}


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)  # on all cores, it competes with the server and runs forty times slower


def _serve(order: Order) -> tuple[Report, object]:
    """Start the server, which serves as long as the returned object is referenced."""
    os.environ["OMP_WAIT_POLICY"] = (
        "passive"  # spinning threads would starve everything else; OpenMP reads this at import
    )
    try:
        import xllamacpp  # noqa: PLC0415  # after the environment is set, and only in this process
    except ModuleNotFoundError:
        return Report(problem="no_package"), None
    except ImportError:
        return Report(problem="no_library"), None

    params = xllamacpp.CommonParams()
    params.model.path = order.model_path
    params.model_alias = {"embedded"}
    params.api_keys = [order.api_key]
    params.port = order.port
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.cache_ram_mib = 0  # no cache of earlier prompts, which could take up to 8 GiB
    params.endpoint_slots = params.endpoint_props = params.ui = False
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        return Report(problem="no_model"), None
    return Report(url=str(server.listening_address)), server


def main() -> None:
    """Serve until standard input ends, which it does when the parent process ends for any reason."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as parent:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what llama.cpp prints
        report, _server = _serve(order)
        parent.write(msgspec.json.encode(report) + b"\n")
    if report.url is not None:
        sys.stdin.buffer.read()
    os._exit(0)  # llama.cpp's own exit can hang, or crash if a request is in flight


if __name__ == "__main__":
    main()
