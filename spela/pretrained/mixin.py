"""save_pretrained, from_pretrained and push_to_hub, as huggingface_hub's mixin has them."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from spela.layers.plain import parts_of
from spela_kernels.precision import without_inference

__all__ = ["Pretrained"]

_Net = TypeVar("_Net", bound="Pretrained")


class Pretrained(nn.Sequential):
    """A network that is saved as config.json, model.safetensors and README.md, and loaded from them.

    What config.json describes: this library's layers, torch's plain ones between them (linear,
    convolutions, norms, pools, dropout, activations), and `Frozen`, `SpelaBlock` and nn.Sequential of such.
    An optimizer's state is no part of it: a run that is to go on is a run folder, a stream has its own file.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        card: str | None = None,
    ) -> None:
        """Write the network into a folder: all files whole, or none of them.

        Args:
            save_directory: Made if missing; a network that was saved there before is replaced.
            card: Text of README.md, as `spela info RUN --card` writes one; None: a README.md that is there
                stays, else one is written that says what the network is and how it is loaded.

        Raises:
            ValueError: If a module cannot be described (the message says which), modules share weights, the
                network has no values yet, or the folder holds other files of these names.
            OSError: If it cannot be written; what was there before then stays.

        Example:
            >>> from spela import SpelaLinear, SpelaSequential
            >>> net, x = SpelaSequential(SpelaLinear(4, 16, 3)), torch.randn(5, 4)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     net.save_pretrained(folder)
            ...     loaded = SpelaSequential.from_pretrained(folder)
            >>> torch.equal(loaded(x), net(x))
            True
        """
        self._write(Path(save_directory), card, None)

    @classmethod
    @without_inference
    def from_pretrained(
        cls: type[_Net],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> _Net:
        """A saved network, in eval mode: `net.train()` before it goes on learning. Files run no code.

        Args:
            pretrained_model_name_or_path: A folder, or owner/name of a repository on the Hub, which needs
                the package huggingface_hub.
            device: Where to put it; None: the CPU.
            revision: Branch, tag or commit of a repository.
            cache_dir: Where downloads are kept; None: huggingface_hub's own cache.
            token: For a private repository; None: the one that huggingface_hub was logged in with.
            force_download: Download what is in the cache too.
            local_files_only: Look into the cache alone.

        Returns:
            The network.

        Raises:
            ValueError: If there is none, or a file is damaged or of something else.
        """
        # Here, as below: who only trains needs no safetensors.
        from spela.pretrained.folder import read_network
        from spela.pretrained.hub import download, is_repo_id

        where = Path(pretrained_model_name_or_path)
        if not where.is_dir():
            name = str(pretrained_model_name_or_path)
            if isinstance(pretrained_model_name_or_path, Path) or not is_repo_id(name):
                raise ValueError(
                    f"{name} is no folder: give one that save_pretrained wrote, or owner/name on the Hub"
                )
            where = download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return cls(OrderedDict(parts_of(read_network(where, device)))).eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a SPELA network",
        private: bool | None = None,
        token: str | bool | None = None,
        card: str | None = None,
    ) -> str:
        """Upload the network to the Hub in one commit; needs the extra `hub`.

        Args:
            repo_id: owner/name; made if there is none.
            commit_message: Of the commit.
            private: Whether a new repository is; None: as the owner's settings say.
            token: That may write; None: the one that huggingface_hub was logged in with.
            card: As for `save_pretrained`; a README.md that is on the Hub stays unless it is given.

        Returns:
            The commit's address.

        Raises:
            ValueError: As `save_pretrained`, or if huggingface_hub is not installed or the Hub refuses.
        """
        from spela.pretrained.folder import CARD
        from spela.pretrained.hub import has_card, make_repo, upload

        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), card, repo_id)
            repo_id = make_repo(repo_id, private, token)
            if card is None and has_card(repo_id, token):
                (Path(folder) / CARD).unlink()
            return upload(Path(folder), repo_id, commit_message, token)

    def _write(self, folder: Path, card: str | None, repo_id: str | None) -> None:
        from spela.pretrained.folder import write_network

        if Pretrained not in type(self).__bases__:
            name = type(self).__name__
            raise ValueError(
                f"{name} is a class of its own, whose code config.json cannot hold: save "
                "SpelaSequential(*net), if its modules run one after the other"
            )
        write_network(self, folder, card, repo_id)
