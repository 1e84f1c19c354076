"""A study: its victims, its worst cases, its pieces, and what follows from its numbers."""

from __future__ import annotations

import contextlib
import csv
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shadow_defense.cli.evidence import evidence as evidence_command
from shadow_defense.data.dataset import measure_normalisation
from shadow_defense.errors import ConfigError
from shadow_defense.experiment.plans.evidence import plan as plan_module
from shadow_defense.experiment.plans.evidence.gathering import write_evidence
from shadow_defense.experiment.plans.evidence.plan import Evidence, TimeUpError, base_of, stopped_after
from shadow_defense.experiment.plans.evidence.reading import Study, load_study, study_sets
from shadow_defense.experiment.plans.evidence.statistics import beside_reading, f1_of, lost_f1, predicted_of
from shadow_defense.experiment.scheduler import carry_out
from shadow_defense.experiment.store import Store
from shadow_defense.experiment.tasks import measuring
from shadow_defense.experiment.tasks.bounding import Bounding
from shadow_defense.experiment.tasks.costing import Cost, StepCost
from shadow_defense.experiment.tasks.planting import Planting
from shadow_defense.experiment.tasks.predicting import Predicted, Predicting
from shadow_defense.experiment.tasks.updating import Updating
from shadow_defense.experiment.trial import Trial
from shadow_defense.experiment.victims import Victims, VictimTrial, victims_of
from shadow_defense.federated.training_folder import round_folder, update_path
from shadow_defense.federated.update import ModelUpdate
from shadow_defense.files import read_tensors
from shadow_defense.metrics.confidence import Estimate
from shadow_defense.models.build import build_model
from shadow_defense.protection.directions import train_classifier
from shadow_defense.report.pages.evidence import evidence_numbers, render_evidence
from shadow_defense.report.records.evidence import EvidenceRecord, Left
from shadow_defense.report.records.reading import load_record
from tests.experiment.comparison_grid import fixed_cost

STUDY: dict[str, Any] = {
    "title": "tiny",
    "seeds": [0],
    "data": {
        "source": "faces",
        "image_size": 16,
        "public_fraction": 0.5,
        "split": {"kind": "sizes", "sizes": [1, 4, 20], "batch_sizes": [1, 4, 8]},
    },
    "training": {"rounds": 2, "learning_rate": 0.05, "evaluate_every": 2},
    "metrics": {"lpips": None},
    "models": {"convnet": {"model": {"name": "convnet", "normalisation": "group", "width": 8}}},
    "defenses": {
        "fedavg": {"defense": "none"},
        "once": {"defense": "protect-once", "options": {"texture": "white"}},
        "noise": {"defense": "dp-sgd", "options": {"noise_multiplier": 3.0}},
    },
    # As the search ends after two iterations: given a contrast it would be a grey that is no worse than a guess.
    "attacks": {
        "ig": {"attack": "inverting-gradients", "options": {"iterations": 2}, "rounds": [1, 2], "contrast": False}
    },
    "victims": {"counts": {1: 2, 2: 1}},
    "audited": 20,
    "remover_steps": 1,
    "workers": 0,
}


def near(mean: float) -> Estimate:
    return Estimate(mean, (mean - 0.01, mean + 0.01), 20)


def study(**changes: Any) -> Study:
    return Study.model_validate({**STUDY, **changes})


def evidence(folder: Path, **changes: Any) -> Evidence:
    return Evidence(folder / "out", study(**changes))


def trial(evidence: Evidence) -> VictimTrial:
    found = evidence.trial("convnet", 0)
    assert isinstance(found, VictimTrial)
    return found


class TestVictims:
    def test_sizes_are_as_asked_without_a_common_image_and_balanced(self, tmp_path: Path) -> None:
        data = trial(evidence(tmp_path)).base.dataset
        clients = victims_of(data, {1: 4, 3: 2}, seed=0)
        held = {sample for client in data.clients for sample in client.train.sample_ids}
        ids = [sample for client in clients for sample in client.train.sample_ids]
        assert [len(client.train) for client in clients] == [1, 1, 1, 1, 3, 3]
        assert len(set(ids)) == len(ids) == 10 and set(ids) <= held
        assert sorted(int(client.train.labels[0]) for client in clients[:4]) == [0, 0, 1, 1]

    def test_more_images_than_there_are_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="victims ask for 30 images and the clients hold 25"):
            victims_of(trial(evidence(tmp_path)).base.dataset, {30: 1}, seed=0)

    def test_another_process_sees_the_same_victims(self, tmp_path: Path) -> None:
        import pickle

        own = trial(evidence(tmp_path))
        other = pickle.loads(pickle.dumps(own))
        assert other.images.sha256 == own.images.sha256 != own.base.images.sha256


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, EvidenceRecord]:
    plan = evidence(tmp_path_factory.mktemp("evidence"), remarks=["Nothing was cut."])
    told: list[dict[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "in_own_process", fixed_cost)
        assert plan.run_for(None, lambda rest: told.append(rest.tasks))
    assert not plan.failures
    # Two trainings' updates; what is drawn once is trained and bounded, and not attacked.
    assert told[0]["training"] == 3 and told[0]["updates"] == 2 and told[0]["bound"] == 1 and told[0]["planted"] == 2
    return plan, write_evidence(plan, "tiny", "shadow-defense evidence tiny.yaml")


class TestWholeStudy:
    def test_updates_are_those_of_the_stored_global_models(self, finished: tuple[Evidence, EvidenceRecord]) -> None:
        """One victim of one image without defense: a plain SGD step from the model that the training kept."""
        plan, _ = finished
        own = trial(plan)
        updating = own.trainings["fedavg"]
        assert isinstance(updating, Updating)
        victim = own.dataset.clients[0]
        place, source = plan.store.place(updating), plan.store.place(updating.training)
        for round in (0, 1):
            state, _ = read_tensors(round_folder(source, round) / "global.safetensors", "")
            model = own.base.new_model("fedavg")
            model.load_state_dict(state)
            images = own.dataset.normalisation.apply(victim.train.unit_images())
            torch.nn.functional.cross_entropy(model(images), victim.train.labels).backward()
            update = ModelUpdate.load(update_path(place, round, victim.name), "")
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                torch.testing.assert_close(update.tensors[name], -0.05 * parameter.grad, atol=1e-6, rtol=1e-3)

    def test_settings_are_of_all_arms_and_bounds_of_what_is_drawn_once(
        self, finished: tuple[Evidence, EvidenceRecord]
    ) -> None:
        _, record = finished
        assert [client.train for client in record.data.clients.values()] == [1, 4, 20]
        settings = {setting.arm: setting for setting in record.settings}
        assert list(settings) == ["fedavg", "once", "noise", "public images alone", "reading network alone"]
        assert all(setting.worth is not None for setting in settings.values())
        left = settings["noise"].left
        # Two iterations of an attack rebuild less than the mean image.
        assert left is not None and left.by == "malicious server, 2 rounds" and not left.bounded
        assert left.found.count == 20 and left.gallery == 25
        tried = settings["noise"].tried
        assert tried is not None and tried.by.startswith("ig, round") and not tried.bounded
        # Of clients of one image and of two those that leak more: two images of each.
        sizes = {each.size: each.left for each in record.sizes if each.arm == "noise"}
        size = max(sizes, key=lambda each: sizes[each].above.mean)
        assert tried.by == f"{sizes[size].by}, clients of {size}" and tried.above == sizes[size].above
        assert tried.found.count == 2 and tried.gallery == 25
        # One step of training breaks no planted break: nothing follows from it.
        assert settings["once"].withheld and settings["once"].left is None
        assert settings["fedavg"].f1_lost is None and settings["noise"].f1_lost is not None
        assert {difference.by for difference in record.differences} == {"ig", "test images"}

    def test_what_attacks_left_is_told_by_the_size_of_the_client(
        self, finished: tuple[Evidence, EvidenceRecord]
    ) -> None:
        """Two clients of one image and one of two; of another update's size nothing is in it."""
        plan, record = finished
        assert [(each.arm, each.size) for each in record.sizes] == [
            (arm, size) for arm in ("fedavg", "noise") for size in (1, 2)
        ]
        alone, both = (each.left for each in record.sizes[:2])
        assert alone.found.count == both.found.count == alone.above.count == both.above.count == 2
        victim = trial(plan).dataset.clients[2]
        assert len(victim.train) == 2
        similar = [
            [row.metrics["ssim_whole"] for row in score.matched().values()]
            for score in plan.scores()["convnet"]
            if (score.arm, score.client) == ("fedavg", victim.name)
        ]
        assert both.ssim.mean in [pytest.approx(sum(of_round) / 2) for of_round in similar]
        assert "By the size of the client" in render_evidence(record)
        assert "clients of 2" in evidence_numbers(record).csv()

    def test_the_reading_network_is_one_that_saw_the_public_images_moved(
        self, finished: tuple[Evidence, EvidenceRecord]
    ) -> None:
        """Trained again here, and scored by its definition: the share of pairs in the right order."""
        plan, record = finished
        data = base_of(trial(plan)).dataset
        normalisation, images = measure_normalisation(data.public), data.public.unit_images()
        network = train_classifier(images, data.public.labels, normalisation, seed=0, moved=True)
        with torch.no_grad():
            scores = network(normalisation.apply(data.test.unit_images())).softmax(dim=1)[:, 1].double()
        ill, well = scores[data.test.labels == 1], scores[data.test.labels == 0]
        before = (ill[:, None] > well).double() + 0.5 * (ill[:, None] == well).double()
        settings = {setting.arm: setting for setting in record.settings}
        first, own = settings["fedavg"].worth, settings["reading network alone"]
        assert own.worth is not None and own.worth.auroc is not None and first is not None and first.auroc is not None
        assert own.worth.auroc.mean == pytest.approx(before.mean().item(), abs=1e-6)
        assert own.auroc_lost is not None
        assert own.auroc_lost.mean == pytest.approx(first.auroc.mean - own.worth.auroc.mean)

    def test_nothing_is_computed_twice_and_the_files_are_read_again(
        self, finished: tuple[Evidence, EvidenceRecord]
    ) -> None:
        plan, record = finished
        again = Evidence(plan.folder, plan.grid)
        assert again.remaining() == [] and again.forecast().tasks == {}
        assert load_record(EvidenceRecord, plan.folder / "evidence-tiny.json", "") == record
        page = (plan.folder / "evidence-tiny.html").read_text()
        assert "Every arm against the bars" in page and record.verdict[0] in page
        assert record.verdict[-1] == "Nothing was cut." and "Nothing was cut." in page
        assert (plan.folder / "evidence-tiny-convnet.svg").read_text().startswith("<svg")
        assert "| noise |" in (plan.folder / "evidence-tiny.md").read_text()
        assert (plan.folder / "evidence-tiny.csv").read_text().startswith("model,arm,measure,by,mean,low,high,images")

    def test_every_number_has_its_results(self, finished: tuple[Evidence, EvidenceRecord]) -> None:
        plan, record = finished
        rows = list(csv.DictReader((plan.folder / "evidence-tiny-results.csv").open()))
        assert any("evidence-tiny-results.csv" in note for note in record.notes)
        assert all((plan.folder / "store" / row["task"] / "task.json").is_file() for row in rows)
        for setting in record.settings:
            tested = [row for row in rows if (row["arm"], row["by"]) == (setting.arm, "test images")]
            assert len(tested) == 1
        # What is left of an attacked arm is of three victims' updates in one round, each with one believed attack.
        own = [row for row in rows if row["arm"] == "noise" and row["by"] == "ig"]
        assert len(own) == 6 and all(row["believed"] == "yes" and float(row["misfit"]) < 2 for row in own)
        assert {row["by"] for row in rows if row["arm"] == "once"} == {"test images", "worst case"}
        assert {row["by"] for row in rows if row["arm"] == "noise"} == {"test images", "malicious server", "ig"}

    def test_the_command_says_how_long_it_takes_and_writes_what_is_there(
        self,
        finished: tuple[Evidence, EvidenceRecord],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        plan, record = finished
        monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan.grid.model_dump(mode="json")))
        evidence_command(["tiny.yaml"], forecast=True, seeds="0", out=tmp_path / "new")
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith("tiny: about ") and "3 trainings (" in said and "1 planted break (" in said
        # What is there is not computed again: beside the finished study another takes its results over.
        shutil.copytree(plan.folder, tmp_path / "out" / "evidence-tiny")
        evidence_command(["tiny.yaml"], out=tmp_path / "out")
        said = " ".join(capsys.readouterr().out.split())
        assert "tiny: everything is there." in said and record.verdict[0] in said and "evidence-tiny.html" in said


class TestWorstCase:
    def test_images_under_hardly_any_noise_are_given_back_and_found(self, tmp_path: Path) -> None:
        weak = {"defense": "protect-once", "options": {"texture": "white", "strength": 0.02}}
        plan = evidence(tmp_path, defenses={"fedavg": {"defense": "none"}, "once": weak})
        bounding = plan.bounds["convnet", "once"]
        carry_out([bounding], plan.store, plan.workers)
        bound = bounding.load(plan.store)
        assert min(bound.closest["psnr"]) > 30 and sum(bound.found) == len(bound.found) == 20
        assert bound.gallery == 25 and len(bound.mean_image["psnr"]) == 20

    def test_a_noise_without_a_formula_is_attacked_with_a_copy_of_it(self, tmp_path: Path) -> None:
        arms = {"fedavg": {"defense": "none"}, "shadow": {"defense": "shadow", "options": {"latent_iterations": 2}}}
        generator = {"z_dim": 8, "width": 8, "steps": 2, "save_every": 2, "batch_size": 8}
        plan = evidence(tmp_path, defenses=arms, generator=generator)
        bounding = plan.bounds["convnet", "shadow"]
        carry_out([bounding], plan.store, plan.workers)
        bound = bounding.load(plan.store)
        assert set(bound.removers) == {"as given", "learned"} and set(bound.planted) == {"sparse noise"}

    def test_gradient_defenses_have_none(self, tmp_path: Path) -> None:
        config = trial(evidence(tmp_path)).config
        assert [arm for arm, settings in config.arms.items() if settings.on_images_alone] == ["fedavg", "once"][1:]


class TestDecided:
    def test_an_arm_that_its_worst_case_has_decided_about_is_not_attacked(
        self, finished: tuple[Evidence, EvidenceRecord], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, _ = finished
        whole = {task.name for task in plan.tasks()}
        kinds = Counter(task.kind for task in plan.tasks())
        leaky = Left(by="worst case of round 1", above=near(9.0), ssim=near(1.0), found=near(0.9), gallery=25)
        monkeypatch.setattr(Evidence, "worst_case", lambda self, model, arm: leaky if arm == "noise" else None)
        spared = plan.tasks()
        assert {task.name for task in spared} < whole and plan.decided("convnet") == {"noise"}
        assert Counter(task.kind for task in spared) == {**kinds, "score": kinds["score"] - 6}
        assert Evidence(plan.folder, study(attack_all=True)).decided("convnet") == frozenset()

    @pytest.mark.parametrize(("above", "found", "decided"), [(9.0, 0.0, True), (1.0, 0.5, True), (1.0, 0.0, False)])
    def test_what_clearly_misses_a_bar_is_decided(self, above: float, found: float, decided: bool) -> None:
        assert Left(by="", above=near(above), ssim=near(0.5), found=near(found), gallery=9).too_much is decided

    def test_dear_arms_and_models_are_computed_with_fewer_seeds(self, tmp_path: Path) -> None:
        arms = {**STUDY["defenses"], "noise": {"defense": "noise", "seeds": 1}}
        models = {name: {"model": {"name": "convnet", "width": width}} for name, width in (("a", 8), ("b", 16))}
        plan = evidence(tmp_path, seeds=[0, 1], defenses=arms, models={**models, "b": {**models["b"], "seeds": 1}})
        tested = [task for task in plan.tasks() if isinstance(task, Predicting)]
        # Three arms and the public images alone of a's first seed, without noise of its second, b's first; the reading
        # network is no training's.
        assert len(tested) == 4 + 3 + 4
        assert predicted_of(plan, "a", "noise") == {}


class TestPieces:
    def test_a_piece_ends_when_its_time_is_up_and_goes_on(self, tmp_path: Path) -> None:
        begun = time.monotonic()
        with pytest.raises(TimeUpError), stopped_after(0.05):
            time.sleep(5)
        assert time.monotonic() - begun < 2
        with stopped_after(0.05):
            pass
        time.sleep(0.1)

    def test_time_that_is_up_is_said_again_where_it_was_swallowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan_module, "RING_AGAIN", 0.05)
        with pytest.raises(TimeUpError), stopped_after(0.05):
            with contextlib.suppress(TimeUpError):
                time.sleep(5)
            time.sleep(5)

    def test_a_stopped_run_says_so(self, tmp_path: Path) -> None:
        assert not evidence(tmp_path).run_for(0.01, lambda rest: None)


def calling(called: list[int]) -> Predicted:
    even = tuple((0.5, 0.5) for _ in called)
    return Predicted((0, 0, 1, 1), tuple(called), even, 0.5, even, (0, 0, 1, 1))


class TestUtility:
    def test_macro_f1_and_what_is_lost_of_it(self) -> None:
        """By hand: one of four wrong is F1 of 2/3 and 4/5; all right is 1."""
        assert f1_of(calling([0, 0, 1, 1])) == 1.0
        assert f1_of(calling([0, 1, 1, 1])) == pytest.approx((2 / 3 + 4 / 5) / 2)
        found = lost_f1({0: calling([0, 0, 1, 1])}, {0: calling([0, 1, 1, 1]), 1: calling([1, 1, 0, 0])})
        assert found is not None and found[0].mean == pytest.approx(1 - 11 / 15) and found[0].count == 4
        # One training lost nothing and one all: what the next would lose lies between, as sure as images may be.
        assert found[0].interval is not None and found[0].interval[1] - found[0].interval[0] > 0.5
        assert lost_f1({}, {0: calling([0, 0, 1, 1])}) is None

    def test_what_an_arm_adds_to_the_reading_network(self) -> None:
        """By hand: that network has three of four pairs in order; surer answers that have all four mend the fourth."""
        reading, same = saying([0.1, 0.6, 0.4, 0.9]), saying([0.1, 0.6, 0.4, 0.9])
        right, wrong = saying([0.1, 0.3, 0.7, 0.9]), saying([0.9, 0.8, 0.2, 0.1])
        undefended = dict.fromkeys(range(4), reading)
        found = beside_reading(dict.fromkeys(range(3), reading), {0: same, 1: right, 2: wrong, 3: right}, undefended)
        assert found is not None and found.auroc_added is not None and found.f1_lost is not None
        assert found.auroc_added.count == 3
        assert found.auroc_added.mean == pytest.approx((0 + 0.25 - 0.5) / 3)
        # At the best thresholds: three of four right alone and beside itself, four beside the right one, two beside the
        # wrong one, which calls the second image 1 and the third 0.
        assert found.worth.f1_of_seeds == pytest.approx([(2 / 3 + 4 / 5) / 2, 1.0, f1_of(calling([0, 1, 0, 1]))])
        assert beside_reading({}, {0: right}, undefended) is None


def saying(probabilities: list[float]) -> Predicted:
    """Of four images, the last two of class 1."""
    both = tuple((1 - each, each) for each in probabilities)
    return Predicted((0, 0, 1, 1), (0, 0, 1, 1), both, 0.5, both, (0, 0, 1, 1))


class TestReading:
    def test_every_set_is_a_study_and_so_is_the_whole_grid(self) -> None:
        for name in study_sets():
            title, plain = load_study(name)
            _, full = load_study(name, full=True)
            assert title == name and len(full.points()) > len(plain.points())
            # What is cut for one set's size the whole grid has.
            assert set(plain.models) <= set(full.models) == {"convnet", "resnet18", "resnet18-group", "preactresnet18"}

    @pytest.mark.parametrize("name", [*study_sets(), None])
    def test_every_model_of_a_study_trains_on_a_client_of_one_image(self, name: str | None, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        _, found = load_study(name, None if name else tmp_path / "images")
        side = found.data.image_size or 32
        for model in found.models:
            config = found.run_config(model, 0)
            network = build_model(config.model, channels=1, classes=2, image_size=(side, side), seed=0).train()
            assert network(torch.zeros(1, 1, side, side)).shape == (1, 2)

    def test_class_folders_of_ones_own_are_taken_as_they_are(self, tmp_path: Path) -> None:
        from PIL import Image

        for name in ("COVID", "normal"):
            (tmp_path / "hospital" / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (70, 80)).save(tmp_path / "hospital" / name / f"{number}.png")
        title, own = load_study(None, tmp_path / "hospital")
        assert title == "hospital" and own.data.source == "image_folder" and own.data.path == tmp_path / "hospital"
        assert own.data.image_size == 64 and own.title == "Evidence on hospital"

    def test_a_file_with_attacks_or_defenses_of_its_own_frees_the_models_of_the_others(self, tmp_path: Path) -> None:
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({"attacks": {"ig": {"attack": "inverting-gradients"}}}))
        _, found = load_study(str(file))
        assert {name: list(found.run_config(name, 0).attacks) for name in found.models} == {
            "convnet": ["ig"],
            "resnet18": ["ig"],
        }
        assert len(found.arms("resnet18")) < len(found.arms("convnet"))
        file.write_text(yaml.safe_dump({"defenses": STUDY["defenses"]}, sort_keys=False))
        assert list(load_study(str(file))[1].arms("resnet18")) == list(STUDY["defenses"])

    def test_a_folder_of_sets_holds_the_set(self, tmp_path: Path) -> None:
        (tmp_path / "breastmnist.npz").write_bytes(b"")
        _, found = load_study("breastmnist", tmp_path)
        assert found.data.source == "breastmnist" and found.data.path == tmp_path / "breastmnist.npz"

    @pytest.mark.parametrize(("name", "error"), [(None, "name a set"), ("pneumonia", "pneumoniamnist")])
    def test_what_is_mistyped_is_said(self, name: str | None, error: str) -> None:
        with pytest.raises(ConfigError, match=error):
            load_study(name)


def test_a_trial_of_a_study_keeps_the_key_of_its_training(tmp_path: Path) -> None:
    """The same training in a study and in a comparison is one result."""
    own = trial(evidence(tmp_path))
    assert own.whole_trainings["noise"].key == Trial(own.config, Store(tmp_path)).trainings["noise"].key


def test_costs_are_of_the_federations_batches(tmp_path: Path) -> None:
    """Victims have one image each here; clients train in batches of up to eight."""
    plan = evidence(tmp_path, victims={"counts": {1: 2}})
    batches = {
        client.batch_size for costing in plan.costs.costings().values() for client in costing.scene.dataset.clients
    }
    assert batches == {1, 4, 8}
    cost = Cost((StepCost(8, 0.4, 2.0, 1.5),), 0.0, 1.0, 1.0, 0.0)
    plan.costs.cost_of = lambda model, arm: cost  # type: ignore[assignment, method-assign]
    training = trial(plan).whole_trainings["noise"]
    assert plan.costs.seconds(training) == pytest.approx(2 * 5 * 1.5)


def test_attacks_of_every_seed_are_forecast_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations of half a second and a start of one: measured with one seed, and told of both."""
    monkeypatch.setattr(measuring, "in_own_process", fixed_cost)
    rest = evidence(tmp_path, seeds=[0, 1]).forecast()
    assert rest.tasks["attack"] == 2 * (2 * 3 + 3) * 2
    assert rest.seconds["attack"] == pytest.approx(2.0 * rest.tasks["attack"])


def test_what_is_drawn_once_is_audited_once_for_all_models(tmp_path: Path) -> None:
    arms = {"fedavg": {"defense": "none"}, "once": STUDY["defenses"]["once"], "mixing": {"defense": "ats"}}
    models = {name: {"model": {"name": "convnet", "width": width}} for name, width in (("narrow", 8), ("wide", 16))}
    plan = evidence(tmp_path, defenses=arms, models=models)
    names = {cell: bound.name for cell, bound in plan.bounds.items()}
    assert len({bound.breaking.name for bound in plan.bounds.values() if isinstance(bound, Bounding)}) == 1
    assert names["narrow", "once"] == names["wide", "once"] and names["narrow", "mixing"] != names["wide", "mixing"]


def test_worst_cases_come_first_then_trainings_then_attacks(tmp_path: Path) -> None:
    models = {name: {"model": {"name": "convnet", "width": width}} for name, width in (("narrow", 8), ("wide", 16))}
    kinds = [task.kind for task in evidence(tmp_path, models=models, seeds=[0, 1]).tasks()]
    half = len(kinds) // 2
    tested = (["predicted"] * 4 + ["reading-network"]) * 2
    assert kinds[:half] == kinds[half:] == ["planted", "bound", "planted", *tested] + ["score"] * (half - 13)


def test_bounds_are_of_the_protection(tmp_path: Path) -> None:
    first, second = evidence(tmp_path), evidence(tmp_path, audited=21)
    keys = {plan.bounds["convnet", "once"].key for plan in (first, second)}
    assert len(keys) == 2
    assert {arm: type(bound) for (_, arm), bound in first.bounds.items()} == {
        "fedavg": Planting,
        "once": Bounding,
        "noise": Planting,
    }


def test_victims_are_positive() -> None:
    with pytest.raises(ValueError, match="greater"):
        Victims(counts={0: 1})
