"""The paper's shadow model: StyleGAN3 (Karras et al. 2021; docs/generators.md), written from its formulas."""
