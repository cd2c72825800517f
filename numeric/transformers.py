"""A small transformer that reads an image row by row: GPT-2's blocks behind a linear embedding of the rows.

Blocks normalise before they read (pre-LN), as GPT-2's do; rows take the place of tokens, so that the network needs no text and no download.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.errors import ModelError

HEAD_WIDTH: Final = 12  # of an attention head at width 1
DEVIATION: Final = 0.02
"""Standard deviation of GPT-2's initial weights, and here of its biases too: a bias that nothing feels stays where it starts, and at zero
its law (it can only decay) would be a statement about rounding alone."""


class Attention(nn.Module):
    """Softmax attention over all rows.

    Parameters
    ----------
    width, heads
        Of the residual stream, and the number of parts it is read in.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """What every row takes from all rows, shape (n, rows, width)."""
        query, key, value = (self._by_head(layer(inputs)) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return result

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Attention and a perceptron, each reading a normalised stream and adding to it.

    Parameters
    ----------
    width, heads
        As for `Attention`.
    hidden
        Width of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.widen, self.narrow = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with both additions, same shape."""
        stream = stream + self.attention(self.norm1(stream))
        result: Tensor = stream + self.narrow(F.gelu(self.widen(self.norm2(stream))))
        return result


class RowTransformer(nn.Module):
    """Rows embedded, positions added, blocks, a last norm, the mean over rows, and a linear layer.

    Parameters
    ----------
    classes, channels, image
        Width of the output, channels of the input, and its height and width.
    width
        Factor on the width of an attention head; the residual stream is as wide as all heads together, the perceptrons four times that.
    heads, depth
        Attention heads, and blocks.

    Raises
    ------
    ModelError
        There is no head.

    Examples
    --------
    >>> model = RowTransformer(width=0.5, heads=2, depth=1)
    >>> tuple(model(torch.zeros(2, 1, 28, 28)).shape)
    (2, 10)
    """

    def __init__(self, classes: int = 10, channels: int = 1, image: int = 28, width: float = 1.0, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        if heads < 1:
            raise ModelError(f"A transformer with {heads} attention heads has nothing to attend with. Give one or more.", heads=heads)
        stream = heads * max(1, round(HEAD_WIDTH * width))
        self.embedding = nn.Linear(channels * image, stream)
        self.positions = nn.Parameter(torch.empty(image, stream))
        self.blocks = nn.Sequential(*(Block(stream, heads, 4 * stream) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(stream), nn.Linear(stream, classes)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=DEVIATION)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (n, classes), of images of shape (n, channels, image, image)."""
        stream = self.embedding(inputs.transpose(1, 2).flatten(2)) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(stream)).mean(1))
        return logits
