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


def test_an_operator_without_progress_and_certificates_needs_no_more() -> None:
    empty = {"WATCH_NAMESPACE": "", "IDENTITY": "", "POD_IP": "", "PROGRESS_URL": "", "GPU_RUNTIME_CLASS_NAME": ""}
    assert from_environment({**IMAGE, **{f"FINETUNE_{name}": value for name, value in empty.items()}}).workers == 16


def test_other_variables_are_not_looked_at() -> None:
    assert from_environment({**IMAGE, "PATH": "/bin", "finetune_workers": "5"}) == from_environment(IMAGE)


def test_values_are_typed() -> None:
    typed = {"WORKERS": "4", "RESYNC_SECONDS": "1.5", "METRICS_CERTIFICATE": "/tls.crt", "METRICS_KEY": "/tls.key"}
    settings = from_environment({**IMAGE, **{f"FINETUNE_{name}": value for name, value in typed.items()}})
    assert (settings.workers, settings.resync_seconds, settings.metrics_key) == (4, 1.5, Path("/tls.key"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "257"),
        ("WORKERS", "many"),
        ("TRAINER_IMAGE", ""),
        ("TRAINER_IMAGE", "Registry/UPPER image"),
        ("TRAINER_IMAGE", "https://registry.example.com/trainer"),
        ("TRAINER_IMAGE", "registry.example.com/trainer@sha256:short"),
        ("IMAGE_PULL_POLICY", "always"),
        ("IMAGE_PULL_POLICY", ""),
        ("WATCH_NAMESPACE", "team-0,team-1"),
        ("WATCH_NAMESPACE", "Team_A"),
        ("WATCH_NAMESPACE", "team.a"),
        ("WATCH_NAMESPACE", "x" * 64),
        ("OPERATOR_NAMESPACE", ""),
        ("OPERATOR_NAMESPACE", "Finetune_System"),
        ("IDENTITY", "a b/c"),
        ("IDENTITY", "pod_1"),
        ("POD_IP", "nonsense"),
        ("EPHEMERAL_STORAGE", "0"),
        ("EPHEMERAL_STORAGE", "fifty"),
        ("RESYNC_SECONDS", "0"),
        ("RESYNC_SECONDS", "-300"),
        ("RESYNC_SECONDS", "nan"),
        ("RESYNC_SECONDS", "inf"),
        ("RESYNC_SECONDS", "1000000"),
        ("LEASE_SECONDS", "2"),
        ("LEASE_SECONDS", "15000"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("PROGRESS_PORT", "x"),
        ("WROKERS", "4"),
        ("FIXED_USER", "perhaps"),
        ("GPU_RUNTIME_CLASS_NAME", "N V"),
        ("GPU_TOLERATIONS", "nvidia.com/gpu"),
        ("GPU_TOLERATIONS", "{}"),
        ("GPU_TOLERATIONS", ""),
        ("PROGRESS_KEY", "tls.key"),
        ("METRICS_PORT", "65536"),
        ("METRICS_KEY", "tls.key"),
        ("METRICS_CERTIFICATE", ""),
        ("PROGRESS_URL", "https://progress.example"),
        ("PROGRESS_CA", "ca.crt"),
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


PROGRESS = {"FINETUNE_PROGRESS_CERTIFICATE": "tls.crt", "FINETUNE_PROGRESS_KEY": "tls.key"}
METRICS = {"FINETUNE_METRICS_CERTIFICATE": "tls.crt", "FINETUNE_METRICS_KEY": "tls.key"}


@pytest.mark.parametrize(
    "url",
    [
        "p.svc:8443", "http://p.svc:8443", "https://", "https://p.svc:8443/", "https://p.svc:8443/path", "https://p.svc?x",
        "https://me:word@p.svc", "https://p.svc:port", "https://p.svc:99999", "https://p.svc:0", "https://a b",
    ],
)  # fmt: skip
def test_a_url_that_pods_could_not_report_to_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**IMAGE, **PROGRESS, "FINETUNE_PROGRESS_URL": url}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert f"FINETUNE_PROGRESS_URL: is '{url}'; give https://HOST or https://HOST:PORT, without a path" in caplog.text


@pytest.mark.parametrize(
    "url", ["https://p.svc", "https://p.svc:8443", "https://10.0.0.7:8443", "https://[fd00::7]:8443"]
)
def test_a_url_that_pods_can_report_to_is_taken(url: str) -> None:
    settings = from_environment({**IMAGE, **PROGRESS, "FINETUNE_PROGRESS_URL": url})
    assert settings.pod_settings("PEM").progress_url == url


def test_the_refusal_says_how_several_namespaces_are_watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**IMAGE, "FINETUNE_WATCH_NAMESPACE": "team-0,team-1"}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert (
        "FINETUNE_WATCH_NAMESPACE: is 'team-0,team-1'; give the name of one namespace, or nothing for all; "
        "several need an operator each" in caplog.text
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({**PROGRESS, "FINETUNE_HTTP_PORT": "8443"}, "FINETUNE_HTTP_PORT and FINETUNE_PROGRESS_PORT are both 8443"),
        ({**METRICS, "FINETUNE_METRICS_PORT": "8080"}, "FINETUNE_HTTP_PORT and FINETUNE_METRICS_PORT are both 8080"),
        (
            {**METRICS, **PROGRESS, "FINETUNE_METRICS_PORT": "8443"},
            "FINETUNE_METRICS_PORT and FINETUNE_PROGRESS_PORT are both 8443",
        ),
    ],
)
def test_two_servers_at_one_port_are_refused_by_their_names(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**IMAGE, **given}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert f"{said}; give each a port of its own" in caplog.text
    assert "Traceback" not in caplog.text


def test_ports_of_what_is_not_served_and_free_ones_may_be_equal() -> None:
    assert from_environment({**IMAGE, "FINETUNE_HTTP_PORT": "8443"}).http_port == 8443
    free = {f"FINETUNE_{name}_PORT": "0" for name in ("HTTP", "METRICS", "PROGRESS")}
    assert from_environment({**IMAGE, **METRICS, **PROGRESS, **free}).metrics_port == 0


@pytest.mark.parametrize(
    "image",
    [
        "trainer", "trainer:test", "localhost/finetune-trainer:0.1.0-cpu", "registry.example.com:5000/ml/a_b/tuner:V1",
        "registry.example.com/trainer@sha256:" + "0a" * 32, "registry.example.com/trainer:1@sha256:" + "0a" * 32,
    ],
)  # fmt: skip
def test_every_form_of_an_images_name_is_taken(image: str) -> None:
    assert from_environment({"FINETUNE_TRAINER_IMAGE": image}).trainer_image == image


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
    reporting = from_environment({**IMAGE, **PROGRESS, "FINETUNE_PROGRESS_URL": "https://x"})
    assert reporting.pod_settings("PEM").progress_ca == "PEM"
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
