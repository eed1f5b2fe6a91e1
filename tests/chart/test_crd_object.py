"""The CRD as the chart has it."""

from __future__ import annotations

import yaml

from chart.rendering import FOLDER, MANIFESTS, Chart, of_kind, one
from chart.value_sets import render

CRD_FILE = MANIFESTS / "crds" / "finetunejobs.yaml"


def test_the_crd_is_the_generated_one_and_stays(chart: Chart) -> None:
    generated = yaml.safe_load(CRD_FILE.read_text())
    assert (FOLDER / "files" / "finetunejobs.yaml").read_bytes() == CRD_FILE.read_bytes(), "run `make generate`"
    kept = one(chart.render(), "CustomResourceDefinition")
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == generated
    assert one(render(chart, "crd-goes"), "CustomResourceDefinition") == generated
    assert not of_kind(render(chart, "without-crd"), "CustomResourceDefinition")


def test_integers_of_the_crd_stay_integers(chart: Chart) -> None:
    """Helm's parser makes floats of them, and the API server refuses `maxLength: 1.048576e+06`."""
    text = chart.run("template", str(FOLDER))
    assert "1048576" in text
    assert "e+0" not in text
