"What pytest gives to the tests of training."
import pytest
from small import checkout


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A checkout of its own for each module that trains in this process."
    folder = checkout(tmp_path_factory.mktemp('checkout'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        yield folder
