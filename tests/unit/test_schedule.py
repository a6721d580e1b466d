import math

import pytest
import torch
from palimpsest.nodes.diffusion.schedule import MADE_FOR, schedule_mismatch, step_interval

pytestmark = pytest.mark.unit

SIGMAS = torch.tensor([14.6, 9.0, 4.0, 1.5, 0.03, 0.0])
CONDS = [{MADE_FOR: {"sigmas": SIGMAS, "cfg": 7.5}}]


def test_intervals_cover_every_sigma_once():
    intervals = [step_interval(SIGMAS, i, i) for i in range(5)]
    for sigma in (0.0, 0.01, 0.03, 1.0, 1.5, 3.9999, 4.0, 4.0001, 9.0, 14.6, 80.0):
        level = torch.tensor(sigma)
        active = [i for i, s in enumerate(intervals) if not (level > s["timestep_start"] or level < s["timestep_end"])]
        assert len(active) == 1
    assert intervals[0]["timestep_start"] == math.inf and intervals[-1]["timestep_end"] == 0.0


def test_a_sampling_that_entries_were_made_for_is_no_mismatch():
    assert schedule_mismatch(CONDS, SIGMAS * (1 + 1e-6), 7.5) is None
    assert schedule_mismatch([{}], SIGMAS[:3], 1.0) is None


@pytest.mark.parametrize(
    ("sigmas", "cfg", "message"),
    [
        (SIGMAS, 5.0, "optimised for cfg 7.5, not 5"),
        (SIGMAS[1:], 7.5, r"optimised for 5 steps from sigma 14.6, the sampler has 4 from 9"),
        (torch.tensor([14.6, 8.0, 4.0, 1.5, 0.03, 0.0]), 7.5, "another scheduler"),
    ],
)
def test_another_cfg_or_schedule_is_said(sigmas, cfg, message):
    assert message in schedule_mismatch(CONDS, sigmas, cfg)
