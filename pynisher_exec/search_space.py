"""The demo's candidates: scikit-learn estimators on data sets that scikit-learn ships.

Most are fine. Some run away by themselves, none by a planted bug: a linear or high-degree kernel on
unscaled features does not converge, polynomial features of a high degree outgrow memory, thousands
of trees or boosting rounds outlast their time, `n_jobs=8` starts more processes than allowed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Candidate", "candidates", "score"]


class Candidate(NamedTuple):
    """One configuration: an estimator by its dotted name, its parameters, and how it is fed."""

    data: str
    estimator: str
    parameters: dict[str, Any]
    scaled: bool = False
    degree: int = 1
    n_jobs: int | None = None

    @property
    def name(self) -> str:
        """One line that a person reads in a table."""
        values = [f"{name}={value}" for name, value in self.parameters.items()]
        values += [f"degree-{self.degree} features"] * (self.degree > 1)
        values += [f"n_jobs={self.n_jobs}"] * (self.n_jobs is not None)
        values += ["scaled"] * self.scaled
        return f"{self.estimator.rpartition('.')[2]}({', '.join(values)})"


SVC, FOREST = "svm.SVC", "ensemble.RandomForestClassifier"
BOOSTING, LOGISTIC = "ensemble.GradientBoostingClassifier", "linear_model.LogisticRegression"
RIDGE, MLP, TREE = "linear_model.RidgeClassifier", "neural_network.MLPClassifier", "tree."
NEIGHBORS, BAYES = "neighbors.KNeighborsClassifier", "naive_bayes.GaussianNB"
GAUSS = "gaussian_process.GaussianProcessClassifier"


def candidates() -> list[Candidate]:
    """Give all configurations, the runaways among them."""
    return [*_neighbors(), *_kernels(), *_trees(), *_linear(), *_networks()]


def _neighbors() -> list[Candidate]:
    found = [
        Candidate("digits", NEIGHBORS, {"n_neighbors": count}, scaled=scaled)
        for count in (1, 5, 15)
        for scaled in (False, True)
    ]
    return [*found, Candidate("digits", BAYES, {}), Candidate("digits", BAYES, {}, scaled=True)]


def _kernels() -> list[Candidate]:
    return [
        *[Candidate("digits", SVC, {"C": c, "gamma": g}) for c in (1, 10) for g in (0.001, 0.01)],
        *[Candidate("breast_cancer", SVC, {"C": c}, scaled=True) for c in (0.1, 1, 10)],
        # Features from 0.001 to 4000 and a large C: the solver goes on for hours.
        Candidate("breast_cancer", SVC, {"kernel": "linear", "C": 100}),
        Candidate("breast_cancer", SVC, {"kernel": "linear", "C": 10000}),
        Candidate("digits", GAUSS, {}),  # cubic in the samples, ten times, in threaded BLAS
    ]


def _trees() -> list[Candidate]:
    return [
        *[Candidate("digits", TREE + "DecisionTreeClassifier", {"max_depth": d}) for d in (4, 16)],
        *[Candidate("digits", FOREST, {"n_estimators": count}) for count in (10, 100)],
        Candidate("digits", FOREST, {"n_estimators": 5000}),
        *[Candidate("digits", BOOSTING, {"n_estimators": count}) for count in (5, 20)],
        Candidate("digits", BOOSTING, {"n_estimators": 2000}),
        Candidate("digits", FOREST, {"n_estimators": 50}, n_jobs=2),
        Candidate("digits", FOREST, {"n_estimators": 5000}, n_jobs=2),
        Candidate("digits", FOREST, {"n_estimators": 50}, n_jobs=8),
    ]


def _linear() -> list[Candidate]:
    return [
        *[Candidate("wine", LOGISTIC, {"C": c}, scaled=True) for c in (0.01, 1, 100)],
        *[Candidate("breast_cancer", RIDGE, {}, scaled=True, degree=n) for n in (1, 2, 3)],
        # 5th degree of 30 features: 324,632 columns; 3rd degree of 64: 47,905 for 1797 rows.
        Candidate("breast_cancer", RIDGE, {}, scaled=True, degree=5),
        Candidate("digits", RIDGE, {}, degree=3),
        Candidate("digits", LOGISTIC, {"solver": "saga", "max_iter": 10**6, "tol": 1e-12}),
        Candidate("wine", LOGISTIC, {"C": 1}, scaled=True, n_jobs=8),
    ]


def _networks() -> list[Candidate]:
    return [
        Candidate("digits", MLP, {"hidden_layer_sizes": (32,), "max_iter": 50}, scaled=True),
        Candidate("digits", MLP, {"hidden_layer_sizes": (6000, 6000)}, scaled=True),
    ]


def score(candidate: Candidate) -> float:
    """Give the mean of a 3-fold cross-validation. Runs inside a task."""
    import warnings  # noqa: PLC0415
    from importlib import import_module  # noqa: PLC0415

    from sklearn import datasets, model_selection, pipeline, preprocessing  # noqa: PLC0415

    warnings.simplefilter("ignore")
    features, target = getattr(datasets, f"load_{candidate.data}")(return_X_y=True)
    module, _, kind = candidate.estimator.rpartition(".")
    estimator = getattr(import_module(f"sklearn.{module}"), kind)(**candidate.parameters)
    steps = [preprocessing.StandardScaler()] * candidate.scaled
    steps += [preprocessing.PolynomialFeatures(candidate.degree)] * (candidate.degree > 1)
    scores = model_selection.cross_val_score(
        pipeline.make_pipeline(*steps, estimator),
        features,
        target,
        cv=3,
        n_jobs=candidate.n_jobs,
        error_score="raise",  # else scikit-learn turns a MemoryError into a missing score
    )
    return float(scores.mean())
