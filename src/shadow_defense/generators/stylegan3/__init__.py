"""The paper's shadow model: StyleGAN3 (Karras et al. 2021), written from its formulas (spec/stylegan3.md)."""
