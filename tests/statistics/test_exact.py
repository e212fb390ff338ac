"""Sums without rounding, held to rational arithmetic."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_bn.statistics.exact import ExactSum

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TABLES = arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=FINITE)
# Of a product, the two factors and their low halves must be normal numbers for the error term to be exact.
FACTORS = st.floats(-(2.0**400), 2.0**400).filter(lambda value: value == 0 or abs(value) > 2.0**-400)


def exact(total):
    return [Fraction(value) * Fraction(2) ** ExactSum.UNIT for value in total.integers()]


def summed(rows, size):
    total = ExactSum(size)
    for row in rows:
        total.add(row)
    return total


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_it_is_the_rational_sum(table):
    total = summed(table, table.shape[1])
    assert exact(total) == [sum(map(Fraction, column)) for column in table.T]


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_several_terms_are_added_at_once(table):
    total = ExactSum(table.shape[1])
    total.add(table)
    assert total.integers() == summed(table, table.shape[1]).integers()


@given(TABLES, st.integers(0, 8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_partial_sums_merge_in_any_order_to_the_same_bits(table, cut, random):
    rows = list(table)
    random.shuffle(rows)
    parts = [summed(rows[:cut], table.shape[1]), summed(rows[cut:], table.shape[1])]
    random.shuffle(parts)
    merged = ExactSum.from_array(parts[0].to_array())
    merged.merge(parts[1])
    assert merged.integers() == summed(table, table.shape[1]).integers()


@given(FACTORS, FACTORS)
@settings(max_examples=100, deadline=None)
def test_products_are_exact(left, right):
    total = ExactSum(1)
    total.add_product([left], [right])
    assert exact(total) == [Fraction(left) * Fraction(right)]


@given(TABLES)
@settings(max_examples=30, deadline=None)
def test_pickle_keeps_the_bits(table):
    total = summed(table, table.shape[1])
    assert pickle.loads(pickle.dumps(total)).integers() == total.integers()


def test_many_terms_do_not_overflow_a_bin():
    total = ExactSum(1)
    largest = np.nextafter(1.0, 0.0)
    total.add([largest])
    for _ in range(40):  # 2**40 terms
        total.merge(ExactSum.from_array(total.to_array().copy()))
    assert exact(total) == [Fraction(largest) * 2**40]


@pytest.mark.parametrize("value", [5e-324, 1.7976931348623157e308, -0.0, 1 / 3])
def test_rounded_gives_a_single_term_back(value):
    assert summed([[value]], 1).rounded()[0] == value
