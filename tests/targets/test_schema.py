"""Facts about runtimes, and how they follow the version."""

from __future__ import annotations

import pytest

from qcompile.errors import InputError
from qcompile.targets.schema import Target, release


def test_versions_are_compared_by_number() -> None:
    assert release("1.9") == (1, 9, 0) < release("1.19.2") < release("1.23.0.dev20260101") == (1, 23, 0)


@pytest.mark.parametrize("text", ["", "new", "1", "v1.20", "1.x"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(InputError, match="is no version; give one such as"):
        release(text)


@pytest.mark.parametrize(
    ("runtime", "on_codes"),
    [
        (None, set()),
        ("1.20.1", set()),
        ("1.21", {"DepthToSpace"}),
        ("1.27.0", {"DepthToSpace"}),
        ("1.28.0", {"DepthToSpace", "SpaceToDepth"}),
    ],
)
def test_operators_of_later_versions_count_where_these_are_promised(runtime: str | None, on_codes: set[str]) -> None:
    oldest = Target.load("ort-cpu")
    target = Target.load("ort-cpu", runtime)
    late = set(target.codes_since)
    assert target.codes & late == on_codes and target.codes - late == oldest.codes
    assert {op for op in late if op in target.float_reasons} == late - on_codes
    assert target.runtime == (runtime or "1.19.2")


def test_a_version_that_no_file_runs_on() -> None:
    with pytest.raises(InputError, match=r"--runtime-version 1\.18\.0 is too old; give 1\.19\.2 or a later one"):
        Target.load("ort-cpu", "1.18.0")
