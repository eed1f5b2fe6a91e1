"""Distillation as a whole: what a student learns, that no split or kill changes it, and what comes out."""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.batching import Batch, Example, places
from finetune_trainer.distillation.cache import Answers
from finetune_trainer.distillation.objective import DistillationObjective
from finetune_trainer.distillation.relation import angle_loss, distance_loss, flow_loss
from finetune_trainer.distillation.teacher import Teacher
from finetune_trainer.objective import Forward, Objective
from trainer import processes
from trainer.distilling import (
    EVERYTHING,
    RESPONSE,
    distilling,
    make_teacher,
    student_run,
    terms_and_gradient,
    with_pool,
)
from trainer.processes import run_trainer
from trainer.runs import checkpoints, complete, end_state, events, finish, make_loop, notes, output, without_dropout
from trainer.test_loop import scripted
from trainer.tiny import FULL, make_model, make_run

TERMS = {
    "response": RESPONSE,
    "feature": {"feature": {"hidden": "Cosine", "attention": True}},
    "relation": {"relation": {"layers": "1", "selfAttention": "1"}},
    "everything": EVERYTHING,
}
# Without relations between samples, which are those of a whole batch.
SPLITTABLE: dict[str, Any] = {
    "response": {"divergence": "JensenShannon", "topK": 1},
    "feature": {"attention": True},
    "relation": {"distance": "0", "angle": "0", "layers": "1", "selfAttention": "1"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def teacher(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
        return make_teacher(tmp_path_factory.mktemp("teacher"), base)


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, with other heads and more layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
        shape = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 6}
        model = make_model(tmp_path_factory.mktemp("wide"), seed=1, **shape)
        return make_teacher(tmp_path_factory.mktemp("wide-teacher"), model, training={"epochs": 1, "batchSize": 16})


def means(told: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(terms[name] for terms in told) for name in told[0]}


@pytest.mark.usefixtures("unchecked_export")
class TestLearning:
    def test_a_pool_without_labels_teaches_more_than_a_few_labels(
        self, base: Path, teacher: Path, tmp_path: Path
    ) -> None:
        few: dict[str, Any] = {
            "num_train": 12,
            "num_evaluation": 100,
            "training": {"maxSteps": 120, "batchSize": 16, "learningRate": "2e-3"},
            "evaluation": {"everySteps": 1000},
        }
        alone = complete(
            make_run(tmp_path / "alone", base, distilling(teacher, response={"weight": "0"}, taskWeight="1"), **few)
        )
        taught = complete(
            student_run(tmp_path / "taught", base, teacher, data=with_pool(tmp_path / "taught", 240), **few)
        )
        assert alone.result is not None
        assert taught.result is not None
        assert taught.result.after["accuracy"] > alone.result.after["accuracy"] + 0.1

    @pytest.mark.parametrize("name", TERMS)
    def test_every_term_is_lowered_and_told(self, base: Path, teacher: Path, tmp_path: Path, name: str) -> None:
        run = student_run(tmp_path, base, teacher, TERMS[name], training={"maxSteps": 60, "batchSize": 16})
        complete(run)
        told = [event["progress"]["lossTerms"] for event in events(run) if event["event"] == "progress"]
        told = [{key: float(value) for key, value in terms.items()} for terms in told if terms]
        # Each is of one batch, and which steps are told is a matter of time: thirds are compared.
        first, last = means(told[: len(told) // 3]), means(told[-(len(told) // 3) :])
        expected = {
            "response": {"response"},
            "feature": {"hidden", "attention"},
            "relation": {"distance", "angle", "layers", "selfAttention"},
        }
        wanted = set().union(*(expected[form] for form in TERMS[name]))
        assert set(first) == {"task", *wanted}
        worse = [one for one in wanted if not last[one] < first[one]]
        assert not worse

    def test_teacher_stays_bit_for_bit(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        before = {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
        loop = make_loop(student_run(tmp_path, base, teacher, EVERYTHING, training={"maxSteps": 6}))
        objective = loop.objective
        assert isinstance(objective, DistillationObjective)
        model: Any = objective.teacher.model  # type: ignore[union-attr]
        weights = {name: one.clone() for name, one in model.state_dict().items()}
        loop.run()
        assert not model.training
        assert not any(one.requires_grad for one in model.parameters())
        assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
        assert {path.name: path.read_bytes() for path in teacher.iterdir() if path.is_file()} == before

    def test_second_stage_is_the_task_alone(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        run = student_run(
            tmp_path, base, teacher, EVERYTHING | {"taskSteps": 3, "taskWeight": "0"}, training={"maxSteps": 8}
        )
        loop = make_loop(run)
        names: list[set[str]] = []
        loop.objective = _Listening(loop.objective, names)
        loop.run()
        assert ["task" in one for one in names] == [False] * 5 + [True] * 3
        assert names[5:] == [{"task"}] * 3

    def test_second_stage_takes_rows_with_labels(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        """All of them once, before one comes again."""
        run = student_run(
            tmp_path,
            base,
            teacher,
            {"response": {}, "taskSteps": 6},
            num_train=24,
            data=with_pool(tmp_path, 40),
            training={"maxSteps": 10, "batchSize": 8},
        )
        loop = make_loop(run)
        seen: list[list[int]] = []
        loop.objective = _Listening(loop.objective, [], seen)
        loop.run()
        assert any(row >= 24 for rows in seen[:4] for row in rows)
        first, second = (sorted(row for rows in part for row in rows) for part in (seen[4:7], seen[7:]))
        assert first == second == list(range(24))
        assert seen[4:7] != seen[7:]

    def test_what_the_first_stage_gives_is_never_the_best(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        """Its head has learnt nothing: it may be better by chance, and it may stand still for as long as it takes."""
        run = student_run(
            tmp_path,
            base,
            teacher,
            {"feature": {}, "taskWeight": "0", "taskSteps": 6},
            training={"maxSteps": 12},
            evaluation={"everySteps": 2, "earlyStopping": {"patience": 2}},
        )
        state = scripted(make_loop(run), [0.5, 0.9, 0.8, 0.8, 0.3, 0.4, 0.35, 0.4]).run()
        assert (state.step, state.best_step, state.stopped_early) == (12, 10, False)

    def test_second_stage_as_long_as_the_run(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        termination = finish(
            student_run(tmp_path, base, teacher, {"response": {}, "taskSteps": 16}, training={"epochs": 2})
        )
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "taskSteps is 16, but the run has 16 steps in all" in termination.message


class _Listening:
    """Writes down the names of the terms, and the rows."""

    def __init__(self, objective: Objective, names: list[set[str]], seen: list[list[int]] | None = None) -> None:
        self._objective = objective
        self._names = names
        self._seen = [] if seen is None else seen

    def terms(
        self, forward: Forward, batch: Batch, rows: Sequence[int], examples_of_step: Sequence[Example], step: int
    ) -> dict[str, torch.Tensor]:
        found = self._objective.terms(forward, batch, rows, examples_of_step, step)
        self._names.append(set(found))
        self._seen.append(list(rows))
        return found


class TestSplits:
    @pytest.mark.parametrize("wide", [False, True], ids=["same-width", "wider-teacher"])
    def test_micro_batches_change_nothing(
        self, base: Path, teacher: Path, wide_teacher: Path, tmp_path: Path, wide: bool
    ) -> None:
        """Neither a term nor a gradient, with unlabelled rows among the others."""
        run = student_run(
            tmp_path, base, wide_teacher if wide else teacher, SPLITTABLE, num_train=40, data=with_pool(tmp_path, 40)
        )
        loop = without_dropout(make_loop(run))
        rows = [*range(9), *range(60, 67)]
        whole, gradient = terms_and_gradient(loop, rows, len(rows))
        assert set(whole) == {"task", "response", "hidden", "attention", "layers", "selfAttention"}
        for size in (5, 1):
            terms, other = terms_and_gradient(loop, rows, size)
            assert terms == pytest.approx(whole, rel=1e-4)
            assert other.keys() == gradient.keys()
            for name, tensor in other.items():
                assert torch.allclose(tensor, gradient[name], atol=1e-5), name

    def test_relations_of_samples_need_the_whole_batch(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="those of a whole batch"):
            student_run(tmp_path, base, teacher, EVERYTHING, training={"batchSize": 8, "microBatchSize": 4})


class TestWiring:
    """Each term from the models' own outputs: the right layers, tokens, rows and weights."""

    def test_terms(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        terms = {
            "response": {"weight": "2", "temperature": "4"},
            "feature": {"weight": "3", "attention": True},
            "relation": {"weight": "5", "distance": "7", "angle": "11", "layers": "13"},
            "taskWeight": "0.25",
        }
        run = student_run(tmp_path, base, teacher, terms, data=with_pool(tmp_path, 12))
        loop = without_dropout(make_loop(run))
        rows = [3, 4, 5, 60, 61, 62, 63]
        found, _ = terms_and_gradient(loop, rows, len(rows))
        batch = loop.task.collate([loop.task.train[row] for row in rows])
        mask = batch.inputs["attention_mask"].bool()
        outputs = []
        for model in (loop.model, AutoModelForSequenceClassification.from_pretrained(teacher)):
            eager: Any = copy.deepcopy(model).eval()
            eager.set_attn_implementation("eager")
            with torch.no_grad():
                outputs.append(eager(**batch.inputs, output_hidden_states=True, output_attentions=True))
        student, known = outputs
        pairs = [(0, 1), (1, 3)]  # of two layers with four
        log_p, log_q = (torch.log_softmax(one.logits / 4, -1) for one in (known, student))
        expected = {
            "task": 0.25 * torch.nn.functional.cross_entropy(student.logits[:3], batch.targets[:3]),
            "response": 2 * 16 * (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
            "hidden": 3
            * sum(
                (student.hidden_states[i + 1][mask] - known.hidden_states[j + 1][mask]).square().mean()
                for i, j in pairs
            )
            / 2,
            "attention": 3
            * sum(
                _mean_kl(known.attentions[j], student.attentions[i], batch.inputs["attention_mask"]) for i, j in pairs
            )
            / 2,
        }
        means = [
            torch.stack([states[mask_L].mean(0) for states, mask_L in zip(one.hidden_states[-1], mask, strict=True)])
            for one in outputs
        ]
        expected["distance"] = 5 * 7 * distance_loss(*means)
        expected["angle"] = 5 * 11 * angle_loss(*means)
        owner = torch.where(mask, torch.arange(len(rows))[:, None], -1)
        stops = [(0, 0), (1, 2), (2, 4)]  # states of the embeddings, and after the paired layers
        flows = [
            flow_loss(
                (student.hidden_states[a], student.hidden_states[c]),
                (known.hidden_states[b], known.hidden_states[d]),
                owner,
                places(mask),
                float(mask.sum()),
            )
            for (a, b), (c, d) in itertools.pairwise(stops)
        ]
        expected["layers"] = 5 * 13 * sum(flows) / 2
        assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-3)


def _mean_kl(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor) -> float:
    """Over heads and the tokens that are no padding, one by one."""
    total = 0.0
    for row, length in enumerate(mask.sum(-1).tolist()):
        p, q = (one[row, :, :length, :length] for one in (teacher, student))
        total += (p * (p / q).log()).sum(-1).mean(0).sum().item()
    return total / mask.sum().item()


class TestKept:
    def test_kept_answers_are_those_of_the_live_teacher(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        """A feature term without weight keeps the teacher at work."""
        live = {"response": {}, "feature": {"weight": "0"}}
        found = []
        for name, terms in (("kept", RESPONSE), ("live", live)):
            directory = tmp_path / name
            run = student_run(directory, base, teacher, terms, data=with_pool(directory, 30))
            loop = without_dropout(make_loop(run))
            assert isinstance(loop.objective, DistillationObjective)
            assert isinstance(loop.objective.teacher, Answers if name == "kept" else Teacher)
            found.append(terms_and_gradient(loop, [*range(5), *range(62, 70)], 13))
        for name in ("response", "task"):
            assert found[0][0][name] == pytest.approx(found[1][0][name], rel=1e-5)
        for name, tensor in found[0][1].items():
            assert torch.allclose(tensor, found[1][1][name], atol=1e-6), name

    def test_answers_are_computed_once(self, base: Path, teacher: Path, tmp_path: Path) -> None:
        def start() -> list[str]:
            run = student_run(tmp_path, base, teacher, training={"maxSteps": 1})
            make_loop(run)
            return [note for note in notes(run) if "the teacher's answers" in note]

        [first] = start()
        assert "60 rows are kept;" in first
        part = next(Path(tmp_path, "work", "teacher-answers").rglob("answers.safetensors"))
        before = part.stat().st_mtime_ns
        assert "60 of them from an earlier attempt" in start()[-1]
        assert part.stat().st_mtime_ns == before
        part.write_bytes(part.read_bytes()[:-8])
        assert "earlier attempt" not in start()[-1]
        assert part.stat().st_mtime_ns > before

    def test_answers_of_another_teacher_are_not_used(
        self, base: Path, teacher: Path, wide_teacher: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "work" / "teacher-answers"
        found = []
        for one in (teacher, wide_teacher):
            make_loop(student_run(tmp_path, base, one, training={"maxSteps": 1}))
            [home] = folder.iterdir()
            found.append(load_file(home / "part-000000" / "answers.safetensors")["logits"])
        assert not torch.allclose(found[0], found[1])


class TestResume:
    @pytest.mark.parametrize("event", [5_000, 60_000])
    @pytest.mark.parametrize("name", ["kept", "projected"])
    def test_killed_and_resumed(
        self, base: Path, teacher: Path, wide_teacher: Path, tmp_path: Path, name: str, event: int
    ) -> None:
        def run(directory: Path) -> Run:
            terms, taught_by = (RESPONSE, teacher) if name == "kept" else (EVERYTHING, wide_teacher)
            return student_run(
                directory,
                base,
                taught_by,
                {**terms, "taskSteps": 2},
                data=with_pool(directory, 24),
                training={"maxSteps": 10, "batchSize": 8},
                checkpoint={"everySteps": 2},
            )

        undisturbed, killed = run(tmp_path / "undisturbed"), run(tmp_path / "killed")
        assert run_trainer(undisturbed) == ExitCode.COMPLETE
        assert run_trainer(killed, functools.partial(processes.kill_at_event, event)) < 0
        assert run_trainer(killed) == ExitCode.COMPLETE
        assert end_state(killed) == end_state(undisturbed)


class TestExport:
    def test_projections_are_saved_but_not_exported(self, base: Path, wide_teacher: Path, tmp_path: Path) -> None:
        run = student_run(tmp_path, base, wide_teacher, EVERYTHING, training={"maxSteps": 4, "batchSize": 16})
        termination = complete(run)  # with the check of the export, in a fresh process
        saved = load_file(checkpoints(run)[0] / "weights.safetensors")
        projections = {name for name in saved if name.startswith("distillation.projections.")}
        assert len(projections) == 4
        assert not any("projection" in name for name in load_file(output(run) / "model.safetensors"))
        model = AutoModelForSequenceClassification.from_pretrained(output(run))
        assert model.config.num_hidden_layers == 2
        assert model.config._attn_implementation == "sdpa"
        assert "finetune-recorded" not in (output(run) / "config.json").read_text()
        assert termination.result is not None
        num_weights = sum(one.numel() for one in model.parameters())
        assert termination.result.total_parameters == termination.result.trainable_parameters == num_weights
        for name, tensor in model.named_parameters():
            assert torch.equal(tensor, saved[name]), name

    @pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "llama", "gpt2"])
    def test_students_of_every_kind(self, tmp_path: Path, kind: str) -> None:
        """Of chosen layers, with the exported model reloaded and compared."""
        depth = {"distilbert": "n_layers", "gpt2": "n_layer"}.get(kind, "num_hidden_layers")
        model = make_model(tmp_path / "model", kind, **{depth: 3})
        teacher = make_run(tmp_path / "teacher", model, FULL, training={"maxSteps": 2})
        complete(teacher)
        run = make_run(
            tmp_path / "student",
            model,
            {
                "distillation": {
                    "teacher": {"uri": f"file://{output(teacher)}"},
                    "studentLayers": [0, 2],
                    **EVERYTHING,
                }
            },
            training={"maxSteps": 3, "batchSize": 8},
        )
        complete(run)
        exported = AutoModelForSequenceClassification.from_pretrained(output(run))
        assert exported.config.num_hidden_layers == 2
