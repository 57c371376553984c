"""A small convolutional classifier, whose last hidden layer serves as a feature space for Frechet distances.

Three 3x3 convolutions (strides 1, 2, 2; widths w, 2w, 4w), then a hidden layer of `features` numbers, then the logits;
GELU everywhere. It has no normalisation layer: an image's features depend on that image alone, and on its contrast too,
which a normalisation would hide.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """logits = head(features(x)) for images x (n, channels, size, size) in [-1, 1].

    channels, size: the images'; width: channels of the first convolution; features: numbers a sample in the last hidden
    layer; classes: number of logits. `config` holds these five, so `Classifier(**net.config)` is the same architecture.
    """

    def __init__(self, channels: int = 1, size: int = 28, width: int = 16, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.config = {"channels": channels, "size": size, "width": width, "features": features, "classes": classes}
        for name, value in self.config.items():
            if value < 1:
                raise ValueError(f"Classifier({name}={value}); expected a whole number >= 1.")
        small = (size + 3) // 4  # after two strides of 2
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.hidden = nn.Linear(4 * width * small**2, features)
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Activations (n, features) of the last hidden layer. Raises ValueError for images of another shape."""
        expected = (self.config["channels"], self.config["size"], self.config["size"])
        if x.shape[1:] != expected:
            raise ValueError(f"Images of shape {tuple(x.shape)}; expected (n, {', '.join(map(str, expected))}).")
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.gelu(conv(x))
        return F.gelu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes). Raises ValueError for images of another shape."""
        return self.head(self.features(x))
