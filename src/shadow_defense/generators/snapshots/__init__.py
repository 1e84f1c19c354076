"""Official StyleGAN3 training snapshots (.pkl), read without unpickling them."""
