"""Other processors on this one: ONNX Runtime on arm64 under qemu-user, and in WebAssembly under node.

Everything is fetched into a folder and nothing is installed: Debian packages by apt with a configuration of its own and
unpacked, wheels by pip, onnxruntime-web by npm. It needs Linux on x86-64, apt-get and dpkg, npm and node.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

RELEASE = "trixie"  # Debian 13: its qemu 10 runs ONNX Runtime, on whose import that of Debian 12 crashes
CPUS = ("max", "neoverse-n1", "cortex-a53")  # with 8-bit matrix products, with dot products, with neither
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
HERE = Path(__file__).resolve().parent


def commands(folder: Path) -> dict[str, list[str]]:
    """Return, by platform, the command that runs jobs (run_outputs.py); what it needs is put into `folder`."""
    folder = folder.resolve()
    worker = str(HERE / "run_outputs.py")
    qemu = _debian(folder, "amd64", "qemu-user") / "usr/bin/qemu-aarch64"
    root = _debian(folder, "arm64", "python3", "libstdc++6")
    python = next(path for path in sorted(root.glob("usr/bin/python3.*")) if path.name[-1].isdigit())
    site = _wheels(folder, python.name.removeprefix("python"))
    arm = [str(qemu), "-L", str(root), "-E", f"PYTHONPATH={site}"]
    return {
        "x86-64": [sys.executable, worker],
        **{f"arm64 {cpu}": [*arm, "-cpu", cpu, str(python), worker] for cpu in CPUS},
        "wasm": [_found("node"), str(HERE / "run_outputs.mjs"), str(_web(folder))],
    }


def run(command: Sequence[str], what: str, **environment: str) -> str:
    """Run a command and return what it prints; exit with its last words where it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=kept | environment)
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise SystemExit(f"cannot {what} (exit {done.returncode}):\n{words}")
    return done.stdout


def _debian(folder: Path, architecture: str, *packages: str) -> Path:
    """Return the root of these packages and of what they depend on, unpacked."""
    root, own = folder / architecture, folder / f"apt-{architecture}"
    if (root / "complete").exists():
        return root
    for path in (own / "lists/partial", own / "cache/archives/partial", root):
        path.mkdir(parents=True, exist_ok=True)
    (own / "status").touch()
    keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    (own / "sources.list").write_text(f"deb {keys} {_archive()} {RELEASE} main\n", encoding="utf-8")
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::Etc::sourcelist": own / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": own / "lists",
        "Dir::State::status": own / "status",
        "Dir::Cache": own / "cache",
    }
    apt = [_found("apt-get"), *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    what = f"fetch {' and '.join(packages)} of Debian {RELEASE} for {architecture}"
    run([*apt, "update"], what)
    run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", *packages], what)
    for package in sorted((own / "cache/archives").glob("*.deb")):
        run([_found("dpkg"), "--extract", str(package), str(root)], f"unpack {package.name}")
    if not (root / "lib").exists():  # a link that the packages leave to the system
        (root / "lib").symlink_to("usr/lib")
    (root / "complete").touch()
    return root


def _archive() -> str:
    """Return where this machine's apt has Debian from."""
    listed = run([_found("apt-get"), "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"], "read the sources of apt")
    for line in listed.splitlines():
        origin, _, address = line.partition(" ")
        if origin == "Debian" and "security" not in address:
            return address
    raise SystemExit("apt knows no archive of Debian here: run this on Debian, after apt-get update")


def _wheels(folder: Path, python: str) -> Path:
    """Return a folder with ONNX Runtime of this environment's version, for arm64 and this version of Python."""
    name = f"onnxruntime=={version('onnxruntime')}"
    site = folder / f"site-{python}-{version('onnxruntime')}"
    if (site / "complete").exists():
        return site
    wheels = folder / f"wheels-{python}"
    shutil.rmtree(wheels, ignore_errors=True)
    platforms = [word for each in WHEELS for word in ("--platform", each)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "--only-binary=:all:"]
    run([*pip, *platforms, "--python-version", python, name, "numpy"], f"fetch {name} for arm64 and Python {python}")
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    (site / "complete").touch()
    return site


def _web(folder: Path) -> Path:
    """Return a folder with onnxruntime-web among its node_modules."""
    home = folder / "web"
    if not (home / "node_modules/onnxruntime-web").exists():
        home.mkdir(parents=True, exist_ok=True)
        run([_found("npm"), "install", "--silent", "--prefix", str(home), "onnxruntime-web"], "fetch onnxruntime-web")
    return home


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} is not on the search path, and this tool needs it")
    return path
