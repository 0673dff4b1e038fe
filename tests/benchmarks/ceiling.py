"""What classes can be told apart at all, with all views of all items or with one view each.

    python tests/benchmarks/ceiling.py digits.npz fourier zernike morphology

prints the accuracy of linear discriminant analysis and of a support vector machine that see all
views, in ten-fold cross-validation, and the pair of classes that is confused most. Then of
classifiers of one view each, which share the train items as modalities of a federation do, so that
none sees an item that another does: mean and sd over `--seeds` splits of 70 % train, 10 % and 20 %
test items. Their log-probabilities are added, each at the temperature that suits the 10 % best.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_approximation import RBFSampler
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

Floats = NDArray[np.float64]


def together(opinions: Sequence[Floats], prior: Floats, temperatures: Floats) -> Floats:
    """Return log-probabilities (N, K) of what all say beyond the prior."""
    pairs = zip(np.exp(temperatures), opinions, strict=True)
    scores = prior + sum(beta * (opinion - prior) for beta, opinion in pairs)
    scores -= logsumexp(scores, axis=1, keepdims=True)
    return np.asarray(scores)


def of_one_view_each(
    make: Callable[[], ClassifierMixin],
    views: Sequence[Floats],
    labels: NDArray[np.int64],
    seed: int,
) -> float:
    """Return the accuracy, on test items, of classifiers that have each one view of other items."""
    order = np.random.default_rng(seed).permutation(len(labels))
    train, held, test = np.split(order, [int(0.7 * len(order)), int(0.8 * len(order))])
    prior = np.log(np.bincount(labels[train]) / len(train))
    models = [
        make_pipeline(StandardScaler(), make()).fit(view[own], labels[own])
        for view, own in zip(views, np.array_split(train, len(views)), strict=True)
    ]

    def said(items: NDArray[np.int64]) -> list[Floats]:
        pairs = zip(models, views, strict=True)
        return [np.log(model.predict_proba(view[items]) + 1e-9) for model, view in pairs]

    opinions, places = said(held), (np.arange(len(held)), labels[held])
    best = minimize(
        lambda beta: -together(opinions, prior, beta)[places].mean() + 0.01 * (beta @ beta),
        np.zeros(len(views)),
    )
    predicted = together(said(test), prior, best.x).argmax(axis=1)
    return float((predicted == labels[test]).mean())


def main() -> None:
    """Print a line for each classifier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="an .npz file with `label` and an array for each view")
    parser.add_argument("views", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(11, 19))
    given = parser.parse_args()
    with np.load(given.path) as file:
        labels = file["label"]
        views = [file[view].reshape(len(labels), -1).astype(np.float64) for view in given.views]
    table = np.hstack(views)
    for name, classifier in (
        ("LDA", LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")),
        ("SVM", SVC(C=5)),
    ):
        model = make_pipeline(StandardScaler(), classifier)
        predicted = cross_val_predict(model, table, labels, cv=10)
        confused = confusion_matrix(labels, predicted)
        np.fill_diagonal(confused, 0)
        pairs = confused + confused.T
        one, two = np.unravel_index(pairs.argmax(), pairs.shape)
        print(
            f"{name}: accuracy {accuracy_score(labels, predicted):.4f}; {one} and {two} are taken "
            f"for each other in {pairs[one, two] / len(labels):.4f} of the items"
        )
    lda = partial(LinearDiscriminantAnalysis, solver="lsqr", shrinkage="auto")
    as_it_is = FunctionTransformer()
    for name, make in (
        ("LDA", lda),
        (
            "LDA with 512 random features",
            lambda: make_pipeline(
                make_union(as_it_is, RBFSampler(gamma="scale", n_components=512)), lda()
            ),
        ),
        ("SVM", lambda: SVC(C=5, probability=True)),
    ):
        found = [of_one_view_each(make, views, labels, seed) for seed in given.seeds]
        print(f"{name}, one view each: accuracy {np.mean(found):.4f} ± {np.std(found, ddof=1):.4f}")


if __name__ == "__main__":
    main()
