"""The machine and the software versions of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from trigflow.system.version import __version__


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, device, versions, and the commit where this is a checkout (else None)."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device(device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trigflow": __version__,
        "commit": commit(),
    }


def cpu_model() -> str:
    """The name of the processor, from the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """ "cpu", "mps", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with "-dirty" if changed since; None elsewhere."""
    here = Path(__file__).resolve()
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(here: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # no git here, or no checkout: nothing to state
        return None
    return done.stdout.strip()
