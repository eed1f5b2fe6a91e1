"""Batches: every row once an epoch, resumable anywhere, little padding."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.batching import BucketSampler, Example, by_length, collate
from finetune_trainer.tasks.text_classification import TextClassification
from trainer.data_fixtures import run_on

lengths = st.lists(st.integers(1, 512), min_size=1, max_size=300)
batch_sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=200, deadline=None)


def take(sampler: BucketSampler, count: int) -> list[list[int]]:
    return [sampler.next() for _ in range(count)]


class TestBucketSampler:
    @given(lengths, batch_sizes, seeds)
    @many
    def test_every_epoch_has_each_row_once(self, lengths: list[int], batch_size: int, seed: int) -> None:
        sampler = BucketSampler(lengths, batch_size, seed)
        for epoch in range(3):
            assert sampler.epochs_done == epoch
            batches = take(sampler, sampler.batches_per_epoch)
            assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
            assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)

    @given(lengths, batch_sizes, seeds, st.data())
    @many
    def test_goes_on_identically_from_any_position(
        self, lengths: list[int], batch_size: int, seed: int, data: st.DataObject
    ) -> None:
        sampler = BucketSampler(lengths, batch_size, seed)
        epoch = sampler.batches_per_epoch
        take(sampler, data.draw(st.integers(0, 3 * epoch)))
        state = sampler.state_dict()
        expected = take(sampler, 2 * epoch + 1)
        other = BucketSampler(lengths, batch_size, seed)
        take(other, data.draw(st.integers(0, 2 * epoch)))  # wherever it was before
        other.load_state_dict(state)
        assert take(other, 2 * epoch + 1) == expected
        assert other.state_dict() == sampler.state_dict()
        assert other.epochs_done == sampler.epochs_done

    def test_the_state_is_not_the_samplers_own(self) -> None:
        sampler = BucketSampler([1] * 100, 8, 0)
        state = sampler.state_dict()
        copy = dict(state)
        sampler.next()
        assert state == copy

    @given(lengths, batch_sizes, seeds)
    @many
    def test_the_seed_decides_the_order(self, lengths: list[int], batch_size: int, seed: int) -> None:
        count = 2 * BucketSampler(lengths, batch_size, seed).batches_per_epoch
        assert take(BucketSampler(lengths, batch_size, seed), count) == take(
            BucketSampler(lengths, batch_size, seed), count
        )

    def test_seeds_and_epochs_differ(self) -> None:
        lengths = [random.Random(0).randint(1, 50) for _ in range(500)]
        samplers = [BucketSampler(lengths, 16, seed) for seed in range(5)]
        orders = [str(take(sampler, sampler.batches_per_epoch)) for sampler in samplers for _ in range(3)]
        assert len(set(orders)) == 15

    def test_rows_meet_others_in_every_epoch(self) -> None:
        sampler = BucketSampler([random.Random(0).randint(1, 50) for _ in range(2000)], 16, 0)
        epochs = [take(sampler, sampler.batches_per_epoch) for _ in range(2)]
        pairs = [{pair for batch in epoch for pair in itertools.combinations(sorted(batch), 2)} for epoch in epochs]
        assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])

    @pytest.mark.parametrize("batch_size", [8, 16, 32, 64])
    @pytest.mark.parametrize("num_rows", [1000, 5000, 20_000])
    def test_padding_of_lognormal_lengths(self, num_rows: int, batch_size: int) -> None:
        # The logarithms of the lengths of our real texts have a deviation of 0.3 to 0.5, around 13 to 27 tokens.
        generator = random.Random(0)
        lengths = [min(512, max(3, round(generator.lognormvariate(3.2, 0.5)))) for _ in range(num_rows)]
        assert padding_share(lengths, batch_size) < 0.12

    @pytest.mark.parametrize("name", ["tweets", "movies", "trec"])
    def test_padding_of_real_texts(self, name: str, minilm: Path, tweets: Path) -> None:
        data = tweets.parent / name
        task = TextClassification.read(run_on(data / "train.jsonl", data / "evaluation.jsonl"), minilm)
        lengths = [len(example.input_ids) for example in task.train]
        assert padding_share(lengths, 32) < 0.06
        assert padding_share(lengths, 32) < 0.2 * shuffled_padding_share(lengths, 32)


def padding_share(lengths: Sequence[int], batch_size: int) -> float:
    """Share of the tokens of two epochs that are padding."""
    sampler = BucketSampler(lengths, batch_size, 0)
    return share([[lengths[row] for row in sampler.next()] for _ in range(2 * sampler.batches_per_epoch)])


def shuffled_padding_share(lengths: Sequence[int], batch_size: int) -> float:
    shuffled = random.Random(0).sample(lengths, len(lengths))
    return share([shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)])


def share(batches: Sequence[Sequence[int]]) -> float:
    total = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / total


class TestCollate:
    EXAMPLES = (Example([5, 6, 7], [0, 0, 1], 1), Example([8], [0], 0), Example([9, 10], [0, 1], 2))

    def test_pads_on_the_right(self) -> None:
        batch = collate(self.EXAMPLES, pad_token_id=3)
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3], [9, 10, 3]]
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
        assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
        assert batch.targets.tolist() == [1, 0, 2]
        assert all(tensor.dtype == torch.int64 for tensor in (*batch.inputs.values(), batch.targets))
        assert batch.num_tokens == 6

    def test_pads_on_the_left_where_it_is_told_to(self) -> None:
        batch = collate(self.EXAMPLES, pad_token_id=3, on_left=True)
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [3, 3, 8], [3, 9, 10]]
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]

    def test_a_pad_token_in_the_text_is_text(self) -> None:
        batch = collate([Example([5, 0, 0], None, 0), Example([5], None, 0)], pad_token_id=0)
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        assert set(batch.inputs) == {"input_ids", "attention_mask"}

    def test_the_examples_stay_as_they_are(self) -> None:
        before = [list(example.input_ids) for example in self.EXAMPLES]
        collate(self.EXAMPLES, pad_token_id=3)
        assert [example.input_ids for example in self.EXAMPLES] == before


@given(lengths, batch_sizes)
@many
def test_by_length_has_each_example_once_longest_first(lengths: list[int], batch_size: int) -> None:
    examples = [Example([number] * length, None, 0) for number, length in enumerate(lengths)]
    batches = list(by_length(examples, batch_size))
    flat = list(itertools.chain.from_iterable(batches))
    assert sorted(example.input_ids[0] for example in flat) == list(range(len(lengths)))
    assert [len(example.input_ids) for example in flat] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
