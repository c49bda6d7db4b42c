"""Persona space: PCA of role vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from persona_axis import PersonaAxisError, PersonaSpace


def data(n=12, width=20, seed=0):
    random = np.random.default_rng(seed)
    scales = np.linspace(3, 0.1, width)
    return random.normal(size=(n, width)) * scales + 5, random.normal(size=width) + 7


@given(n=st.integers(2, 30), width=st.integers(1, 30), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_agrees_with_sklearn(n, width, seed):
    roles, default = data(n, width, seed)
    space = PersonaSpace.fit(roles, default)
    k = min(n - 1, width)
    reference = PCA(n_components=k, svd_solver="full").fit(roles)
    assert len(space.components) == k
    np.testing.assert_allclose(space.explained_variance_ratio, reference.explained_variance_ratio_, atol=1e-10)
    signs = np.sign((space.components * reference.components_).sum(axis=1))
    np.testing.assert_allclose(space.components, reference.components_ * signs[:, None], atol=1e-6)
    np.testing.assert_allclose(space.project(roles), reference.transform(roles) * signs, atol=1e-6)
    np.testing.assert_allclose(space.components @ space.components.T, np.eye(k), atol=1e-10)
    assert space.explained_variance_ratio.sum() == pytest.approx(1)
    assert (space.components @ space.axis >= 0).all() and 0 <= space.cosine_axis_pc1 <= 1


def test_axis_and_ranking():
    roles = np.array([[0.0, 2.0], [1.0, 0.0], [2.0, 1.0]])
    space = PersonaSpace.fit(roles, np.array([5.0, 1.0]), ["far", "middle", "near"])
    np.testing.assert_allclose(space.axis, [1.0, 0.0])
    assert space.ranking() == [("near", 2.0), ("middle", 1.0), ("far", 0.0)]
    assert PersonaSpace.fit(roles, np.array([5.0, 1.0])).ranking()[0] == ("role 2", 2.0)


def test_cosine_is_that_of_axis_and_first_component():
    roles = np.array([[-3.0, 1.0], [3.0, -1.0], [0.1, 0.3], [-0.1, -0.3]])
    for default in ([-4.0, 0.0], [4.0, 0.0]):  # the sign of a component is arbitrary: it is fixed toward the axis
        space = PersonaSpace.fit(roles, np.array(default))
        assert space.cosine_axis_pc1 == pytest.approx(3 / np.sqrt(10), abs=1e-6)
        assert space.components[0] @ np.array(default) > 0


def test_components_for_a_share():
    roles = np.diag([4.0, 3.0, 2.0, 1.0])
    roles = np.concatenate([roles, -roles])
    space = PersonaSpace.fit(roles, np.array([1.0, 0, 0, 0]))
    np.testing.assert_allclose(space.explained_variance_ratio, np.array([16, 9, 4, 1]) / 30)
    counts = [space.n_components_for(share) for share in (0.01, 16 / 30, 0.54, 25 / 30, 0.9, 29 / 30, 0.99, 1.0)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4]
    for share in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(PersonaAxisError, match="share"):
            space.n_components_for(share)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_of_any_dtype_is_worked_on_in_float64(dtype):
    roles, default = (torch.from_numpy(x).to(dtype) for x in data())
    space = PersonaSpace.fit(roles.requires_grad_(), default)
    reference = PersonaSpace.fit(roles.detach().double().numpy(), default.double().numpy())
    assert space.components.dtype == np.float64
    np.testing.assert_array_equal(space.components, reference.components)
    np.testing.assert_array_equal(space.project(roles), reference.project(roles.detach().double().numpy()))


def test_float16_arrays_do_not_overflow():
    roles = np.array([[60000.0, 1.0], [-60000.0, 2.0], [60000.0, 3.0]], dtype=np.float16)
    space = PersonaSpace.fit(roles, np.array([0.0, 9.0], dtype=np.float16))
    assert np.isfinite(space.components).all()


def test_one_vector_or_many():
    roles, default = data()
    space = PersonaSpace.fit(roles, default)
    np.testing.assert_allclose(space.project(default), space.project(default[None])[0])
    with pytest.raises(PersonaAxisError, match=r"expected \[n, 20\] or \[20\], got \(3,\)"):
        space.project(np.zeros(3))


def test_what_has_no_variance_is_left_out():
    roles = np.zeros((5, 8))
    roles[:, 2] = [1, 2, 3, 4, 5]
    assert len(PersonaSpace.fit(roles, np.ones(8)).components) == 1


@pytest.mark.parametrize(
    ("roles", "default", "names", "says"),
    [
        (np.ones((1, 3)), np.zeros(3), None, "n >= 2"),
        (np.ones(3), np.zeros(3), None, "n >= 2"),
        (np.eye(3), np.zeros(4), None, r"\(3, 3\) and \(4,\)"),
        (np.eye(3), np.zeros((1, 3)), None, r"\(1, 3\)"),
        (np.eye(3) * np.nan, np.zeros(3), None, "NaN"),
        (np.eye(3), np.full(3, np.inf), None, "infinite"),
        (np.eye(3), np.zeros(3), ["a", "b"], "2 names for 3 roles"),
        (np.ones((3, 3)), np.zeros(3), None, "same vector"),
        (np.eye(2), np.full(2, 0.5), None, "equals the mean"),
    ],
)
def test_what_cannot_be_fitted(roles, default, names, says):
    with pytest.raises(PersonaAxisError, match=says):
        PersonaSpace.fit(roles, default, names)
