"""`finetune run` with strategy.auto, as a person meets it."""

from __future__ import annotations

from pathlib import Path

from trainer.test_cli_run import Bench


def test_the_reason_is_shown_and_the_table_has_the_chosen_strategy(tmp_path: Path, tiny_bert: Path) -> None:
    bench = Bench(tmp_path, tiny_bert)
    bench.spec |= {"strategy": {"auto": {}}, "training": {"maxSteps": 3, "batchSize": 8}}
    code, output = bench.run()
    assert code == 0, output
    assert "strategy.auto chooses Bottleneck: 64 training rows are fewer than 2,500" in output
    assert any("strategy" in line and "Bottleneck" in line and "│" in line for line in output.splitlines())
    again, output = bench.run()
    assert again == 0
    assert any("strategy" in line and "Bottleneck" in line and "│" in line for line in output.splitlines())


def test_a_learning_rate_is_refused_because_it_depends_on_the_choice(tmp_path: Path, tiny_bert: Path) -> None:
    bench = Bench(tmp_path, tiny_bert)
    bench.spec |= {"strategy": {"auto": {}}}
    code, output = bench.run()
    assert code == 10
    assert "spec.training.learningRate: the learning rate depends on what strategy.auto chooses" in output
