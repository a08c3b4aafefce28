"""Linear probe: multinomial logistic regression on frozen features."""

from dataclasses import dataclass

from torch import Tensor, nn

from sslfast._arguments import Part, PositiveInt, Seed, checked
from sslfast._renamed import PROBE_RESULT, accepts_old_names
from sslfast.eval.features import Features, check_same_width, labels_of
from sslfast.eval.labels import draw_labels
from sslfast.eval.logistic import FINAL, Basis, Classifier, Scaling, choose_regularization


@accepts_old_names(PROBE_RESULT)
@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        accuracy: top-1 on the test set, in [0, 1].
        train_accuracy: top-1 on the labels it was fitted to.
        validation_accuracy: top-1 on the held-out labels that chose the regularisation, or None
            where there were too few labels to hold any out.
        regularization: the chosen lambda.
        n_labels: train labels used, those held out for the choice included.
        n_classes: classes among them.
        n_test: test samples.
    """

    accuracy: float
    train_accuracy: float
    validation_accuracy: float | None
    regularization: float
    n_labels: int
    n_classes: int
    n_test: int


@checked
def linear_probe(
    train: Features,
    test: Features,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
) -> ProbeResult:
    """Fit a linear classifier to frozen train features and report its accuracy on the test set.

    The features are standardised by the mean and deviation of all train features (the encoder has
    seen those without labels). The classifier minimises

        mean_i cross_entropy(W x_i + b, y_i) + (lambda / 2) |W|^2

    by Newton's method in float64, to the optimum: probabilities are those of scikit-learn's
    LogisticRegression(C=1 / (n lambda)) to a few thousandths (C=2 / (n lambda) for two classes,
    which it gives one weight vector), and a fit that ends elsewhere warns.
    Lambda is the one of ``logistic.REGULARIZATIONS`` with the lowest cross-entropy on a held-out
    fifth of the drawn train labels; the classifier is then fitted again to all of them. The test
    set is looked at once. The same seed gives the same result.

    Args:
        train: labelled train features.
        test: labelled test features. A class that no train label has counts as errors.
        labels_per_class: use this many train labels of each class; None: no such limit.
        label_fraction: use this part, in (0, 1], of the train labels of each class, at least one.
        seed: draws the labels and the held-out part.

    Raises:
        ValueError: a class has fewer labels than ``labels_per_class``; both limits are given, or
            one out of range; fewer than two classes; features without labels, empty, not finite,
            or of different widths.
    """
    for features, name in ((train, "train"), (test, "test")):
        labels_of(features, name, "a linear probe")
    check_same_width(train, test)
    return LinearProbe.fit(train, labels_per_class, label_fraction, seed).score(test)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """The classifier of ``linear_probe``, once fitted.

    Attributes:
        classes: that it was fitted to, int64 [C].
        scaling: what standardises features.
        classifier: of standardised features.
        train_accuracy: see ``ProbeResult``, as the next three.
        validation_accuracy: of the labels held out.
        regularization: the chosen lambda.
        n_labels: that it was fitted to.
    """

    classes: Tensor
    scaling: Scaling
    classifier: Classifier
    train_accuracy: float
    validation_accuracy: float | None
    regularization: float
    n_labels: int

    @classmethod
    def fit(
        cls,
        train: Features,
        labels_per_class: int | None = None,
        label_fraction: float | None = None,
        seed: int = 0,
    ) -> "LinearProbe":
        """Fit to train features; arguments and errors are those of ``linear_probe``."""
        labels = labels_of(train, "train", "a linear probe")
        drawn = draw_labels(labels, train.sample_ids, labels_per_class, label_fraction, seed)
        scaling = Scaling.of(train.features)
        x = scaling(train.features[drawn])
        classes, y = labels[drawn].unique(return_inverse=True)
        if len(classes) < 2:
            raise ValueError("a linear probe needs train labels of at least two classes, got one")
        chosen, held_out = choose_regularization(x, y)
        classifier = Classifier.fit(Basis.of(x), x, y, chosen, FINAL)
        return cls(
            classes, scaling, classifier, classifier.accuracy(x, y), held_out, chosen, len(y)
        )

    def predict(self, features: Features) -> tuple[Tensor, Tensor]:
        """The likeliest class of N samples, int64 [N], and its probability, float64 [N]."""
        logits = self.classifier.logits(self.scaling(features.features))
        return self.classes[logits.argmax(1)], logits.softmax(1).amax(1)

    def score(self, test: Features) -> ProbeResult:
        """How well it does on labelled test features."""
        labels = labels_of(test, "test", "a linear probe")
        return ProbeResult(
            accuracy=float((self.predict(test)[0] == labels).double().mean()),
            train_accuracy=self.train_accuracy,
            validation_accuracy=self.validation_accuracy,
            regularization=self.regularization,
            n_labels=self.n_labels,
            n_classes=len(self.classes),
            n_test=len(test),
        )


def linear_head(features: Tensor, y: Tensor) -> nn.Linear:
    """The classifier that ``linear_probe`` would fit to all of some features, as a layer.

    Standardisation, by these features alone, is folded into its weights.

    Args:
        features: float32 [N, D].
        y: classes 0 ... C - 1, at least two, int64 [N].

    Returns:
        From D to C, float32, on the CPU.
    """
    scaling = Scaling.of(features)
    x = scaling(features)
    classifier = Classifier.fit(Basis.of(x), x, y, choose_regularization(x, y)[0], FINAL)
    weight = scaling.scale[:, None] * classifier.weight
    head = nn.utils.skip_init(nn.Linear, *weight.shape)
    head.load_state_dict({"weight": weight.T, "bias": classifier.bias - scaling.mean @ weight})
    return head
