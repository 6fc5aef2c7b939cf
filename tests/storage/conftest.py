"""What the tests of restores share: it takes some seconds to make."""

import pytest
from restored_disks import Saved, make_saved


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make_saved(tmp_path_factory.mktemp("saved"))
