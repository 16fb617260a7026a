"""Uncertainties that were stopped, and go on where they were."""

import numpy as np
import pytest
from small_runs import network_run

import dipct
from dipct.errors import ConfigurationError, Interrupted
from dipct.pipeline.stages import remove_stages


@pytest.fixture(scope="module")
def run():
    return network_run()


def test_finished_stages_are_not_done_again(run, tmp_path, monkeypatch, caplog):
    from dipct.pipeline import posterior_of_model

    settings = {"storage": "memory", "tv_probes": 4, "draws": 100}
    whole = dipct.quantify(run, **settings).uncertainty
    stages = tmp_path / "uq.h5.stages"

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(posterior_of_model, "tune", interrupt)
        with pytest.raises(Interrupted, match="what is finished is kept"):
            dipct.quantify(run, checkpoint=stages, **settings)
    assert sorted(path.name.partition("-")[0] for path in stages.iterdir()) == ["edges", "gram"]
    before = {path: path.stat().st_mtime_ns for path in stages.iterdir()}
    resumed = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    # What was spent before counts.
    assert resumed.network_passes > 5 * 17
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert resumed.hyperparameters == pytest.approx(whole.hyperparameters)
    np.testing.assert_allclose(resumed.std, whole.std, rtol=0.01, atol=1e-6)
    # What other settings do not change is used with them, and nothing else.
    assert "made anew" not in caplog.text
    other = dipct.quantify(run, checkpoint=stages, resume=True, **settings | {"tv_probes": 6})
    assert "What was kept of edges belongs to other options; it is made anew." in caplog.text
    assert "of gram belongs" not in caplog.text
    assert len(list(stages.glob("gram-*"))) == 1
    assert len(list(stages.glob("edges-*"))) == 2
    assert other.uncertainty.hyperparameters != resumed.hyperparameters
    next(stages.glob("gram-*")).write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="damaged"):
        dipct.quantify(run, checkpoint=stages, resume=True, **settings)
    with pytest.raises(ConfigurationError, match="nothing to resume"):
        dipct.quantify(run, checkpoint=tmp_path / "none", resume=True)


@pytest.mark.parametrize("tv_prior", [False, True])
def test_stochastic_tuning_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch, tv_prior):
    from dipct.posterior import stochastic_evidence

    settings = {"evidence": "stochastic", "tv_prior": tv_prior, "iterations": 4, "draws": 20}
    settings |= {"tv_probes": 4} if tv_prior else {}
    whole = dipct.quantify(run, **settings).uncertainty
    stages, calls = tmp_path / "uq.h5.stages", []
    gradient = stochastic_evidence.StochasticEvidence.gradient

    def interrupted(self, *arguments, **options):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gradient(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stochastic_evidence.StochasticEvidence, "gradient", interrupted)
        with pytest.raises(Interrupted, match="what is finished is kept"):
            dipct.quantify(run, checkpoint=stages, **settings)
        calls.append(None)
        resumed = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    # Two steps before, one that was not finished, two after.
    assert len(calls) == 3 + 1 + 2
    assert resumed.hyperparameters == whole.hyperparameters
    assert not list(stages.glob("tuning-part-*"))


def test_what_other_means_found_is_not_resumed_with(run, tmp_path, monkeypatch):
    from dipct.pipeline import posterior_memory

    settings = {"tv_prior": False, "iterations": 5, "draws": 20}
    stages = tmp_path / "uq.h5.stages"
    with monkeypatch.context() as patch:
        # What auto finds depends on the machine.
        patch.setattr(posterior_memory, "free_memory", lambda device: 10_000)
        estimated = dipct.quantify(run, checkpoint=stages, **settings).uncertainty
    assert estimated.settings["evidence"] == "stochastic"
    exact = dipct.quantify(run, checkpoint=stages, resume=True, **settings).uncertainty
    assert exact.settings["evidence"] == "exact"
    assert exact.log_evidence_error == 0
    assert exact.hyperparameters == dipct.quantify(run, **settings).uncertainty.hyperparameters
    # Scales of the g-prior by probes are others than exact ones.
    g = {"prior": "g", "iterations": 50, "draws": 20}
    dipct.quantify(run, storage="recompute", checkpoint=stages, resume=True, **g)
    kept = dipct.quantify(run, storage="memory", checkpoint=stages, resume=True, **g).uncertainty
    fresh = dipct.quantify(run, storage="memory", **g).uncertainty
    assert kept.hyperparameters == fresh.hyperparameters


def test_other_files_in_the_folder_of_stages_stay(run, tmp_path):
    mine = tmp_path / "stages" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    dipct.quantify(run, checkpoint=mine.parent, iterations=2)
    remove_stages(mine.parent)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]
