"""What a run ran on: enough to repeat it, and nothing secret."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from xmodal.reporting.files import read_json, write_json

FILE = "environment.json"
PACKAGES = (
    *("xmodal", "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "flax", "optax"),
    *("orbax-checkpoint", "ml-collections", "numpy", "tokenizers", "simplejpeg", "opencv-python-headless"),
    *("pillow", "tensorflow-datasets", "tensorboardX"),
)


def collect_environment(run: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describes program, packages, machine and devices as plain JSON values.

    Args:
      run: facts that the run worked out at start. The report reads `total_steps`, `chance_loss` (objective
        name -> loss) and `parameters` (tower -> count); further entries are shown as they are.

    Returns:
      python, packages (name -> version), devices, hosts, cpu, memory_bytes, git, command, variables (JAX_*
      and XLA_* only, since other variables may hold secrets) and run.
    """
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "packages": _packages(),
        "devices": _devices(),
        "hosts": jax.process_count(),
        "cpu": {"model": _cpu_model(), "cores": _cores()},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "git": _git(),
        "command": list(sys.argv),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_"))},
        "run": dict(run or {}),
    }


def write_environment(workdir: str | os.PathLike, run: Mapping[str, Any] | None = None) -> Path:
    """Writes `environment.json` into the run folder; `run` as for `collect_environment`."""
    return write_json(Path(workdir) / FILE, collect_environment(run))


def read_environment(workdir: str | os.PathLike) -> dict[str, Any]:
    """The stored environment of a run, empty if there is none."""
    return read_json(Path(workdir) / FILE, default={})


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that this machine does without, or xmodal run from its folder
    return versions


def _devices() -> list[dict[str, Any]]:
    kinds = Counter((device.platform, device.device_kind) for device in jax.devices())
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return [
        {"platform": name, "kind": kind, "count": count, "memory_bytes": memory}
        for (name, kind), count in kinds.items()
    ]


def _cores() -> int | None:
    # A container or a batch system may allow fewer cores than the machine has; macOS cannot tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _git() -> dict[str, Any]:
    """Commit of the source tree that runs and whether it was changed since; empty outside of git."""
    root = Path(__file__).resolve().parents[2]

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed package may lie in somebody else's repository; its commit would say nothing about us.
        if Path(ask("rev-parse", "--show-toplevel")) != root:
            return {}
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}
