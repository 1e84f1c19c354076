"""What a comparison is made of: its grid, where it is read from, and the names of its cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shadow_defense.config import preset_names
from shadow_defense.defenses.build import DefenseSettings
from shadow_defense.errors import ConfigError, DefenseError
from shadow_defense.experiment.engines import engine_named
from shadow_defense.experiment.plans.comparison.grid import ABLATIONS, Grid
from shadow_defense.experiment.plans.comparison.reading import comparison_names, load_grid
from shadow_defense.experiment.scene import Job, Scene
from shadow_defense.experiment.tasks import keys as task_keys
from shadow_defense.experiment.tasks.attacking import Attacking
from shadow_defense.experiment.tasks.keys import ATTACKING
from shadow_defense.experiment.tasks.pretraining import Pretraining
from shadow_defense.experiment.tasks.scoring import Scoring
from shadow_defense.experiment.tasks.training import Training
from shadow_defense.models.build import build_model
from tests.experiment.comparison_grid import TINY, grid, the_scene


class TestGrid:
    def test_a_sweep_gives_one_point_a_value(self) -> None:
        points = grid().points()
        assert list(points) == ["fedavg", "noise-weak", "noise-strong", "shadow-0.19", "shadow-1.0"]
        assert points["noise-strong"].settings.preset == "strong"
        assert points["shadow-0.19"].settings.options == {"latent_iterations": 3, "strength": 0.19}
        assert [points[name].family for name in ("fedavg", "shadow-1.0")] == ["fedavg", "shadow"]
        assert points["shadow-1.0"].label == "1.0"

    def test_batch_norm_policies_can_be_swept(self) -> None:
        swept = {"fedavg": {"defense": "none", "sweep": {"share_bn": ["all", "none"]}}}
        assert [point.settings.share_bn for point in grid(defenses=swept).points().values()] == ["all", "none"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seeds": [1, 1]}, "seeds are 1, 1: give different numbers"),
            ({"defenses": {"x": {"defense": "shadw"}}}, "did you mean 'shadow'"),
            ({"attacks": {"x": {"attack": "dgl"}}}, "unknown attack 'dgl'"),
            ({"defenses": {"x": {"defense": "noise", "preset": "huge"}}}, "valid are: paper, strong, weak"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"scale": []}}}}, "sweep of scale has no values"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"a": [1], "b": [2]}}}}, "sweep one option"),
            ({"defenses": {"x": {"defense": "noise", "sweep": {"scale": [-1.0]}}}}, "noise"),
            ({"models": {"m": {"model": {"name": "convnet"}, "trainin": {}}}}, "training"),
            ({"leave_out": [{"model": "m", "defense": "noise", "reason": "r"}]}, "unknown model in leave_out 'm'"),
            ({"leave_out": [{"model": "convnet", "defense": "fedavg", "reason": "r"}]}, "all others are compared"),
            ({"models": {"m": {"model": {}, "defenses": ["fedavg", "noise"]}}}, "did you mean 'noise-weak'"),
            ({"models": {"m": {"model": {}, "defenses": ["noise-weak"]}}}, "lacks 'fedavg'"),
            ({"ablations": "noise-weak"}, "ablations take parts from a Shadow defense"),
            ({"models": {"m": {"defenses": "fedavg"}}}, "models.m.defenses = 'fedavg': expected a list of names"),
            ({"models": {"m": {"defenses": None}}}, "models.m.defenses = None: expected a list of names"),
            ({"models": {"a/b": {}}}, "the name 'a/b' of a model cannot be a file"),
            ({"models": {"m": {"seed": 3}}}, "models.m.seed cannot differ from model to model"),
            ({"models": {"m": {"threads": 2}}}, "models.m.threads cannot differ from model to model"),
            ({"models": {"m": {"attacks": {"dlg": {}}}}}, "unknown attack of models.m 'dlg'"),
            ({"models": {"m": {"attacks": ["dlg"]}}}, "unknown attack of models.m 'dlg'"),
            ({"models": {"m": {"attacks": []}}}, "models.m.attacks names none: give at least one of"),
            ({"models": {"m": {"seeds": 0}}}, "models.m.seeds = 0: expected how many of the first seeds"),
            ({"defenses": {"f": {"defense": "none", "seeds": 1}}}, "'f' has fewer seeds, and all others"),
            ({"defenses": {**TINY["defenses"], "noise-weak": {}}}, "two defenses of the grid are called 'noise-weak'"),
            (
                {"defenses": {"f": {"defense": "noise", "sweep": {"scale": [0.1, 0.1]}}}},
                "two defenses of the grid are called 'f-0.1'",
            ),
            (
                {"ablations": "shadow-1.0", "defenses": {**TINY["defenses"], "uniform-noise": {}}},
                "a defense is called 'uniform-noise', as one of the ablations is",
            ),
        ],
    )
    def test_what_cannot_be_compared_is_said_in_one_line(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises((ConfigError, DefenseError)) as raised:
            grid(**change)
        assert message in str(raised.value)

    def test_each_ablation_takes_one_part_and_keeps_the_rest(self) -> None:
        arms = grid(ablations="shadow-1.0").arms("convnet")
        assert set(ABLATIONS) < set(arms)
        for name, change in ABLATIONS.items():
            assert arms[name].options == {"latent_iterations": 3, "strength": 1.0, **change}
            # An option that does not exist would fail only hours later.
            arms[name].settings()

    def test_what_is_left_out_is_left_out_of_that_model_only(self) -> None:
        two = {"a": TINY["models"]["convnet"], "b": TINY["models"]["convnet"]}
        made = grid(models=two, leave_out=[{"model": "b", "defense": "noise", "reason": "r"}])
        assert "noise-weak" in made.arms("a") and "noise-weak" not in made.arms("b")

    def test_a_dear_defense_or_model_has_fewer_seeds_and_a_model_its_own_attacks(self) -> None:
        own = {**TINY["models"]["convnet"], "seeds": 2, "attacks": ["inverting-gradients"]}
        arms = {"fedavg": {"defense": "none"}, "noise": {"defense": "noise", "seeds": 1}}
        attacks = {**TINY["attacks"], "dlg": {"attack": "dlg"}}
        two = {"a": TINY["models"]["convnet"], "b": own}
        made = grid(seeds=[4, 5, 6], models=two, defenses=arms, attacks=attacks)
        assert (made.seeds_of("a"), made.seeds_of("b")) == ((4, 5, 6), (4, 5))
        assert list(made.run_config("a", 4).arms) == ["fedavg", "noise"]
        assert list(made.run_config("a", 5).arms) == ["fedavg"]
        assert made.points()["noise"].settings.settings() == DefenseSettings(defense="noise").settings()
        assert list(made.run_config("a", 4).attacks) == list(attacks)
        assert list(made.run_config("b", 4).attacks) == ["inverting-gradients"]


class TestReading:
    def test_every_comparison_of_the_package_is_valid_and_opens_with_its_command(self) -> None:
        assert "pneumoniamnist" in comparison_names()
        folder = Path(__file__).parents[2] / "src/shadow_defense/presets/comparisons"
        for name in comparison_names():
            load_grid(name)
            assert (folder / f"{name}.yaml").read_text().startswith(f"# shadow-defense compare {name}")

    def test_every_model_of_the_package_trains_on_a_client_of_one_image(self) -> None:
        """Batch norm needs more than one value a channel: a deep network's last layers may see one pixel."""
        for name in (*comparison_names(), *preset_names()):
            made = load_grid(name)
            for model in made.models:
                config = made.run_config(model, made.seeds[0])
                if config.training.batch_norm == "train" and config.model.normalisation == "batch":
                    size = config.data.image_size
                    built = build_model(config.model, channels=1, classes=2, image_size=(size, size), seed=0)
                    built.train()(torch.zeros(1, 1, size, size))

    def test_a_run_is_a_grid_of_its_arms(self) -> None:
        made = load_grid("demo")
        assert list(made.defenses) == ["no-defense", "published-strength-0.19", "strength-1.0", "protect-once"]
        assert list(made.models) == ["convnet"]

    def test_flags_choose_from_the_grid_and_the_registry(self, tmp_path: Path) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(TINY))
        made = load_grid(
            str(file),
            defenses=["noise", "soteria:strong"],
            attacks=["dlg"],
            seeds=[7],
            rounds=[2],
            clients=["client-1"],
        )
        assert list(made.defenses) == ["fedavg", "noise", "soteria-strong"]
        assert made.defenses["noise"].sweep == {"preset": ("weak", "strong")}
        assert made.defenses["soteria-strong"].preset == "strong"
        assert made.seeds == (7,)
        assert (made.attacks["dlg"].rounds, made.attacks["dlg"].clients) == ((2,), ("client-1",))

    def test_a_name_that_a_page_prints_is_one_that_the_command_takes(self) -> None:
        whole = load_grid("pneumoniamnist")
        printed = [name for name, point in whole.points().items() if point.family not in (name, "fedavg")][:2]
        chosen = load_grid("pneumoniamnist", defenses=printed)
        assert list(chosen.points()) == ["fedavg", *printed]
        for name in printed:
            assert chosen.points()[name].settings.settings() == whole.points()[name].settings.settings()

    def test_flags_count_for_what_a_model_has_of_its_own(self) -> None:
        def attacks(made: Grid, model: str) -> dict[str, Any]:
            found = made.run_config(model, 0).attacks
            return {name: (each.attack, each.rounds, each.clients) for name, each in found.items()}

        chosen = load_grid("pneumoniamnist", rounds=[2], clients=["client-3"])
        assert {each[1:] for each in attacks(chosen, "resnet18").values()} == {((2,), ("client-3",))}
        chosen = load_grid("pneumoniamnist", attacks=["inverting-gradients"])
        assert attacks(chosen, "resnet18") == {"inverting-gradients": ("inverting-gradients", (1,), ("client-1",))}
        chosen = load_grid("pneumoniamnist", defenses=["shadow", "mixup"])
        assert list(chosen.arms("resnet18")) == ["fedavg", "shadow-0.19", "shadow-1.0", "mixup"]

    def test_flags_count_for_what_a_model_lists(self, tmp_path: Path) -> None:
        file, attacks = tmp_path / "grid.yaml", {**TINY["attacks"], "dlg": {"attack": "dlg"}}
        models = {name: {**TINY["models"]["convnet"], "attacks": [*attacks]} for name in ("a", "b")}
        file.write_text(yaml.safe_dump({**TINY, "models": models, "attacks": attacks}))
        made = load_grid(str(file), attacks=["dlg"], rounds=[2])
        assert list(made.run_config("b", 0).attacks) == ["dlg"] and made.attacks["dlg"].rounds == (2,)

    def test_a_combination_can_be_chosen(self) -> None:
        made = load_grid("demo", defenses=["shadow+clip"])
        assert made.defenses["shadow-clip"].defense == "shadow+clip"

    @pytest.mark.parametrize(
        ("values", "flags", "message"),
        [
            ({**TINY, "defenses": "x"}, {"defenses": ["noise"]}, "defenses = 'x': expected names"),
            ({**TINY, "attacks": {"a": None}}, {"rounds": [1]}, "attacks = {'a': None}: expected names"),
            ({**TINY, "attacks": ["a"]}, {"attacks": ["dlg"]}, "attacks = ['a']: expected names"),
            ({**TINY, "models": ["a"]}, {}, "models = ['a']: expected names"),
            ({**TINY, "leave_out": ["x"]}, {"defenses": ["noise"]}, "leave_out.0 = 'x'"),
            ({"defenses": TINY["defenses"]}, {}, "names defenses and no models"),
            ({"model": "x"}, {}, "model = 'x'"),
            ({**TINY, "attacks": {"gifd": {"rounds": [1]}}}, {}, "attacks.gifd says no attack"),
            (
                {**TINY, "defenses": {"fedavg": {}, "censor": {"preset": "paper"}}},
                {},
                "defenses.censor says no defense",
            ),
        ],
    )
    def test_wrong_types_are_said_in_one_line(
        self, tmp_path: Path, values: dict[str, Any], flags: dict[str, Any], message: str
    ) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError) as raised:
            load_grid(str(file), **flags)
        assert message in str(raised.value)

    def test_an_unknown_comparison_lists_them(self) -> None:
        with pytest.raises(ConfigError, match="unknown comparison 'pneumoniamnst': did you mean 'pneumoniamnist'"):
            load_grid("pneumoniamnst")

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"defenses": ["shadw"]}, "did you mean 'shadow'"),
            ({"defenses": ["noise:huge"]}, "unknown preset of defense 'noise' 'huge'"),
            ({"attacks": ["gradinv"]}, "did you mean 'gradinversion'"),
            ({"rounds": [9]}, "asks for round 9"),
            ({"defenses": ["noise"], "ablations": True}, "the grid has none"),
        ],
    )
    def test_unknown_names_list_the_valid_ones(self, tmp_path: Path, flags: dict[str, Any], message: str) -> None:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump({**TINY, "defenses": {"fedavg": {"defense": "none"}}}))
        with pytest.raises((ConfigError, DefenseError)) as raised:
            load_grid(str(file), **flags)
        assert message in str(raised.value)


def keys(scene: Scene) -> dict[str, str]:
    training = {arm: Training(scene, arm, engine_named("in-process")) for arm in ("fedavg", "noise-weak", "shadow-1.0")}
    attack = Attacking(scene, Job("noise-weak", "inverting-gradients", 0, "client-1"), training["noise-weak"])
    score = Scoring(attack, training["fedavg"])
    tasks = {"generator": Pretraining(scene), **training, "attack": attack, "score": score}
    return {name: task.key for name, task in tasks.items()}


def changed(folder: Path, **changes: Any) -> set[str]:
    before, after = keys(the_scene(folder)), keys(the_scene(folder, **changes))
    return {name for name in before if before[name] != after[name]}


class TestContentKeys:
    def test_a_setting_changes_the_cells_that_depend_on_it_and_no_others(self, tmp_path: Path) -> None:
        defenses = TINY["defenses"]
        assert changed(tmp_path) == set()
        assert changed(tmp_path, title="another", workers=1) == set()
        assert changed(tmp_path, metrics={"lpips": None, "foreground_share": 0.5}) == {"score"}
        longer = {"inverting-gradients": {**TINY["attacks"]["inverting-gradients"], "options": {"iterations": 5}}}
        assert changed(tmp_path, attacks=longer) == {"attack", "score"}
        shadow = {**defenses["shadow"], "options": {"latent_iterations": 4}}
        assert changed(tmp_path, defenses={**defenses, "shadow": shadow}) == {"shadow-1.0"}
        assert changed(tmp_path, generator={**TINY["generator"], "steps": 5}) == {"generator", "shadow-1.0"}
        everything = {"fedavg", "noise-weak", "shadow-1.0", "attack", "score"}
        assert changed(tmp_path, training={"rounds": 2, "learning_rate": 0.1}) == everything
        assert changed(tmp_path, engine="flower-simulation") == everything
        assert changed(tmp_path, data={**TINY["data"], "image_size": 24}) == {*everything, "generator"}
        # Other clients, and the same public images: the generator stays.
        split = {"kind": "sizes", "sizes": [1, 2, 4], "batch_sizes": [1, 1, 4]}
        assert changed(tmp_path, data={**TINY["data"], "split": split}) == everything

    def test_other_code_and_other_libraries_are_other_results(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = keys(the_scene(tmp_path))
        with monkeypatch.context() as patched:
            patched.setattr(task_keys, "libraries", lambda: {"torch": "99"})
            assert not set(before.values()) & set(keys(the_scene(tmp_path)).values())
        real = task_keys.code_hash
        monkeypatch.setattr(task_keys, "code_hash", lambda *roots: real(*roots) + "x" * (ATTACKING in roots))
        after = keys(the_scene(tmp_path))
        assert {name for name in before if before[name] != after[name]} == {"attack", "score"}

    def test_a_preset_and_its_settings_spelt_out_are_one_cell(self, tmp_path: Path) -> None:
        spelt = {"fedavg": {"defense": "none"}, "noise-weak": {"defense": "noise", "options": {"scale": 1e-3}}}
        scenes = the_scene(tmp_path, defenses=spelt), the_scene(tmp_path)
        first, second = (Training(scene, "noise-weak", engine_named("in-process")).key for scene in scenes)
        assert first == second

    def test_other_lesion_masks_are_other_scores(self, tmp_path: Path) -> None:
        def masked(value: bool) -> Scene:
            run = Scene(grid().run_config("convnet", 0))
            clients = [
                replace(client, train=replace(client.train, masks=torch.full((len(client.train), 16, 16), value)))
                for client in run.dataset.clients
            ]
            run.images.dataset = replace(run.dataset, clients=tuple(clients))
            return run

        first, second = keys(masked(True)), keys(masked(False))
        assert {name for name in first if first[name] != second[name]} == {"score"}

    def test_other_names_of_images_are_other_trainings(self, tmp_path: Path) -> None:
        scene = the_scene(tmp_path)
        before = keys(scene)
        renamed = Scene(grid().run_config("convnet", 0))
        first, *others = renamed.dataset.clients
        train = replace(first.train, sample_ids=tuple(f"{name}x" for name in first.train.sample_ids))
        renamed.images.dataset = replace(renamed.dataset, clients=(replace(first, train=train), *others))
        assert {name for name, key in keys(renamed).items() if key != before[name]} == before.keys() - {"generator"}

    def test_another_seed_is_another_cell(self, tmp_path: Path) -> None:
        other = Scene(grid().run_config("convnet", 1))
        assert not set(keys(other).values()) & set(keys(the_scene(tmp_path)).values())
