"""Removers against what is known beforehand: the Wiener filter, the true decoy, noise that no linear map removes."""

from __future__ import annotations

import pytest
import torch
from tests.protection.gaussian_images import draws, gaussian_images, root_of_covariance

from shadow_defense.attacks.removers.choosing import chosen_estimates, learn_rule, squared_errors
from shadow_defense.attacks.removers.code_inversion import CodeInversion
from shadow_defense.attacks.removers.decoy_known import DecoyTaken
from shadow_defense.attacks.removers.learned import pairs_of_own_making, train_remover
from shadow_defense.attacks.removers.linking import likelihoods
from shadow_defense.attacks.removers.lmmse import LinearRemover, linear_removal
from shadow_defense.attacks.removers.pool_lookup import PoolLookup
from shadow_defense.attacks.removers.remover import Removal
from shadow_defense.attacks.removers.suite import Knowledge, removers_for
from shadow_defense.generators.dcgan import DCGANGenerator
from shadow_defense.metrics.linkage import hits
from shadow_defense.protection.decoy import Decoy, GeneratedDecoys, PoolDecoys
from shadow_defense.protection.white import White
from shadow_defense.protection.whitening import measure_whitening

PUBLIC = gaussian_images(4000, 0)
WHITENING = measure_whitening(PUBLIC)
CLEAN = gaussian_images(400, 7)
NO_LABELS = torch.zeros(400).long()


def test_linear_removal_is_the_wiener_filter() -> None:
    """``mean + C (C + S)^-1 (x' - mean)`` with the true covariance; its error is ``tr(C - C (C + S)^-1 C) / d``."""
    protected = White(WHITENING, 0.05).protect(CLEAN, draws(0, 400))
    covariance = root_of_covariance() @ root_of_covariance().T
    filtered = covariance @ torch.linalg.inv(covariance + 0.05**2 * torch.eye(144))
    mean = torch.linspace(0.3, 0.7, 12).expand(12, 12).flatten().double()
    wanted = mean + (protected.flatten(1).double() - mean) @ filtered.T
    remover = LinearRemover(WHITENING, White(WHITENING, 0.05).view())
    found = remover.remove(protected, NO_LABELS).estimates
    error = squared_errors(found, CLEAN).mean()
    assert float(squared_errors(found, wanted.float().view_as(found)).mean()) < 0.1 * float(error)
    exact = float((covariance - filtered @ covariance).diagonal().mean())
    assert remover.removal.mean_squared_error() == pytest.approx(exact, rel=0.05)
    assert float(error) == pytest.approx(exact, rel=0.05)


def test_two_looks_are_one_with_half_the_variance() -> None:
    view = White(WHITENING, 0.1).view()
    twice = linear_removal(WHITENING, [view, view])
    once = linear_removal(WHITENING, [White(WHITENING, 0.1 / 2**0.5).view()])
    assert twice.mean_squared_error() == pytest.approx(once.mean_squared_error(), rel=1e-3)
    first, second = (White(WHITENING, 0.1).protect(CLEAN, draws(seed, 400)) for seed in (1, 2))
    assert torch.allclose(twice.images([first, second]), once.images([(first + second) / 2]), atol=1e-4)


def test_looking_up_finds_the_decoy_and_the_image() -> None:
    texture = Decoy(WHITENING, PoolDecoys(PUBLIC), 0.7, 0.0)
    protected = texture.protect(CLEAN, draws(1, 400))
    remover = PoolLookup(texture)
    assert torch.equal(remover.probabilities(protected).argmax(dim=1), PoolDecoys(PUBLIC).chosen(draws(1, 400)))
    errors = squared_errors(remover.remove(protected, NO_LABELS).estimates, CLEAN)
    linear = squared_errors(LinearRemover(WHITENING, texture.view()).remove(protected, NO_LABELS).estimates, CLEAN)
    assert errors.max() < 0.01 * linear.mean()


def test_under_a_floor_the_looked_up_estimate_is_no_worse_than_the_linear_one() -> None:
    texture = Decoy(WHITENING, PoolDecoys(PUBLIC), 0.7, 0.3)
    protected = texture.protect(CLEAN, draws(1, 400))
    errors = [
        float(squared_errors(remover.remove(protected, NO_LABELS).estimates, CLEAN).mean())
        for remover in (PoolLookup(texture), LinearRemover(WHITENING, texture.view()))
    ]
    assert errors[0] < 1.05 * errors[1]


@pytest.mark.slow
def test_the_chain_is_better_than_the_look_up_where_images_are_no_gaussian() -> None:
    """Images of two grey levels under decoys of the pool and a floor: look up, subtract, learn."""
    public, clean = (torch.where(images > 0.5, 0.8, 0.2) for images in (PUBLIC[:300], CLEAN[:200]))
    texture = Decoy(measure_whitening(public), PoolDecoys(public), 0.7, 0.1)
    protected = texture.protect(clean, draws(3, 200))
    removers = removers_for(texture, Knowledge(public, torch.zeros(300).long(), 1), seed=0, steps=60)
    before, after = (
        float(squared_errors(removers[name].remove(protected, NO_LABELS[:200]).estimates, clean).mean())
        for name in ("pool look-up", "pool look-up, then learned")
    )
    # 0.89 and 0.93 of it, as two seeds of the network have it.
    assert after < 0.97 * before


@pytest.mark.slow
def test_the_likeliest_code_is_the_drawn_one() -> None:
    public = torch.nn.functional.pad(PUBLIC[:400], (2, 2, 2, 2), mode="replicate")
    whitening = measure_whitening(public)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = DCGANGenerator(image_size=16, z_dim=3, width=4)
        for parameter in generator.parameters():
            parameter.data.mul_(12 if parameter.dim() > 1 else 1)
    texture = Decoy(whitening, GeneratedDecoys(generator), 0.6, 0.0)
    clean = torch.nn.functional.pad(CLEAN[:6], (2, 2, 2, 2), mode="replicate")
    protected = texture.protect(clean, draws(0, 6))
    codes = GeneratedDecoys(generator).codes(draws(0, 6))
    told = CodeInversion(texture, seed=0, known=codes).remove(protected, NO_LABELS[:6])
    found = CodeInversion(texture, seed=0).remove(protected, NO_LABELS[:6])
    assert squared_errors(told.estimates, clean).max() < 1e-4
    reached = squared_errors(found.estimates, clean) < 1e-4
    assert reached.float().mean() > 0.6
    assert found.doubt.median() < 1.1 * told.doubt.median()
    given = DecoyTaken(texture).estimate(protected, GeneratedDecoys(generator).of_codes(codes))
    assert squared_errors(given, clean).max() < 1e-4


@pytest.mark.slow
def test_the_learned_remover_beats_the_linear_one_where_noise_is_sparse() -> None:
    """Ten per cent of the pixels much brighter: no linear map tells them, a small network does."""

    def protect(images: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        marks = torch.stack([torch.rand(1, 12, 12, generator=each) < 0.1 for each in generators])
        return images + 0.5 * marks

    linear = LinearRemover(WHITENING, White(WHITENING, 0.5 * 0.1**0.5).view())
    remover = train_remover(
        linear, pairs_of_own_making(protect, PUBLIC[:400], torch.zeros(400).long()), 1, seed=0, steps=40
    )
    protected = protect(CLEAN, draws(5, 400))
    before = squared_errors(linear.remove(protected, NO_LABELS).estimates, CLEAN).mean()
    after = squared_errors(remover.remove(protected, NO_LABELS).estimates, CLEAN).mean()
    assert after < 0.7 * before


def test_the_rule_takes_the_remover_that_is_right_without_seeing_the_truth() -> None:
    """One remover is right where its doubt is small and far off elsewhere; the other is always half off."""
    truths = torch.full((100, 1, 12, 12), 0.5)
    off = torch.where(torch.arange(100) % 2 == 0, 0.0, 0.4)
    removals = {
        "now and then": Removal(truths + off[:, None, None, None], off + 0.01 * torch.rand(100)),
        "always": Removal(truths + 0.1, torch.rand(100)),
    }
    rule = learn_rule(removals, truths)
    places = rule.choose(removals)
    assert torch.equal(places, (off > 0).long())
    assert squared_errors(chosen_estimates(removals, places), truths).max() == pytest.approx(0.01, rel=1e-3)


def test_likelihoods_find_an_image_where_its_removal_does_not() -> None:
    texture = White(WHITENING, 0.2)
    protected = texture.protect(CLEAN, draws(1, 400))
    own = torch.arange(400)
    likely = hits(likelihoods(WHITENING, [(texture, protected)], CLEAN), own).mean()
    estimates = LinearRemover(WHITENING, texture.view()).remove(protected, NO_LABELS).estimates
    near = hits(-torch.cdist(estimates.flatten(1), CLEAN.flatten(1)), own).mean()
    assert likely > near + 0.02
    # In pixels and without a prior it is the distance to x' itself.
    wanted = hits(-torch.cdist(protected.flatten(1), CLEAN.flatten(1)), own).mean()
    assert float(likely) == pytest.approx(float(wanted), abs=0.02)


def test_a_decoy_gives_itself_away_by_what_lies_along_no_direction() -> None:
    """Forty directions of 144; the decoys differ in nothing else but in a pattern outside of them."""
    public = gaussian_images(60, 30)
    whitening = measure_whitening(public)
    pattern = whitening.outside(torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)))
    pattern = 0.1 * pattern.view(1, 1, 12, 12) / pattern.abs().max()
    pool = torch.cat([public[:1] + pattern, public[:1] - pattern])
    texture = Decoy(whitening, PoolDecoys(pool), 0.7, 0.0)
    protected = texture.kept(gaussian_images(20, 31)) + 0.7 * pool[:1]
    taken = DecoyTaken(texture)
    right, wrong = (taken.misfit(protected, pool[place].expand_as(protected)) for place in (0, 1))
    assert (wrong > right).all()
    assert (PoolLookup(texture).probabilities(protected).argmax(dim=1) == 0).all()
