"""One short finished run for all verbs, and the command line in this process."""

import shutil

import pytest

from jdiff import cli
from tests import recipe


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "finished"
    cli.main(["train", recipe.__file__, "--out", str(directory)])
    return directory


@pytest.fixture
def finished(_finished, tmp_path):
    """A copy of the run, to be spoiled at will."""
    return shutil.copytree(_finished, tmp_path / "run")


@pytest.fixture
def refused(capsys):
    """refused(words) -> the one line that the command ends with; its exit status is 2."""

    def run(*words) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        assert stop.value.code == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("jdiff: ") and "\n" not in err and "Traceback" not in err
        return err

    return run
