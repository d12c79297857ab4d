"""The simplest engine of a training: one rank, which adds up gradients."""


class PlainBackward:
    """Counts its backward passes and exchanges nothing."""

    rank, ranks = 0, 1

    def __init__(self, scorer):
        self.scorer, self.passes = scorer, 0

    def __call__(self, forwards, seeds=()):
        return self.scorer(forwards, seeds)

    def backward(self, loss, *, last=False):
        self.passes += 1
        loss.backward()

    def end_pass(self):
        """One rank exchanges nothing."""

    reduce = end_pass
