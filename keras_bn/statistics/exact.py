"""Sums of float64 numbers without rounding, so the order of the terms makes no difference to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BITS = 32  # per bin: 2**31 terms may be added before an int64 overflows
_LOWEST = -1088  # a multiple of _BITS below the exponent of the smallest float64, 2**-1074
_BINS = (1024 - _LOWEST) // _BITS + 2


class ExactSum:
    """The exact sums of several sequences of float64 numbers, one sequence per column.

    Each number is a 53-bit integer times a power of two. Its bits are added to integers that stand for fixed
    powers of two (a superaccumulator; Kulisch and Miranker, 1981). Integer addition is exact, associative and
    commutative, so partial sums can be merged in any order.

    Args:
        size: the number of columns.

    >>> total = ExactSum(1)
    >>> for term in (1e100, 1.0, -1e100):
    ...     total.add([term])
    >>> total.rounded()
    array([1.])
    """

    def __init__(self, size: int) -> None:
        self._bins = np.zeros((_BINS, size), np.int64)

    def add(self, terms: ArrayLike) -> None:
        """Add finite numbers, `(size,)`, or `(terms, size)` for several numbers to every column."""
        terms = np.asarray(terms, np.float64)
        fraction, exponent = np.frexp(terms)
        mantissa = (fraction * 2.0**53).astype(np.int64)
        index, shift = np.divmod(exponent.astype(np.int64) - 53 - _LOWEST, _BITS)
        size = terms.shape[-1]
        place = (index * size + np.arange(size)).ravel()
        bins = self._bins.reshape(-1)
        sign, magnitude = np.sign(mantissa), np.abs(mantissa)
        # In halves, since the mantissa shifted by up to 31 bits needs 84 of them.
        for half, offset in ((magnitude & 0xFFFFFFFF, 0), (magnitude >> 32, size)):
            shifted = half << shift
            np.add.at(bins, place + offset, (sign * (shifted & 0xFFFFFFFF)).ravel())
            np.add.at(bins, place + offset + size, (sign * (shifted >> 32)).ravel())

    def add_product(self, left: ArrayLike, right: ArrayLike) -> None:
        """Add the exact products of numbers, of shapes that broadcast to those of `add`."""
        for part in product(np.asarray(left, np.float64), np.asarray(right, np.float64)):
            self.add(part)

    def merge(self, other: ExactSum) -> None:
        """Add the sums of `other`."""
        self._bins += other._bins
        self._carry()

    def integers(self) -> list[int]:
        """Every sum as an integer number of units of `2**ExactSum.UNIT`."""
        used = np.flatnonzero(self._bins.any(1))  # some ten of the bins
        return [
            sum(int(value) << (_BITS * int(i)) for i, value in zip(used, column, strict=True))
            for column in self._bins[used].T
        ]

    def rounded(self) -> NDArray[np.float64]:
        """The sums, each rounded once."""
        return np.array([_scaled(value, self.UNIT) for value in self.integers()])

    UNIT = _LOWEST

    def _carry(self) -> None:
        """Bring every bin but the last into [0, 2**32), so that further terms cannot overflow it."""
        for i in range(_BINS - 1):
            carry = self._bins[i] >> _BITS
            self._bins[i] -= carry << _BITS
            self._bins[i + 1] += carry

    def to_array(self) -> NDArray[np.int64]:
        """The bins, the lowest first, `(bins, size)`."""
        self._carry()
        return self._bins

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, without the bins that no term has reached, which are most of them."""
        bins = self.to_array()
        used = np.flatnonzero(bins.any(1))
        first, last = (used[0], used[-1] + 1) if len(used) else (0, 0)
        return _unpickled, (bins[first:last], int(first))

    @classmethod
    def from_array(cls, bins: NDArray[np.int64]) -> ExactSum:
        """The sums that `to_array` gave."""
        result = cls(bins.shape[1])
        result._bins += bins
        return result


def _unpickled(bins: NDArray[np.int64], first: int) -> ExactSum:
    result = ExactSum(bins.shape[1])
    result._bins[first : first + len(bins)] = bins
    return result


def _scaled(value: int, exponent: int) -> float:
    return value / (1 << -exponent) if exponent < 0 else float(value << exponent)


def product(left: Any, right: Any) -> tuple[Any, Any]:
    """Two numbers whose sum is exactly left * right (Dekker, 1971)."""
    product = left * right
    left_high, left_low = _split(left)
    right_high, right_low = _split(right)
    error = left_low * right_low - (
        ((product - left_high * right_high) - left_low * right_high) - left_high * right_low
    )
    return product, error


def _split(value: Any) -> tuple[Any, Any]:
    scaled = 134217729.0 * value  # 2**27 + 1
    high = scaled - (scaled - value)
    return high, value - high
