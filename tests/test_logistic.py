"""What the solver stands on; its solutions are compared with scikit-learn's in test_heads."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from headstart.errors import InputError
from headstart.training.logistic import fold_standardisation, standardise


def test_standardise_is_scikit_learns():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(700, 5)) * [0.1, 1, 3, 1, 9] + 5).astype(np.float32)
    features[:, 3] = 0.1
    mean, scale = standardise(features)
    theirs = StandardScaler().fit(features.astype(float))
    assert mean == pytest.approx(theirs.mean_, rel=1e-6)
    assert np.isinf(scale[3])
    kept = [0, 1, 2, 4]
    assert scale[kept] == pytest.approx(theirs.scale_[kept], rel=1e-6)
    features[600, 2] = np.nan
    with pytest.raises(InputError, match="features of row 600 are NaN or infinite"):
        standardise(features)


def test_a_folded_standardisation_gives_the_same_outputs():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4)) * [0.1, 1, 3, 9] + 5
    features[:, 1] = 7.0
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    mean, scale = standardise(features)
    folded, moved = fold_standardisation(weight, bias, mean, scale)
    assert (folded.dtype, moved.dtype) == (np.float32, np.float32)
    expected = (features - mean) / scale @ weight.T + bias
    assert features @ folded.T + moved == pytest.approx(expected, abs=1e-4)
