"""Records are frozen dataclasses in everything but the way they are made."""

import dataclasses

import pytest

from deepflow.record import record


@record(frozen=True)
class Point:
    x: int
    y: float = 2.0

    @property
    def norm(self) -> float:
        return abs(self.x) + abs(self.y)


@dataclasses.dataclass(frozen=True)
class Twin:
    x: int
    y: float = 2.0


@pytest.mark.parametrize("cls", [Point, Twin])
def test_they_behave_like_dataclasses(cls):
    assert cls(1) == cls(1, 2.0) == cls(x=1, y=2.0)
    assert cls(1) != cls(2) and cls(1) != (1, 2.0)
    assert len({cls(1), cls(1, 2.0), cls(3)}) == 2
    assert dataclasses.replace(cls(1), y=5.0) == cls(1, 5.0)
    assert [item.name for item in dataclasses.fields(cls)] == ["x", "y"]
    assert dataclasses.asdict(cls(1)) == {"x": 1, "y": 2.0}
    assert repr(cls(1)) == f"{cls.__name__}(x=1, y=2.0)"
    match cls(4, 5.0):
        case cls(x, y=y):
            assert (x, y) == (4, 5.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls(1).x = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del cls(1).x


@pytest.mark.parametrize("cls", [Point, Twin])
@pytest.mark.parametrize(
    ("positional", "given"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 3}), ((), {"y": 1.0})]
)
def test_wrong_arguments_are_type_errors(cls, positional, given):
    with pytest.raises(TypeError):
        cls(*positional, **given)


def test_an_argument_given_twice_is_a_type_error():
    with pytest.raises(TypeError):
        Twin(1, x=2)
    with pytest.raises(TypeError):
        Point(1, x=2)


def test_properties_and_mutable_records():
    assert Point(-3).norm == 5
    with pytest.raises(TypeError, match="frozen"):
        record(frozen=False)
