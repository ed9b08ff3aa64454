"""The live line where nobody watches: what it says, and that it says it from the first step on."""

import time

from jdiff.train.progress import Progress


def test_the_first_step_after_compiling_has_no_rate_yet(capfd):
    with Progress(100, 25, 32) as progress:
        progress.compiled(26)
        assert progress.show(26, 0.5) == 0
        time.sleep(0.05)
        rate = progress.show(36, 0.25)
        assert 0 < rate <= 10 * 32 / 0.05
        progress.show(100, 0.25)
    out = capfd.readouterr().err
    assert "step 26/100 loss 0.5000 0 images/s" in " ".join(out.split())
    assert "step 100/100" in out and "0 s left" in out


def test_pauses_do_not_count():
    with Progress(100, 0, 10) as progress:
        progress.compiled(1)
        time.sleep(0.02)
        with progress.paused():
            time.sleep(0.3)
        assert progress.show(11, 1.0) > 10 * 10 / 0.3
