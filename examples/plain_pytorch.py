"""ShadowGuard in a plain PyTorch loop; the lines that it adds are marked with an arrow.

Run it with: .venv/bin/python examples/plain_pytorch.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shadow_defense import ShadowGuard, ShadowSettings

torch.manual_seed(0)
images, labels = torch.randn(16, 1, 32, 32).clamp(-1, 1), torch.arange(16) % 2  # yours, in [-1, 1]
loader = DataLoader(TensorDataset(images, labels, torch.arange(16)), batch_size=4, shuffle=True)
model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(2048, 2))  # yours
generator = nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32)))  # pre-trained
loss_fn, rounds = nn.CrossEntropyLoss(), 3
guard = ShadowGuard(generator, ShadowSettings(latent_iterations=100), z_dim=64)  # <- one a client

for round in range(rounds):
    received = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # the global model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch, target, index in loader:
        names = [f"image-{i}" for i in index.tolist()]
        where = {"model": model, "global_model": received, "round": round, "rounds": rounds}
        protected = guard.protect(batch, target, names, loss_fn=loss_fn, **where)  # <- train on this
        optimiser.zero_grad()
        loss = loss_fn(model(protected), target)
        loss.backward()
        optimiser.step()
    noise = (protected - batch).square().mean().sqrt()
    print(f"round {round + 1}: loss {loss.item():.3f}, noise on the last batch {noise.item():.3f} (RMS)")
