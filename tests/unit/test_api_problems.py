"""Problems read as sentences: field, value, what is allowed, what to do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract_cases import Manifest, cases, changed, spec_fields, valid_job
from finetune_api.manifest import parse_job
from finetune_api.problems import Problem, nearest, problems_of
from finetune_api.run import Run


def test_a_problem_is_one_sentence() -> None:
    assert str(Problem("spec.task", "is wrong", "use another")) == "spec.task: is wrong (use another)"
    assert str(Problem("spec.task", "is wrong")) == "spec.task: is wrong"
    assert str(Problem("", "is wrong", "use another")) == "is wrong (use another)"


def test_a_problem_cannot_break_the_line_or_the_screen() -> None:
    problem = Problem("spec.a\nb", "\x1b[2J and \u202e, but é and 😀 stay")
    assert str(problem) == "spec.a\\nb: \\x1b[2J and \\u202e, but é and 😀 stay"


def test_every_refusal_is_one_short_line_without_the_libraries_own_words() -> None:
    for case in cases():
        try:
            parse_job(case.manifest)
        except ValidationError as error:
            for problem in map(str, problems_of(error)):
                assert "\n" not in problem
                assert len(problem) < 500
                for word in ("Input", "pydantic", "validation error", "String", "Tuple", "[key]", "ctx"):
                    assert word not in problem, problem


def test_every_field_is_found_when_only_its_spelling_is_wrong() -> None:
    """Whether it stands in its own place or directly under spec."""
    for path in spec_fields():
        *parents, name = path.split(".")
        for where in (parents, ["spec"]) if parents and "[]" not in path else ():
            for spelling in (name.upper(), "_".join(name)):
                [problem] = unknown_fields(changed(valid_job(), (*where, spelling), 1))
                assert problem.field == ".".join([*where, spelling])
                assert problem.hint.lower().removesuffix("?").endswith(name.lower()), problem


def unknown_fields(manifest: Manifest) -> list[Problem]:
    with pytest.raises(ValidationError) as refused:
        parse_job(manifest)
    return [problem for problem in problems_of(refused.value) if problem.message == "unknown field"]


def test_of_several_places_the_nearest_is_named() -> None:
    manifest = changed(valid_job(), ("spec", "evaluation"), {"retention": {"data": {"uri": "file:///x"}, "uri": "x"}})
    with pytest.raises(ValidationError) as refused:
        parse_job(manifest)
    assert problems_of(refused.value)[0].hint == "did you mean spec.evaluation.retention.data.uri?"


def test_what_the_operator_writes_is_not_suggested() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_job(changed(valid_job(), ("spec", "restarts"), 1))
    assert problems_of(refused.value)[0].hint.startswith("known fields here: task, model, ")


def test_long_values_are_cut() -> None:
    with pytest.raises(ValidationError) as refused:
        parse_job(changed(valid_job(), ("spec", "queueName"), "x" * 1000))
    [problem] = problems_of(refused.value)
    assert problem.message == f'"{"x" * 76}... should have at most 63 characters'


def test_problems_of_a_run_name_its_fields() -> None:
    with pytest.raises(ValidationError) as refused:
        Run.model_validate({"name": "a", "uid": "b", "spec": valid_job()["spec"], "workdir": "x"})
    assert {problem.field for problem in problems_of(refused.value)} == {"workDir", "workdir"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("fulll", "did you mean Full?"), ("LORA", "did you mean LoRA?"), ("zebra", ""), (5, ""), (None, "")],
)
def test_nearest_asks_only_when_something_is_near(value: object, expected: str) -> None:
    assert nearest(value, ["Full", "LoRA"]) == expected


@settings(deadline=None)  # another process may have the machine
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_no_value_makes_the_problems_fail(value: object) -> None:
    for path in (("spec",), ("spec", "training"), ("spec", "pod"), ("metadata",), ("spec", "strategy")):
        with pytest.raises(ValidationError) as refused:
            parse_job(changed(valid_job(), path, [value]))
        assert all(str(problem) for problem in problems_of(refused.value))
