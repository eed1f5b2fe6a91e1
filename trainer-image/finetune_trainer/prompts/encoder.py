"""The encoder of P-tuning: makes a prompt from trained embeddings while it is tuned, and is not exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PromptEncoder(nn.Module):
    """e + MLP(BiLSTM(e)): a prompt [P, E] whose tokens know of each other.

    LSTM and MLP as in Liu et al. 2021 (arXiv 2103.10385, section 3.2); added to the embeddings, with a last layer that
    starts at zero, as in Razdaibiedina et al. 2023 (arXiv 2305.03937, section 3): so the prompt starts at the
    embeddings that were asked for.
    """

    def __init__(self, embeddings_PE: Tensor) -> None:
        super().__init__()
        width = embeddings_PE.shape[1]
        self.embeddings = nn.Parameter(embeddings_PE)
        self.lstm = nn.LSTM(width, -(-width // 2), num_layers=2, bidirectional=True, batch_first=True)
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(2 * self.lstm.hidden_size, width), nn.ReLU(), last)

    def forward(self) -> Tensor:
        with torch.autocast(self.embeddings.device.type, enabled=False):
            states_PE, _ = self.lstm(self.embeddings[None])
            encoded: Tensor = self.embeddings + self.mlp(states_PE[0])
        return encoded
