"""Episodes whose rule can only be learned from their demonstrations."""

from __future__ import annotations

from collections import Counter

import pytest

from rlcore.data.sources.classification import classification


def rules(split: str, **options: object) -> set[tuple]:
    """Which value of the one attribute has which label, by episode."""
    episodes = classification(split=split, demonstrations=200, **options)
    return {tuple(sorted(set(each.meta["demonstrations"]))) for each in episodes}


@pytest.mark.parametrize("vocabulary", ["letters", "words"])
def test_one_rule_labels_the_demonstrations_and_the_problem(vocabulary: str) -> None:
    for each in classification(count=50, demonstrations=100, values=8, labels=4, vocabulary=vocabulary):
        names = dict(each.meta["demonstrations"])
        assert all(names[text] == label for text, label in each.meta["demonstrations"])
        assert names.get(each.prompt, each.answer) == each.answer
        assert sorted(Counter(names.values()).values()) == [2, 2, 2, 2]
        assert set(names.values()) == set(each.meta["labels"])


def test_one_of_two_attributes_counts_each_in_some_episodes() -> None:
    counting = Counter()
    for each in classification(count=50, demonstrations=200, attributes=2, values=4):
        for attribute in range(2):
            seen = {(text[attribute], label) for text, label in each.meta["demonstrations"]}
            counting[attribute] += len(seen) == 4
    assert sum(counting.values()) == 50
    assert min(counting.values()) > 10


def test_no_rule_is_in_both_splits() -> None:
    options = dict(count=300, values=4, labels=2)
    train, test = (rules(split, **options) for split in ("train", "test"))
    assert train
    assert test
    assert not train & test


def test_random_labels_say_nothing_of_the_rule() -> None:
    told = [
        dict(each.meta["demonstrations"]).get(each.prompt) == each.answer
        for each in classification(count=400, demonstrations=60, labels=2)
    ]
    control = classification(count=400, demonstrations=60, labels=2, random_labels=True)
    random = [dict(each.meta["demonstrations"]).get(each.prompt) == each.answer for each in control]
    assert sum(told) / 400 > 0.99
    assert sum(random) / 400 == pytest.approx(0.5, abs=0.08)


def test_written_episodes_are_lines() -> None:
    [plain] = classification(count=1, demonstrations=2, vocabulary="words", seed=3)
    [written] = classification(count=1, demonstrations=2, vocabulary="words", seed=3, written=True)
    lines = [f"{text} {label}" for text, label in (*plain.meta["demonstrations"], (plain.prompt, plain.answer))]
    assert f"{written.prompt}\n{written.meta['solution']}".split("\n") == lines
