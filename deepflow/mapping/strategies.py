"""Ways to spread work over devices: every split of a machine into parallel degrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt

from deepflow.mapping.layout import Degrees
from deepflow.record import record


@record(frozen=True)
class Strategy:
    """One split of the devices.

    ``kernel``: "CR" cuts the inner dimension of matrix multiplications into kp1 parts, "RC" the
    rows into kp1 and the columns into kp2 parts; None where both degrees are 1.
    """

    kernel: str | None
    degrees: Degrees

    def overrides(self) -> dict[str, object]:
        """As canonical overrides of a hardware configuration."""
        return {
            "scheduling_param.t": self.kernel,
            "scheduling_param.kp1": self.degrees.kp1,
            "scheduling_param.kp2": self.degrees.kp2,
            "scheduling_param.data": self.degrees.dp,
            "scheduling_param.pipeline": self.degrees.lp,
        }


def enumerate_strategies(
    num_devices: int,
    batch_size: int,
    *,
    kernels: Sequence[str] = ("CR", "RC"),
    pipeline_degrees: Sequence[int] | None = None,
    powers_of_two: bool = False,
    deduplicate: bool = True,
) -> Iterator[Strategy]:
    """Every strategy that uses all of ``num_devices``.

    Degrees are all divisors, or only ``powers_of_two``; ``pipeline_degrees`` restricts lp (those
    that do not divide the devices are left out). A replica needs a sample, so dp is at most
    ``batch_size``.

    Without kernel parallelism CR and RC are the same; ``deduplicate`` yields that strategy once,
    with kernel None. The DeepFlow research code yields it for both kernels, tries lp 1 and 4 and
    powers of two only.
    """
    for kernel in kernels:
        for lp in _divisors(num_devices) if pipeline_degrees is None else pipeline_degrees:
            if num_devices % lp:
                continue
            for degrees in _splits(num_devices // lp, lp, kernel == "RC", powers_of_two):
                if degrees.dp > batch_size:
                    continue
                if not deduplicate or degrees.kp1 * degrees.kp2 > 1:
                    yield Strategy(kernel, degrees)
                elif kernel == kernels[0]:
                    yield Strategy(None, degrees)


def _splits(workers: int, lp: int, second: bool, powers_of_two: bool) -> Iterator[Degrees]:
    """Splits of the devices of one pipeline stage into kp1, kp2 (1 unless ``second``) and dp."""
    allowed = [
        divisor
        for divisor in _divisors(workers)
        if not powers_of_two or divisor & (divisor - 1) == 0
    ]
    for kp1 in allowed:
        for kp2 in allowed if second else (1,):
            dp, rest = divmod(workers, kp1 * kp2)
            if not rest and dp in allowed:
                yield Degrees(kp1, kp2, dp, lp)


def _divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    low = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return low + [number // divisor for divisor in reversed(low) if divisor * divisor != number]
