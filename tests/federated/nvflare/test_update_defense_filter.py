"""The filter: the same update as with the defense itself, nothing else passes, and nothing leaves when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("nvflare", reason="needs the extra nvflare")

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FilterKey, FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.fuel.utils.class_utils import instantiate_class
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import ScriptRunner
from tests.federated.nvflare.results import Model, as_numpy, context, result

from shadow_defense.data.dataset import ImageSet, Normalisation
from shadow_defense.defenses.base import RoundContext
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.defenses.gaussian_mechanism import gaussian_epsilon
from shadow_defense.defenses.kind import Resources
from shadow_defense.defenses.local_dp import LocalDPSettings
from shadow_defense.errors import DefenseError, RunError, UpdateError
from shadow_defense.federated.client_state import ClientStateFolder
from shadow_defense.federated.nvflare.site_state import BUDGET, STATE_FOLDER, epsilon_budget
from shadow_defense.federated.nvflare.update_defense_filter import UpdateDefenseFilter
from shadow_defense.federated.site_secret import secret_seed

ROUNDS = 3
PLACED = {"place": "update"}


@pytest.fixture(autouse=True)
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path / "states"))
    return tmp_path / "states"


def made(defense: str, **changes: Any) -> UpdateDefenseFilter:
    return UpdateDefenseFilter(defense, Model(), **{"run": "training", "rounds": ROUNDS, **changes})


def difference(seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else 0.1 * torch.randn(tensor.shape, generator=draws)
        for name, tensor in Model().state_dict().items()
    }


def sent(protecting: UpdateDefenseFilter, given: Shareable, site: str = "site-1") -> dict[str, Any]:
    return dict(from_shareable(protecting.process(given, context(site))).data)


@pytest.mark.parametrize("exchange", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("defense", "options"),
    [
        ("gradient-clipping", PLACED),
        ("gradient-sparsification", PLACED),
        ("local-dp", {}),
        ("noise", PLACED),
        ("clip+dp", {"clip": PLACED}),
    ],
)
def test_as_the_defense_itself(defense: str, options: dict[str, Any], exchange: str, states: Path) -> None:
    model, given = Model(), difference()
    nothing = ImageSet(torch.empty(0, 1, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ())
    seed = secret_seed(states, "training", "site-1-filter")
    alone = DefenseSettings(defense=defense, options=options).build(
        Resources(None, Normalisation((0.0,), (1.0,)), nothing, 0, "site-1-filter", seed)
    )
    where = RoundContext(model, model.state_dict(), F.cross_entropy, 0, ROUNDS, 1.0)
    alone.begin_round(where)
    expected = alone.protect_update(given, where)
    numpy = exchange == "numpy"
    found = sent(made(defense, options=options), result(as_numpy(given) if numpy else given))
    assert found.keys() == given.keys()
    parameters = dict(model.named_parameters())
    for name, value in found.items():
        assert isinstance(value, np.ndarray if numpy else Tensor)
        tensor = torch.from_numpy(value) if numpy else value
        assert tensor.dtype == model.state_dict()[name].dtype
        assert torch.equal(tensor, expected[name])
        assert (name in parameters) or torch.equal(tensor, given[name]), "buffers leave as they are"
    assert any(not torch.equal(torch.as_tensor(found[name]), given[name]) for name in parameters)


def test_a_sites_budget_ends_what_leaves(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget between what one round and two rounds of local DP spend, by the exact Gaussian mechanism."""
    settings = LocalDPSettings()
    one, two = (gaussian_epsilon(2 * n**0.5 / settings.sigma(), settings.delta) for n in (1, 2))
    monkeypatch.setenv(BUDGET, str((one + two) / 2))
    protecting = made("local-dp")
    left = sent(protecting, result(difference()))
    # Asked again it costs nothing.
    assert sent(protecting, result(difference())).keys() == left.keys()
    with pytest.raises(DefenseError, match="update withheld: DefenseError"):
        sent(protecting, result(difference(), round=1))
    with pytest.raises(DefenseError, match="update withheld: DefenseError"):
        sent(made("noise", options=PLACED, run="another"), result(difference()))
    for given in ("0", "none", "inf", "nan"):
        monkeypatch.setenv(BUDGET, given)
        with pytest.raises(RunError, match="expected a number above 0"):
            epsilon_budget()


def test_sparsified_to_the_share_that_was_asked_for() -> None:
    options = {**PLACED, "percent": 75.0}
    given = as_numpy(difference())
    found = sent(made("gradient-sparsification", options=options), result(given))
    for name, _ in Model().named_parameters():
        kept = np.abs(given[name]) >= np.percentile(np.abs(given[name]).astype(np.float64), 75)
        assert np.array_equal(found[name], given[name] * kept), name


def spoiled_headers() -> Shareable:
    """A result in the place of whose headers something else stands."""
    made = result(as_numpy(difference()))
    made["__headers__"] = 5
    return made


@pytest.mark.parametrize(
    "refused",
    [
        spoiled_headers(),
        result(as_numpy(difference()), kind=DataKind.WEIGHTS),
        result({"accuracy": 0.5}, kind=DataKind.METRICS),
        result({"inner": DXO(DataKind.WEIGHT_DIFF, data=as_numpy(difference()))}, kind=DataKind.COLLECTION),
        Shareable({"weights": as_numpy(difference())}),
    ],
    ids=["no headers", "whole weights", "metrics", "collection", "no DXO"],
)
def test_nothing_but_a_difference_leaves(refused: Shareable) -> None:
    with pytest.raises(UpdateError, match=r"the result (holds|is no DXO|has no headers)") as caught:
        made("local-dp").process(refused, context())
    assert "\n" not in str(caught.value)


def test_what_a_script_puts_beside_the_difference_stays() -> None:
    given = result(as_numpy(difference()))
    given["weights as they are"] = as_numpy(difference())
    left = made("local-dp").process(given, context())
    assert left.keys() == result(as_numpy(difference())).keys()
    assert left.get_header(AppConstants.CURRENT_ROUND) == given.get_header(AppConstants.CURRENT_ROUND)


def test_a_failed_training_leaves_nothing_but_its_code() -> None:
    given = result(as_numpy(difference()))
    given.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    assert made("local-dp").process(given, context()) == make_reply(ReturnCode.EXECUTION_EXCEPTION)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda params: params | {"body.classifier.bias": np.full(2, np.nan, dtype=np.float32)},
        lambda params: params | {"body.classifier.bias": np.zeros(3, dtype=np.float32)},
        lambda params: params | {"patient Miller": np.zeros(3, dtype=np.float32)},
        lambda params: params | {"body.classifier.bias": [0.0, 0.0]},
    ],
    ids=["not finite", "shape", "name", "type"],
)
def test_whatever_goes_wrong_the_cause_stays_at_the_site(spoil: Any, states: Path) -> None:
    with pytest.raises(DefenseError, match=r"^update withheld: UpdateError; see withheld\.txt") as caught:
        made("local-dp").process(result(spoil(as_numpy(difference()))), context())
    assert caught.value.__suppress_context__, "else NVFlare's log of the traceback has the cause"
    folder = ClientStateFolder(states, "training", "site-1-filter")
    assert folder.refusal() is not None
    last = folder.last()
    assert last is None or (last.round == -1 and int(last.defense["releases"]) == 0)
    # The next good update leaves.
    assert sent(made("local-dp"), result(as_numpy(difference())))
    assert folder.refusal() is None


def test_the_budget_is_counted_over_rounds_and_a_round_asked_again_costs_nothing(states: Path) -> None:
    sent(made("local-dp"), result(as_numpy(difference(0)), round=0))
    first = sent(made("local-dp"), result(as_numpy(difference(1)), round=1))
    # A restarted site: nothing is in memory.
    again = sent(made("local-dp"), result(as_numpy(difference(1)), round=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    last = ClientStateFolder(states, "training", "site-1-filter").last()
    assert last is not None and last.round == 1 and int(last.defense["releases"]) == 2
    with pytest.raises(DefenseError, match="update withheld: RunError"):
        made("local-dp").process(result(as_numpy(difference(2)), round=1), context())


@pytest.mark.parametrize("round", [None, -1, ROUNDS])
def test_a_round_that_is_not_planned_is_refused(round: int | None) -> None:
    with pytest.raises(DefenseError, match="update withheld"):
        made("local-dp").process(result(as_numpy(difference()), round=round), context())


def test_without_a_folder_from_the_site_nothing_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATE_FOLDER)
    with pytest.raises(RunError, match=f"environment variable {STATE_FOLDER}=FOLDER"):
        made("local-dp").process(result(as_numpy(difference())), context())


def test_each_site_draws_its_own(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for place in ("a", "b"):
        monkeypatch.setenv(STATE_FOLDER, str(states / place))
        drawn.append(sent(made("noise", options=PLACED), result(as_numpy(difference()))))
    assert not np.array_equal(drawn[0]["body.classifier.weight"], drawn[1]["body.classifier.weight"])


def test_batch_norm_that_stays_is_left_out() -> None:
    found = sent(made("none", share_bn="none"), result(as_numpy(difference())))
    assert all("norm" not in name for name in found) and "body.classifier.weight" in found


@pytest.mark.parametrize(
    ("defense", "options"), [("shadow", {}), ("soteria", {}), ("noise", {"place": "gradients"}), ("dp-sgd", {})]
)
def test_a_defense_that_needs_more_than_the_update_is_refused(defense: str, options: dict[str, Any]) -> None:
    with pytest.raises(DefenseError, match="cannot be a filter, which sees nothing but the update"):
        made(defense, options=options)


def test_nvflare_writes_it_into_a_job_and_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("pass\n")
    job = FedJob("job")
    job.set_app_packages(["shadow_defense", "tests"])
    job.to(ScriptRunner("train.py"), "site-1")
    protecting = made("gradient-sparsification", options={**PLACED, "percent": 75.0}, share_bn="stats")
    job.to(protecting, "site-1", filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.export_job(str(tmp_path / "jobs"))
    config = json.loads(next(tmp_path.rglob("config_fed_client.json")).read_text())
    (chain,) = config["task_result_filters"]
    (described,) = chain["filters"]
    assert chain["tasks"] == ["train"] and described["args"]["model"]["path"].endswith("results.Model")
    described["args"]["model"] = Model()
    rebuilt = instantiate_class(described["path"], described["args"])
    assert rebuilt.settings == protecting.settings


def test_nvflare_asks_it_for_the_task_and_direction_of_the_job() -> None:
    chains = {f"train{FilterKey.DELIMITER}{FilterKey.OUT}": [made("local-dp")]}
    whole = result(as_numpy(difference()), kind=DataKind.WEIGHTS)
    asked = ("task_result_filters", whole, context(), chains)
    with pytest.raises(UpdateError, match=r"nothing leaves$"):
        apply_filters(*asked, "train", FilterKey.OUT)
    assert apply_filters(*asked, "validate", FilterKey.OUT) is whole


@pytest.mark.parametrize("task", ["validate", "submit_model"])
def test_results_of_other_tasks_that_it_is_named_for_stay_at_home(task: str) -> None:
    chains = {f"{task}{FilterKey.DELIMITER}{FilterKey.OUT}": [made("local-dp", metrics=["accuracy"])]}
    weights = result(as_numpy(difference()), kind=DataKind.WEIGHTS)
    for given in (weights, result({"accuracy": 0.5}, kind=DataKind.METRICS)):
        with pytest.raises(UpdateError, match=r"nothing leaves$"):
            apply_filters("task_result_filters", given, context(), chains, task, FilterKey.OUT)


def meta_of(shareable: Shareable) -> dict[str, Any]:
    return dict(from_shareable(shareable).meta)


LEAKS: dict[str, dict[str, Any]] = {
    "SCAFFOLD's difference": {AlgorithmConstants.SCAFFOLD_CTRL_DIFF: as_numpy(difference())},
    "an array": {"features": np.zeros(3)},
    "a tensor": {"features": torch.zeros(3)},
    "a list": {"losses": [0.1, 0.2]},
    "bytes": {"optimizer": b"state"},
    "a word": {"patient": "Miller"},
    "a metric that nobody named": {"loss": 0.5},
    "metrics that nobody named": {FLMetaKey.INITIAL_METRICS: {"loss": 0.5}},
    "metrics that hide an array": {FLMetaKey.INITIAL_METRICS: {"accuracy": np.zeros(3)}},
    "metrics that are an array": {FLMetaKey.INITIAL_METRICS: np.zeros(3)},
    "a metric that is no number": {"accuracy": "0.5"},
    "a metric that is NaN": {"accuracy": float("nan")},
    "steps that are an array": {FLMetaKey.NUM_STEPS_CURRENT_ROUND: np.zeros(3)},
    "steps beyond all": {FLMetaKey.NUM_STEPS_CURRENT_ROUND: 2**70},
    "images in floating point": {"num_samples": 3.25},
    "a round that is none": {FLMetaKey.CURRENT_ROUND: "Miller"},
    "another's processing": {FLMetaKey.PROCESSED_ALGORITHM: "x"},
}


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_leaves_beside_the_difference(leak: str, states: Path) -> None:
    given = result(as_numpy(difference()), **LEAKS[leak])
    with pytest.raises(DefenseError, match=r"^update withheld: UpdateError; see withheld\.txt"):
        made("local-dp", metrics=["accuracy"]).process(given, context())
    folder = ClientStateFolder(states, "training", "site-1-filter")
    assert folder.refusal() is not None and folder.last() is None, "and nothing is spent"


def test_what_is_named_passes_rounded(states: Path) -> None:
    meta = {"num_samples": 7, FLMetaKey.NUM_STEPS_CURRENT_ROUND: 3, "accuracy": 0.123456789}
    given = result(
        as_numpy(difference()), **meta, **{FLMetaKey.INITIAL_METRICS: {"accuracy": 0.98765}, FLMetaKey.SITE_NAME: "x"}
    )
    given.set_header(AppConstants.NUM_ROUNDS, ROUNDS)
    given.set_header("features", as_numpy(difference()))
    left = made("local-dp", metrics=["accuracy"]).process(given, context())
    assert meta_of(left) == {**meta, "accuracy": 0.123, FLMetaKey.INITIAL_METRICS: {"accuracy": 0.988}}
    assert left[ReservedHeaderKey.HEADERS] == {
        ReservedHeaderKey.CONTENT_TYPE: "DXO",
        AppConstants.CURRENT_ROUND: 0,
        AppConstants.NUM_ROUNDS: ROUNDS,
    }


def test_a_failed_trainings_code_is_one_of_nvflares() -> None:
    given = result(as_numpy(difference()))
    given.set_return_code("patient Miller")
    assert made("local-dp").process(given, context()) == make_reply(ReturnCode.EXECUTION_EXCEPTION)


class Scaffold:
    """A site of a SCAFFOLD job: the filter on both sides of a script that sends what NVFlare's helper computes."""

    ETA, STEPS = 0.1, 4

    def __init__(self, defense: str = "local-dp") -> None:
        self.defense = defense
        self.parameters = [name for name, _ in Model().named_parameters()]

    def filter(self) -> UpdateDefenseFilter:
        # Anew, as in a process of its own for every message.
        return made(self.defense, scaffold_learning_rate=self.ETA)

    def task(self, round: int, control: float) -> dict[str, Any]:
        """The meta data of the task as the script gets it."""
        state = Model().state_dict()
        given = {name: np.full(tuple(state[name].shape), control, np.float32) for name in self.parameters}
        task = result(as_numpy(state), round, DataKind.WEIGHTS, **{AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL: given})
        received = context(**{FLContextKey.FILTER_DIRECTION: FilterKey.IN})
        return meta_of(self.filter().process(task, received))

    def answer(self, round: int, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The difference and the control variate's that leave, each as one row."""
        of_raw = {name: (-raw[name] / (self.STEPS * self.ETA)).numpy() for name in self.parameters}
        meta = {AlgorithmConstants.SCAFFOLD_CTRL_DIFF: of_raw, FLMetaKey.NUM_STEPS_CURRENT_ROUND: self.STEPS}
        sending = context(**{FLContextKey.FILTER_DIRECTION: FilterKey.OUT})
        left = from_shareable(self.filter().process(result(as_numpy(raw), round, **meta), sending))
        assert set(left.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF]) == set(self.parameters)
        return self.row(left.data), self.row(left.meta[AlgorithmConstants.SCAFFOLD_CTRL_DIFF])

    def row(self, tensors: Any) -> Tensor:
        return torch.cat([torch.as_tensor(tensors[name]).double().flatten() for name in self.parameters])


def test_scaffolds_difference_is_that_of_the_protected_update() -> None:
    site, raw = Scaffold(), difference()
    site.task(0, 0.0)
    sent, changed = site.answer(0, raw)
    torch.testing.assert_close(changed, -sent / (site.STEPS * site.ETA), rtol=1e-5, atol=1e-6)
    cosines = [float(torch.cosine_similarity(each, site.row(raw), dim=0)) for each in (sent, changed)]
    assert cosines[1] == pytest.approx(-cosines[0], abs=1e-6) and abs(cosines[1]) < 0.5


def test_scaffold_goes_on_from_the_sites_own_variate_and_a_round_asked_again_too(states: Path) -> None:
    site = Scaffold("none")
    assert not site.row(site.task(0, 0.0)["scaffold_c_local"]).any()
    _, first = site.answer(0, difference(0))
    handed = site.row(site.task(1, 0.5)["scaffold_c_local"])
    torch.testing.assert_close(handed, first)
    sent, second = site.answer(1, difference(1))
    torch.testing.assert_close(second, -0.5 - sent / (site.STEPS * site.ETA), rtol=1e-5, atol=1e-6)
    again = site.row(site.task(1, 0.5)["scaffold_c_local"])
    assert torch.equal(again, handed) and torch.equal(site.answer(1, difference(1))[1], second)
    last = ClientStateFolder(states, "training", "site-1-filter").last()
    assert last is not None
    torch.testing.assert_close(site.row(last.control), first + second)


def test_scaffold_without_the_servers_variate_of_this_round_sends_nothing() -> None:
    site = Scaffold()
    with pytest.raises(DefenseError, match="update withheld"):
        site.answer(0, difference())
    site.task(0, 0.0)
    with pytest.raises(DefenseError, match="update withheld"):
        site.answer(1, difference())


def test_tasks_of_other_jobs_pass_the_filter_untouched() -> None:
    task = result(as_numpy(difference()), kind=DataKind.WEIGHTS, anything="at all")
    received = context(**{FLContextKey.FILTER_DIRECTION: FilterKey.IN})
    assert made("local-dp").process(task, received) is task
