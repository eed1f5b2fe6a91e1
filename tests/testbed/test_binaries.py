"""The test bed looks for its programs in the documented order."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import binaries

SUFFIX = "-linux-amd64"


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no programs, no Go and empty caches."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.delenv("KUBERNETES_MINOR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


def programs_in(folder: Path, names: tuple[str, ...] = binaries.BUILT_NAMES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


def built(machine: Path, names: tuple[str, ...] = binaries.BUILT_NAMES) -> Path:
    """A finished build of the chosen minor."""
    return programs_in(machine / "cache" / "finetune-operator" / "testbed" / binaries._source_hash(), names)


def envtest(machine: Path, version: str) -> Path:
    store = machine / "data" / "kubebuilder-envtest" / "k8s"
    return programs_in(store / f"{version}{SUFFIX}")


def test_the_environment_comes_first(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envtest(bare_machine, "1.36.0")
    assets = programs_in(bare_machine / "assets")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert binaries.find() == binaries.Binaries(assets, binaries.FROM_ENVIRONMENT)


def test_incomplete_assets_are_an_error_that_names_what_is_missing(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = programs_in(bare_machine / "assets")
    (assets / "kubectl").unlink()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    with pytest.raises(binaries.BrokenAssetsError, match=r"lacks kubectl$"):
        binaries.find()


def test_the_newest_patch_of_the_pinned_minor_version_is_taken(
    bare_machine: Path,
) -> None:
    for version in ("1.35.9", "1.36.2", "1.36.10", "1.37.0"):
        envtest(bare_machine, version)
    found = binaries.find()
    assert found.origin == binaries.FROM_ENVTEST
    assert found.folder.name == f"1.36.10{SUFFIX}"


def test_a_folder_for_another_machine_is_not_taken(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envtest(bare_machine, "1.36.2")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(binaries.BinariesUnavailableError):
        binaries.find()


def test_a_machine_with_nothing_is_told_both_remedies() -> None:
    with pytest.raises(binaries.BinariesUnavailableError) as caught:
        binaries.find()
    assert "KUBEBUILDER_ASSETS" in str(caught.value)
    assert "install Go" in str(caught.value)


def test_a_finished_build_is_used_without_go(bare_machine: Path) -> None:
    folder = built(bare_machine)
    assert binaries.find() == binaries.Binaries(folder, binaries.FROM_BUILD)


@pytest.mark.parametrize("minor", ["1.34", "1.35"])
def test_another_minor_has_a_version_and_a_build_of_its_own(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, minor: str
) -> None:
    built(bare_machine)
    monkeypatch.setenv("KUBERNETES_MINOR", minor)
    assert binaries.minor_version() == f"v{minor}"
    with pytest.raises(binaries.BinariesUnavailableError):
        binaries.find()
    own = built(bare_machine, binaries.CONTROL_PLANE_NAMES)
    assert binaries.find(binaries.CONTROL_PLANE_NAMES) == binaries.Binaries(own, binaries.FROM_BUILD)


def test_another_minor_has_no_node(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_MINOR", "1.35")
    built(bare_machine)
    with pytest.raises(binaries.BinariesUnavailableError, match=r"v1\.35 is built without kube-proxy, kubelet"):
        binaries.find(binaries.BUILT_NAMES)


def test_another_minor_of_setup_envtest_is_taken(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.35.9", "1.36.2"):
        envtest(bare_machine, version)
    monkeypatch.setenv("KUBERNETES_MINOR", "1.35")
    assert binaries.find().folder.name == f"1.35.9{SUFFIX}"


def test_the_pinned_minor_by_name_is_the_pinned_one(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, folder = binaries.kubernetes_version(), built(bare_machine)
    monkeypatch.setenv("KUBERNETES_MINOR", binaries.minor_version().removeprefix("v"))
    assert (binaries.kubernetes_version(), binaries.find(binaries.BUILT_NAMES).folder) == (version, folder)


def test_the_environment_comes_before_another_minor(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = programs_in(bare_machine / "assets")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    monkeypatch.setenv("KUBERNETES_MINOR", "1.35")
    assert binaries.find() == binaries.Binaries(assets, binaries.FROM_ENVIRONMENT)


def test_a_minor_without_a_module_is_an_error_that_names_those_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_MINOR", "1.30")
    with pytest.raises(binaries.UnknownMinorError, match=r"KUBERNETES_MINOR=1\.30 is none of 1\.34, 1\.35, 1\.36$"):
        binaries.find()


def test_a_failed_build_shows_the_compilers_words(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = bare_machine / "nothing" / "go"
    go.parent.mkdir()
    go.write_text("#!/bin/sh\necho no network today\nexit 3\n")
    go.chmod(0o755)
    with pytest.raises(binaries.BuildFailedError, match="no network today"):
        binaries.find()
    assert not list(bare_machine.glob("cache/**/kube-apiserver"))
