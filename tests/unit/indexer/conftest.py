"""What the tests of the loops share."""

import pytest

from indexer.catalog.base_vectors import BaseProduct
from tests.support.indexer_fakes import Deployment


@pytest.fixture
def shop() -> Deployment:
    """A deployment of 600 products and one deletion that serves release 0."""
    deployment = Deployment()
    deployment.fill(600)
    deployment.vectors.apply(BaseProduct("P-0", 2, deployment.encoder.base_version))
    deployment.new_process().settle()
    return deployment
