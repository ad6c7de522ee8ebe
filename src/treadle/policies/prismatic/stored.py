"""A policy of the OpenVLA family as a directory: recognised, made, loaded, looked at and saved."""

import logging
import tempfile
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from treadle.errors import ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies.footprint import Activations
from treadle.policies.inspection import CheckpointContents
from treadle.policies.prismatic.activations import count_activations
from treadle.policies.prismatic.config import PrismaticConfig, tiny_config, to_json
from treadle.policies.prismatic.examine import examine, remarks
from treadle.policies.prismatic.load import (
    FLOAT32,
    OWN,
    PARTS,
    Directory,
    fill,
    read_directory,
    settings_directory,
    with_critic,
)
from treadle.policies.prismatic.model import PrismaticModel
from treadle.policies.prismatic.preprocessor import PREPROCESSOR, make_preprocessor
from treadle.policies.prismatic.prompt import TOKENIZER, build_tokenizer
from treadle.policies.prismatic.recognition import DOUBT, Family, recognize
from treadle.policies.prismatic.sizes import describe_size
from treadle.policies.prismatic.statistics import select_key, twins
from treadle.policies.tensors import missing

if TYPE_CHECKING:
    from treadle.config.supervised import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec

_log = logging.getLogger(__name__)

MODEL_TYPE = "openvla"
"""`model_type` of published config.json files."""


class StoredPolicy(PrismaticModel):
    """A model of the family, and the directories that hold it; `PrismaticPolicy` says what it does."""

    config_type: ClassVar[type[PrismaticConfig]]

    @classmethod
    def recognizes(cls, directory: Path, config: dict[str, Any]) -> bool:
        """See `Policy.recognizes`. The directory of an adapter is its base's kind."""
        directory = settings_directory(directory)
        if not (directory / checkpoint.CONFIG).is_file():
            return False
        config = checkpoint.read_json(directory / checkpoint.CONFIG)
        named = checkpoint.named_policy(config, directory / checkpoint.CONFIG)
        if named is not None:
            return named == cls.kind
        return config.get("model_type") == MODEL_TYPE and cls.recognizes_published(directory, config)

    @classmethod
    def statistics_names(cls, name: str) -> tuple[str, ...]:
        """See `Policy.statistics_names`."""
        return (name, *twins(name))

    @classmethod
    @abstractmethod
    def recognizes_published(cls, directory: Path, config: dict[str, Any]) -> bool:
        """Whether a directory of the family that names no policy is of this class; never true of two classes."""

    @classmethod
    @abstractmethod
    def configure(cls, found: Directory, overrides: dict[str, Any]) -> PrismaticConfig:
        """The config of a directory, with settings that override it. Raises CheckpointError or ConfigError."""

    @classmethod
    def create(
        cls,
        config: PrismaticConfig,
        norm_stats: dict[str, Any],
        tokenizer: Path,
        *,
        statistics: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A policy with random weights. `tokenizer`: a directory that `build_tokenizer` wrote."""
        files = checkpoint.read_carried(tokenizer)
        if TOKENIZER not in files:
            raise missing(tokenizer / TOKENIZER)
        files.setdefault(PREPROCESSOR, make_preprocessor(config.image_size, len(config.towers)))
        key = select_key(norm_stats, statistics, "norm_stats")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, norm_stats, key, files)

    @classmethod
    def create_tiny(
        cls,
        model: "TinyModelConfig",
        spec: "SimulatorSpec",
        texts: Iterable[str],
        statistics: dict[str, Any],
        *,
        seed: int = 0,
        **facts: Any,
    ) -> Self:
        """See `Policy.create_tiny`. `facts` are further fields of the config."""
        with tempfile.TemporaryDirectory() as folder:
            config = tiny_config(
                cls.config_type,
                vocabulary=build_tokenizer(texts, Path(folder)),
                image_size=spec.height,
                action_dim=spec.action_dim,
                proprioception_dim=spec.proprioception_dim,
                cameras=len(spec.cameras),
                **model.model_dump(exclude={"kind"}),
                **facts,
            )
            return cls.create(config, {spec.name: statistics}, Path(folder), seed=seed)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        statistics: str | None = None,
        merge: bool = True,
        **overrides: Any,
    ) -> Self:
        """See `Policy.load`; `overrides` are fields of the config."""
        made, found = cls.skeleton(directory, statistics, **overrides)
        for remark in remarks(made, found, dtype):
            if remark.warning:
                _log.warning("%s: %s", directory, remark.text)
        return fill(made, found, device, dtype, merge)

    @classmethod
    def skeleton(cls, directory: Path, statistics: str | None = None, **overrides: Any) -> tuple[Self, Directory]:
        """The policy of a directory with parameters on the meta device, and what was read.

        `overrides` are fields of the config. Raises CheckpointError or ConfigError.
        """
        found = read_directory(directory, statistics)
        config = cls.configure(found, overrides)
        config, found = with_critic(config, found, overrides)
        files = checkpoint.read_carried(found.path)
        if TOKENIZER not in files:
            raise missing(found.path / TOKENIZER)
        made = cls(config, found.norm_stats, found.statistics, files, allocate=False, source=found.source)
        made.base = found.weights
        made.layout = {name: stored.file for name, stored in found.layout.items()}
        return made, found

    @classmethod
    def examine(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> CheckpointContents:
        """See `Policy.examine`. Weights are looked through, one after another, and not kept."""
        return examine(cls, directory, statistics, dtype, overrides)

    @classmethod
    def outline(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> Self:
        """See `Policy.outline`. Of the weights, headers alone are read."""
        made, found = cls.skeleton(directory, statistics, **overrides)
        return made.typed(dtype or found.dtype)

    @classmethod
    def outline_size(cls, size: str, dtype: torch.dtype, **overrides: Any) -> Self:
        """See `Policy.outline_size`."""
        config, statistics, files = describe_size(cls.config_type, size, overrides)
        return cls(config, statistics, size, files, allocate=False).typed(dtype)

    def typed(self, dtype: torch.dtype) -> Self:
        """This policy with parameters of a type, but for the parts that are always float32."""
        self.to(dtype)
        for name, module in self.named_children():
            if name in FLOAT32:
                module.float()
        return self

    def activations(self) -> Activations:
        """See `Policy.activations`."""
        return count_activations(self)

    @classmethod
    def conventions(cls, found: Directory, config: PrismaticConfig) -> dict[str, str]:
        """What was taken for granted of a directory, and from where: lines for people, by title."""
        lines = {} if config.prompt == "llama2" else {"prompt": f"{config.prompt}'s, by llm_backbone_id"}
        if "treadle" in found.config:
            return lines
        family, reason = recognize(found.path, found.config)
        if family is Family.UNKNOWN and cls.kind == Family.OPENVLA.value:
            reason = f"{reason}; {DOUBT}"
        elif family.value != cls.kind:
            reason = "as policy.kind says"
        return {"taken for": f"{cls.kind}: {reason}", **lines}

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """See `Policy.save`: in the published layout. Adapters without `merge` name the directory that the policy was
        loaded from, which must stay where it is.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        main: dict[str, Tensor] = {}
        for name, tensor in adapters.plain_state(self).items():
            part, _, rest = name.partition(".")
            if part in self.sources and part not in PARTS:
                parts.setdefault(part, {})[rest] = tensor
            else:
                main[name] = tensor
        files = {
            **self.files,
            checkpoint.CONFIG: checkpoint.dump_json(to_json(self.config, self.norm_stats)),
            checkpoint.STATISTICS: checkpoint.dump_json(self.norm_stats),
        }
        tensors = {self.sources[part].file: self.sources[part].names(content) for part, content in parts.items()}
        if merge or not adapters.layers(self):
            tensors |= self._main_files(main)
        else:
            if self.base is None:
                raise ConfigError("an adapter is saved alone beside a base, and this policy was made, not loaded")
            tensors |= {file: x for file, x in self._main_files(main).items() if file != checkpoint.WEIGHTS}
            texts, content = adapters.written(self, self.base)
            files |= {f"{adapters.FOLDER}/{name}": text for name, text in texts.items()}
            tensors[f"{adapters.FOLDER}/{adapters.ADAPTER_WEIGHTS}"] = content
        checkpoint.write_directory(Path(directory), files, tensors, self.layout, adapters.exporter(self))

    def main_state(self) -> dict[str, Tensor]:
        """The tensors of the main weights as their files name them."""
        state = adapters.plain_state(self)
        own = {name for name in state if name.partition(".")[0] in OWN}
        return self._main_files({name: x for name, x in state.items() if name not in own})[checkpoint.WEIGHTS]

    def take_main(
        self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The main weights as this policy names them, given those of the files; a subclass may add what lies in files
        of their own in `directory`.
        """
        return weights

    def make_part(self, name: str, device: torch.device) -> bool:
        """Make a part afresh that its directory has no file of; False where it must have one."""
        return False

    def _main_files(self, main: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The files of the main weights."""
        return {checkpoint.WEIGHTS: main}
