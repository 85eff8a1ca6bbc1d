"""Runs every 120th case of the campaign of bad inputs (bad_inputs.py)."""

from pathlib import Path

import bad_inputs
import torch

ACCEPTED = {"refused", "harmless", "accepted", "told"}


def test_a_sample_of_the_campaign(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bad_inputs.make_templates(tmp_path / "templates")
    bad_inputs.clean_results(tmp_path / "clean")
    cases = bad_inputs.all_cases()[::120]
    verdicts = {}
    for i, case in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        verdicts[case.name] = bad_inputs.judge(case, tmp_path / str(i))
    torch.set_num_threads(before)
    wrong = {name: verdict for name, verdict in verdicts.items() if verdict not in ACCEPTED}
    assert len(cases) > 40 and not wrong, wrong
