"""The registry of task models: this package's own, by the module that has each, and what other packages add."""

from __future__ import annotations

from shadow_defense.errors import ModelError
from shadow_defense.models.kind import ModelKind
from shadow_defense.models.naming import check_named, is_model_file, is_own, look_where_named
from shadow_defense.registry import Registry

OWN: dict[str, ModelKind | str] = {
    "convnet": "shadow_defense.models.convnet",
    "densenet121": "shadow_defense.models.densenet",
    "lenet": "shadow_defense.models.lenet",
    "preactresnet18": "shadow_defense.models.preactresnet",
    "resnet18": "shadow_defense.models.resnet",
}


class ModelRegistry(Registry[ModelKind]):
    """Also of models of one's own that the command names: any factory, and files (:mod:`.own`)."""

    def check(self, name: str, *others: str) -> None:
        if not is_model_file(name):
            super().check(name, *others)

    def find(self, name: str, *others: str) -> ModelKind:
        if is_model_file(name):
            from shadow_defense.models.own import file_kind

            kind = file_kind(name)
        else:
            look_where_named(name)
            try:
                kind = super().find(name, *others)
            except ModelError:
                # Once it is named it is found in the working directory: that comes before every other remedy.
                if is_own(name):
                    check_named(name)
                raise
        # What an entry point names was named by who installed it.
        if kind.own and is_own(name):
            check_named(name)
        return kind

    def _entry(self, name: str, found: object, where: str) -> ModelKind:
        entry = getattr(found, "kind", found) if isinstance(found, type) else found
        if isinstance(entry, ModelKind) or not callable(found):
            return super()._entry(name, entry, where)
        from shadow_defense.models.own import factory_kind

        return factory_kind(name, found)


MODELS: Registry[ModelKind] = ModelRegistry("model", ModelKind, OWN, ModelError)
