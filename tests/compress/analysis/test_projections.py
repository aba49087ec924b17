"""Two-dimensional plots: what is kept, and when there are none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from compress.analysis.projections import ROWS, ProjectionError, corners, project, template_plane, tsne


def groups(rows: int, width: int = 6, count: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, count, rows)
    return 15 * np.eye(width)[labels] + rng.normal(size=(rows, width)), labels


def test_tsne_keeps_neighbours_and_is_the_same_again() -> None:
    embedding, labels = groups(120)
    points = tsne(embedding)
    assert points.shape == (120, 2)
    assert KNeighborsClassifier(3).fit(points, labels).score(points, labels) == 1.0
    assert tsne(embedding).tolist() == points.tolist()


@pytest.mark.parametrize("shape", [(5, 3), (30, 1), (8, 2)])
def test_tsne_of_few_rows_and_of_one_dimension(shape: tuple[int, int]) -> None:
    points = tsne(np.random.default_rng(0).normal(size=shape))
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize(
    ("embedding", "reason"), [(np.ones((30, 4)), "all embeddings are equal"), (np.eye(4), "5 rows")]
)
def test_tsne_says_why_there_is_none(embedding: np.ndarray, reason: str) -> None:
    with pytest.raises(ProjectionError, match=reason):
        tsne(embedding)


def test_distances_in_the_plane_of_three_templates_are_kept() -> None:
    rng = np.random.default_rng(0)
    templates = rng.normal(size=(3, 10))
    weights = rng.dirichlet(np.ones(3), 50)
    inside = weights @ templates  # on the plane itself, where the projection moves nothing
    points = template_plane(templates, inside)
    distances = np.linalg.norm(inside[:, None] - inside[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=2), distances, atol=1e-10)


def test_what_is_orthogonal_to_the_plane_is_dropped() -> None:
    templates = np.array([[0.0, 0, 5], [3, 0, 5], [3, 2, 5]])
    np.testing.assert_allclose(template_plane(templates, np.array([[7.0, -4, 99], [1, 1, 0]])), [[7, -4], [1, 1]])


def test_of_two_templates_the_second_axis_is_the_principal_direction_beside_them() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 3)) * [1, 0.1, 8]
    points = template_plane(np.array([[0.0, 0, 0], [2, 0, 0]]), embedding)
    np.testing.assert_allclose(points[:, 0], embedding[:, 0])
    assert abs(np.corrcoef(points[:, 1], embedding[:, 2])[0, 1]) > 0.9999


@pytest.mark.parametrize(
    "templates", [[[1.0, 1], [1, 1], [0, 2]], [[0.0, 0], [1, 1], [2, 2]]], ids=["equal", "on a line"]
)
def test_templates_that_span_no_plane(templates: list[list[float]]) -> None:
    with pytest.raises(ProjectionError, match="span no plane"):
        template_plane(np.array(templates), np.eye(2))


def test_equal_embeddings_leave_two_templates_without_a_second_axis() -> None:
    with pytest.raises(ProjectionError, match="span no plane"):
        template_plane(np.eye(2), np.ones((5, 2)))


def test_corners_are_the_first_classes_that_have_rows() -> None:
    found = corners(np.zeros((6, 5)), np.array([3, 0, 4, 0, 2, 3]), 1)
    assert found.index == (0, 2, 3)
    assert found.rows.tolist() == [0, 1, 3, 4, 5]
    assert found.of_row.tolist() == [2, 0, 0, 1, 2]


def test_corners_of_subclasses_are_those_that_win_most_rows() -> None:
    winners = np.array([5, 5, 5, 1, 1, 0, 4, 4, 4])
    found = corners(np.eye(6)[winners], np.zeros(9, int), 3)
    assert found.index == (1, 4, 5)
    assert found.of_row.tolist() == [2, 2, 2, 0, 0, 1, 1, 1]
    assert 5 not in found.rows  # the only row of subclass 0


def test_points_are_few_and_carry_their_labels() -> None:
    embedding, labels = groups(ROWS + 100)
    logits = embedding[:, :3]
    small = project(
        logits[:60], embedding[:60], np.eye(6)[:3], labels=labels[:60], hidden=None, subclasses=1, names="abc"
    )
    assert len(small["tsne"]["points"]) == len(small["tsne"]["classes"]) == 60
    assert small["tsne"]["hidden"] is None
    assert small["plane"]["corners"] == ["a", "b", "c"]
    assert small["plane"]["of_row"] == labels[:60].tolist()
    assert len(corners(logits, labels, 1).rows) == ROWS


def test_a_plot_that_cannot_be_is_left_out_with_its_reason() -> None:
    found = project(
        np.array([[1.0, 0], [2, 0]]), np.ones((2, 1)), np.ones((2, 1)),
        labels=np.zeros(2, int), hidden=None, subclasses=1, names="ab",
    )  # fmt: skip
    assert found["tsne"] == {"points": None, "reason": "t-SNE needs 5 rows; there are 2"}
    assert found["plane"] == {"points": None, "reason": "the embedding has one dimension"}
    one = project(
        np.eye(2), np.eye(2), np.eye(2), labels=np.zeros(2, int), hidden=None, subclasses=1, names="ab"
    )  # fmt: skip
    assert one["plane"]["reason"] == "all rows are of one class"
