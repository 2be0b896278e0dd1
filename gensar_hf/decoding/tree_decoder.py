"""Decoders over trees of tokens: what the nodes of one example share is computed once.

`generate` gives every beam its own row: the keys and values of the encoder, or of the prompt, are kept once per beam,
and so are the tokens that all beams begin with. Here a row is an example, and its beams (or candidates) are the nodes
of one tree in it. A node attends to its ancestors only, at the position that its depth gives it, so every node
computes what it would compute at the end of its own prefix. Beams are reordered by index: nothing is copied for them.
"""

from abc import ABC, abstractmethod

import torch


class TreeDecoder(ABC):
    """Reads the nodes of one tree per example, some at a time, parents before their children.

    Args:
        batch_size: number of examples.
        device: of the tokens.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._visible = torch.empty((batch_size, 0, 0), dtype=torch.bool, device=device)  # of the nodes read last
        self.num_nodes = 0

    def read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Read new nodes.

        Args:
            tokens: `(batch_size, num_new)`.
            depths: `(batch_size, num_new)` or `(1, num_new)`, 0 for the root.
            visible: `(batch_size, num_new, num_nodes + num_new)` bool, the node itself and its ancestors among all
                nodes read so far and now; every node must see one at least.

        Returns:
            `(batch_size, num_new, d_model)` states as the output head takes them.
        """
        states = self._read(tokens, depths, visible)
        self.num_nodes, self._visible = self.num_nodes + tokens.shape[1], visible
        return states

    @abstractmethod
    def _read(self, tokens: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """As `read`; `num_nodes` is still the number of nodes before."""

    def read_prefix(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read what all beams of an example begin with.

        Args:
            tokens: `(batch_size, length)`, root first.

        Returns:
            `(batch_size, 1, d_model)` states of the last token, which alone can be a parent.
        """
        depths = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.read(tokens, depths[None], (depths <= depths[:, None]).expand(len(tokens), -1, -1))
        self._visible = self._visible[:, -1:]
        return states[:, -1:]

    def read_children(self, tokens: torch.Tensor, parents: torch.Tensor, depth: int) -> torch.Tensor:
        """Read children of the nodes that were read last.

        Args:
            tokens: `(batch_size, num_new)`.
            parents: `(batch_size, num_new)` the place of each child's parent among the nodes read last.
            depth: of the children.

        Returns:
            `(batch_size, num_new, d_model)` states.
        """
        batch_size, num_new = tokens.shape
        ancestors = self._visible.gather(1, parents[:, :, None].expand(-1, -1, self.num_nodes))
        selves = torch.eye(num_new, dtype=torch.bool, device=tokens.device).expand(batch_size, -1, -1)
        depths = torch.full((1, num_new), depth, device=tokens.device)
        return self.read(tokens, depths, torch.cat([ancestors, selves], dim=2))
