"""Networks whose features are scored."""


def load(name, weights=None):
    raise NotImplementedError
