"""What classes can be told apart at all: classifiers that see all views of all items.

    python tests/benchmarks/ceiling.py digits.npz fourier zernike morphology

prints the accuracy of linear discriminant analysis and of a support vector machine in ten-fold
cross-validation, and the pair of classes that is confused most.
"""

import argparse

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def main() -> None:
    """Print a line for each classifier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", help="an .npz file with `label` and an array for each view")
    parser.add_argument("views", nargs="+")
    given = parser.parse_args()
    with np.load(given.path) as file:
        labels = file["label"]
        table = np.hstack([file[view].reshape(len(labels), -1) for view in given.views])
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


if __name__ == "__main__":
    main()
