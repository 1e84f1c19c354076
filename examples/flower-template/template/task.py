"""The model, the images and the training, which knows nothing of any defense."""

import torch
from skimage.data import lfw_subset
from torch import nn
from torch.utils.data import DataLoader


class Net(nn.Module):
    """A small convolutional network for grey images of 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16 * 6 * 6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv2(torch.tanh(self.conv1(images)))).flatten(1))


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    """Faces and other crops, a few of them for each partition."""
    images = torch.from_numpy(lfw_subset()).float()[:, None, :24, :24]
    labels = (torch.arange(200) < 100).long()
    own = torch.arange(partition_id, 200, num_partitions)[::25]
    pairs = [{"image": (images[index] - 0.5) / 0.5, "label": labels[index]} for index in own]
    return DataLoader(pairs, batch_size=2, shuffle=True)  # type: ignore[arg-type]


def train(net: nn.Module, trainloader: DataLoader, epochs: int, lr: float) -> float:
    """Train, and return the mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))
