"""Stages of long work that are kept, and gone on from."""

import logging

import pytest
import torch

from dipct.errors import ConfigurationError
from dipct.pipeline.stages import Stages, remove_stages

CPU = torch.device("cpu")


def made(stages, name="fit", value=1.0, decided_by=None):
    return float(stages(name, lambda: {"value": torch.tensor(value)}, CPU, decided_by)["value"])


def test_what_was_kept_is_used_for_the_same_problem_alone(tmp_path):
    folder = tmp_path / "stages"
    assert made(Stages(folder, "problem")) == 1
    assert made(Stages(folder, "problem", resume=True), value=2.0) == 1
    with pytest.raises(ConfigurationError, match="belongs to other data or options"):
        Stages(folder, "another", resume=True)
    assert made(Stages(folder, "problem", resume=True), value=2.0) == 1
    # Without resuming it is removed.
    assert made(Stages(folder, "another"), value=3.0) == 3
    with pytest.raises(ConfigurationError, match="belongs to other data or options"):
        Stages(folder, "problem", resume=True)


def test_a_stage_of_other_options_is_made_anew_with_a_warning(tmp_path, caplog):
    folder = tmp_path / "stages"
    first = Stages(folder, "problem")
    assert made(first, "gram") == 1
    assert made(first, "edges", decided_by={"probes": 4}) == 1
    again = Stages(folder, "problem", resume=True)
    with caplog.at_level(logging.WARNING, logger="dipct"):
        assert made(again, "gram", value=2.0) == 1
        # Never made before.
        assert made(again, "draws", value=2.0) == 2
        assert not caplog.text
        assert made(again, "edges", value=2.0, decided_by={"probes": 6}) == 2
    assert "What was kept of edges belongs to other options; it is made anew." in caplog.text


def test_nothing_to_resume_from_is_said(tmp_path):
    folder = tmp_path / "stages"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="nothing to resume from"):
            Stages(folder, "problem", resume=True)
        folder.mkdir(exist_ok=True)
    made(Stages(folder, "problem"))
    remove_stages(folder)
    assert not folder.exists()
