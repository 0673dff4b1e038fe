"""Seeds derived from names."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.seeding import derive_seed

parts = st.lists(st.integers() | st.text("abc-01", max_size=5), max_size=4)


@given(parts, parts)
@example(["1"], [1])
@example(["a", "b"], ["b", "a"])
@example(["ab"], ["a", "b"])
@settings(max_examples=50, deadline=None)
def test_different_parts_give_different_seeds(one: list[int | str], two: list[int | str]) -> None:
    assert (derive_seed(*one) == derive_seed(*two)) == (one == two)


def test_the_value_is_the_same_in_every_version() -> None:
    # Hard-coded: whoever changes this changes every published run.
    assert derive_seed(1234, "train", 1, "audio-0") == 842275001433897176
    assert derive_seed() == 8238016292129134938
