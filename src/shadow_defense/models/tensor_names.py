"""One model's tensors under other names: what wrappers put in front, and what other libraries call them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put into names, once for each time that something was wrapped."""

# torchvision's own DenseNet-121 file is older than module names without dots: norm.1 there is norm1 now.
DOTTED_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")

Convention = Callable[[str], str]
"""From a model's own name of a tensor to another library's."""


def under_own_names(
    given: Mapping[str, Tensor], own: Collection[str], conventions: Sequence[Convention]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """``given`` under the model's ``own`` names, and in words what was renamed; what is not recognised keeps its name.

    Two tensors that would get the same name keep theirs: whoever checks them finds one too many.

    >>> tensors, said = under_own_names({"module._orig_mod.fc.bias": Tensor([1.0])}, ["fc.bias"], ())
    >>> tensors, said
    ({'fc.bias': tensor([1.])}, ("'module.' and '_orig_mod.' were taken off the names of its tensors",))
    """
    own = frozenset(own)
    other = {convention(name): name for convention in conventions for name in own}
    renamed, wrappers, foreign = dict[str, Tensor](), set[str](), False
    for name, tensor in given.items():
        found = name
        if name not in own:
            bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
            called = DOTTED_NAME.sub(r"\1\2", bare)
            found = bare if bare in own else other.get(called, name)
        if found != name and (found in given or found in renamed):
            found = name
        if found != name:
            wrappers.update(part for part in name.split(".") if part in WRAPPERS)
            foreign = foreign or bare not in own
        renamed[found] = tensor
    said = []
    if wrappers:
        parts = " and ".join(f"'{part}.'" for part in WRAPPERS if part in wrappers)
        said.append(f"{parts} {'were' if len(wrappers) > 1 else 'was'} taken off the names of its tensors")
    if foreign:
        said.append("its tensors have torchvision's names, and were taken for those of the same layers here")
    return renamed, tuple(said)
