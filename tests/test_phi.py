"""The phi functions against a series in 60 digits and quadrature, and the order conditions of the exponential tableaux."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.integrate import quad

from sdediff import ExponentialTableau, UserError, res2, res3
from sdediff.phi import EXPONENTIAL_TABLEAUX, phi

POINTS = (0.0, 1e-300, 1e-12, 1e-4, 0.03, 0.5, 1.0, 2.0, 5.0, 7.9, 8.1, 9.0, 13.0, 25.0)


@pytest.mark.parametrize("k", range(6))
def test_phi_is_right_to_rounding(k):
    for z in (*POINTS, *(-p for p in POINTS)):
        with localcontext(prec=60):
            exact = sum(Decimal(z) ** n / math.factorial(n + k) for n in range(1, 150)) + 1 / Decimal(math.factorial(k))
        assert phi(k, z) == pytest.approx(float(exact), rel=1e-14, abs=0), (k, z)


@pytest.mark.parametrize("k", range(1, 6))
def test_phi_is_its_integral(k):
    for z in (-40.0, -3.0, 0.0, 0.1, 6.0):
        value, _ = quad(lambda r, z=z: math.exp((1 - r) * z) * r ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0, epsrel=1e-12)
        assert phi(k, z) == pytest.approx(value, rel=1e-10)


def test_phi_of_an_array_and_far_away():
    z = np.array([[-1.0, 0.0], [0.3, 20.0]])
    assert np.array_equal(phi(2, z), [[phi(2, float(v)) for v in row] for row in z])
    assert phi(3, -1e6) == pytest.approx(0.5e-6, rel=1e-5)
    assert phi(1, -math.inf) == 0.0


EVERY_Z = {"etd2rk": 2, "res2": 2, "ho3": 2, "res3": 2, "etd3rk": 3, "krogstad": 3, "ho4": 3}


@pytest.mark.parametrize("name", EXPONENTIAL_TABLEAUX)
def test_quadrature_conditions(name):
    """sum_j b_j c_j^(k-1)/(k-1)! = phi_k(z): at z = 0 for all k up to the order, and for every z up to what stiff problems need."""
    tableau = EXPONENTIAL_TABLEAUX[name]
    for z in (0.0, -0.7, -3.0):
        _, b = tableau.weights(z)
        for k in range(2, (EVERY_Z.get(name, 1) if z else tableau.order) + 1):
            total = sum(w * c ** (k - 1) / math.factorial(k - 1) for w, c in zip(b, tableau.c, strict=True))
            assert total == pytest.approx(phi(k, z), abs=1e-14), (k, z)


def test_at_z_zero_the_fourth_order_ones_are_the_classical_method():
    a, b = EXPONENTIAL_TABLEAUX["krogstad"].weights(0.0)
    assert b == pytest.approx((1 / 3, 1 / 3, 1 / 6))
    assert a[2] == pytest.approx((0.0, 1.0))
    a, b = EXPONENTIAL_TABLEAUX["ho4"].weights(0.0)
    assert b == pytest.approx((0, 0, 1 / 6, 2 / 3), abs=1e-15)
    assert a[3] == pytest.approx((1 / 8, 1 / 8, 0.0), abs=1e-15)


def test_tableaux_that_are_none():
    for c2, c3 in ((0.0, 1.0), (0.5, 1.5), (2 / 3, 1.0), (0.4, 0.4)):
        with pytest.raises(UserError):
            res3(c2, c3)
    with pytest.raises(UserError):
        res2(-1.0)
    with pytest.raises(UserError):
        ExponentialTableau((0.5,), (), (), 2)
    with pytest.raises(UserError):
        ExponentialTableau((0.5, 1.0), ((),), (((1, 1),), ((1, 1),)), 2)
    assert res3(1 / 3, 2 / 3).weights(-0.4)[1] == pytest.approx(EXPONENTIAL_TABLEAUX["ho3"].weights(-0.4)[1], abs=1e-15)
