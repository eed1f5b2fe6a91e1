"""The operator's settings come from FINETUNE_* and are judged at the border, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune_operator.__main__ import main
from finetune_operator.host.settings import OperatorSettings, from_environment

IMAGE = {"FINETUNE_TRAINER_IMAGE": "registry.example/trainer:1"}


def test_only_the_image_has_to_be_given() -> None:
    settings = from_environment(IMAGE)
    assert settings.trainer_image == "registry.example/trainer:1"
    assert settings.pod_settings().progress_url == ""


def test_other_variables_are_not_looked_at() -> None:
    assert from_environment({**IMAGE, "PATH": "/bin", "finetune_workers": "5"}) == from_environment(IMAGE)


def test_values_are_typed() -> None:
    settings = from_environment(
        {**IMAGE, "FINETUNE_WORKERS": "4", "FINETUNE_RESYNC_SECONDS": "1.5", "FINETUNE_PROGRESS_CA": "/ca.crt"}
    )
    assert (settings.workers, settings.resync_seconds, settings.progress_ca) == (4, 1.5, Path("/ca.crt"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "257"),
        ("WORKERS", "many"),
        ("EPHEMERAL_STORAGE", "0"),
        ("EPHEMERAL_STORAGE", "fifty"),
        ("RESYNC_SECONDS", "0"),
        ("RESYNC_SECONDS", "nan"),
        ("LEASE_SECONDS", "2"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("PROGRESS_PORT", "x"),
        ("WROKERS", "4"),
        ("FIXED_USER", "perhaps"),
        ("GPU_RUNTIME_CLASS_NAME", "N V"),
        ("GPU_TOLERATIONS", "nvidia.com/gpu"),
        ("GPU_TOLERATIONS", "{}"),
        ("PROGRESS_KEY", "tls.key"),
        ("METRICS_PORT", "65536"),
        ("METRICS_KEY", "tls.key"),
    ],
)
def test_a_wrong_value_is_refused_with_the_variables_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, given in {**IMAGE, f"FINETUNE_{variable}": value}.items():
        monkeypatch.setenv(name, given)
    assert main() == 2
    assert f"FINETUNE_{variable}: " in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("given", "place"),
    [('[{"key": "gpu", "operator": "In"}]', "0.operator"), ('[{"key": "gpu"}, {}]', "1.key")],
)
def test_a_wrong_part_of_a_value_is_named_below_its_variable(
    given: str, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**IMAGE, "FINETUNE_GPU_TOLERATIONS": given}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert f"FINETUNE_GPU_TOLERATIONS.{place}: " in caplog.text


def test_pods_with_gpus_tolerate_the_common_taint_of_their_nodes_unless_told_otherwise() -> None:
    common = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert [each.to_json() for each in from_environment(IMAGE).pod_settings().gpu_tolerations] == [common]
    given = from_environment({**IMAGE, "FINETUNE_GPU_TOLERATIONS": "[]", "FINETUNE_GPU_RUNTIME_CLASS_NAME": "nvidia"})
    assert given.pod_settings().gpu_tolerations == ()
    assert given.pod_settings().gpu_runtime_class_name == "nvidia"
    assert from_environment(IMAGE).pod_settings().gpu_runtime_class_name == ""


def test_the_user_is_fixed_unless_told_otherwise() -> None:
    assert from_environment(IMAGE).pod_settings().fixed_user is True
    assert from_environment({**IMAGE, "FINETUNE_FIXED_USER": "false"}).pod_settings().fixed_user is False


def test_without_an_image_the_operator_says_which_variable_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("FINETUNE_TRAINER_IMAGE", raising=False)
    assert main() == 2
    assert "FINETUNE_TRAINER_IMAGE: Field required" in caplog.text


def test_pods_are_given_an_authority_where_there_is_something_to_verify() -> None:
    assert from_environment({**IMAGE, "FINETUNE_PROGRESS_URL": "https://x"}).pod_settings("PEM").progress_ca == "PEM"
    assert from_environment(IMAGE).pod_settings("PEM").progress_ca == ""


def test_pods_are_given_the_limit_of_their_scratch_space() -> None:
    assert from_environment({**IMAGE, "FINETUNE_EPHEMERAL_STORAGE": "1Ti"}).pod_settings().ephemeral_storage == "1Ti"


@pytest.mark.parametrize("of", ["METRICS", "PROGRESS"])
@pytest.mark.parametrize("given", ["CERTIFICATE", "KEY"])
def test_certificate_without_its_key_is_refused(of: str, given: str) -> None:
    with pytest.raises(ValidationError, match=f"give both FINETUNE_{of}_CERTIFICATE and FINETUNE_{of}_KEY, or neither"):
        from_environment({**IMAGE, f"FINETUNE_{of}_{given}": "tls.pem"})


def test_settings_do_not_change() -> None:
    settings = OperatorSettings(trainer_image="x")
    with pytest.raises(ValidationError):
        settings.workers = 5
