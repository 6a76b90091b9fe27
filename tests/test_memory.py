"""What is free: of the machine, or of the container that limits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile import memory

MIB = 1 << 20
VERSIONS = {
    2: {"memory.max": "{limit}", "memory.current": "{used}", "memory.stat": "anon 7\ninactive_file {cached}\n"},
    1: {
        "memory/memory.limit_in_bytes": "{limit}",
        "memory/memory.usage_in_bytes": "{used}",
        "memory/memory.stat": "inactive_file 0\ntotal_inactive_file {cached}\n",
    },
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 MiB free and no control groups."""
    (tmp_path / "meminfo").write_text("MemTotal:  4096000 kB\nMemAvailable:  1024000 kB\n")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP_FOLDER", tmp_path)
    return tmp_path


def limit(folder: Path, version: int, **numbers: object) -> None:
    for name, text in VERSIONS[version].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.format(**numbers) + "\n")


def test_free_memory_is_that_of_the_machine() -> None:
    assert memory.free_memory() == 1000 * MIB


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_leaves_what_its_limit_leaves_and_unused_file_pages(machine: Path, version: int) -> None:
    limit(machine, version, limit=512 * MIB, used=300 * MIB, cached=100 * MIB)
    assert memory.free_memory() == 312 * MIB


@pytest.mark.parametrize(("version", "none"), [(2, "max"), (1, 9223372036854771712)])
def test_a_container_without_limit_has_what_the_machine_has(machine: Path, version: int, none: object) -> None:
    limit(machine, version, limit=none, used=300 * MIB, cached=0)
    assert memory.free_memory() == 1000 * MIB


def test_nothing_is_free_beyond_the_limit(machine: Path) -> None:
    limit(machine, 2, limit=100 * MIB, used=120 * MIB, cached=0)
    assert memory.free_memory() == 0


def test_a_system_that_does_not_say(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.free_memory() is None
