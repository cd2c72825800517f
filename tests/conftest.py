"""What every test starts from: fixed seeds, one thread per worker, no data folder from outside."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

# Two workers on two cores: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> Iterator[None]:
    """Start every test from the same random state and the same default dtype, whichever tests ran before it in this worker."""
    dtype = torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own data folder from changing what a test sees."""
    monkeypatch.delenv("NOETHERFLOW_DATA", raising=False)
