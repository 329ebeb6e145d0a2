import itertools

from bridle_hf.training.seeds import seed_from


def test_every_place_has_a_seed_of_its_own():
    places = [place for length in range(1, 5) for place in itertools.product(range(3), repeat=length)]
    assert len({seed_from(*place) for place in places}) == len(places)


def test_a_seed_is_what_torch_takes():
    assert all(0 <= seed_from(0, step) < 2**63 for step in range(100))
