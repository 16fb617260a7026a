"""The plans of the benchmark of counterfactuals: a long call must not stop at a wrong setting."""

import pytest
from counterfactual_cases import settings_of, training_of
from counterfactual_jobs import jobs
from counterfactual_plans import ARMS, DEFAULT, FULL, ORACLE, QUICK

PLANS = {"default": DEFAULT, "full": FULL, "quick": QUICK}


@pytest.mark.parametrize("name", PLANS)
def test_every_classifier_can_be_trained_and_has_an_oracle_of_another_kind(name):
    plan = PLANS[name]
    for case in plan.cases:
        judge = training_of(case, ORACLE, plan=plan)
        for seed in plan.seeds:
            settings = training_of(case, seed, plan=plan)
            assert settings.side == judge.side == plan.cases[case].scenes.side
            assert settings.seed != judge.seed and settings.architecture != judge.architecture
            assert settings.centroids and not judge.centroids
            for key, value in plan.cases[case].training.items():
                assert getattr(settings, key) == value
                assert key == "architecture" or getattr(judge, key) == value


@pytest.mark.parametrize("name", ARMS)
def test_a_quick_look_takes_few_steps_and_settings_that_are_possible(name):
    arm = QUICK.arms[name]
    for chosen in arm.grid:
        assert settings_of(arm, chosen, plan=QUICK).steps <= 40


@pytest.mark.parametrize("name", ARMS)
def test_every_setting_that_tuning_tries_is_possible(name):
    arm = ARMS[name]
    assert len(arm.grid) == 6 and len({tuple(chosen.items()) for chosen in arm.grid}) == 6
    for chosen in arm.grid:
        settings = settings_of(arm, chosen)
        assert all(getattr(settings, key) == value for key, value in chosen.items())


@pytest.mark.parametrize("name", PLANS)
def test_what_a_job_needs_is_a_job_too(name):
    plan = PLANS[name]
    for case in plan.cases:
        every = jobs(plan, case)
        names = {job.name for job in every}
        assert len(names) == len(every)
        needed = {need for job in every for need in job.needs}
        # Images come with the runs; a plan may take what another has tuned.
        tuned = () if plan.tuning is None else {job.name for job in jobs(DEFAULT, case)}
        assert {need.removeprefix("images-") for need in needed} <= names.union(tuned)
