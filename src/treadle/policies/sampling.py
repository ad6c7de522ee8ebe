"""How actions are drawn."""

from dataclasses import dataclass

from treadle.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that actions are drawn from; one definition for acting and for evaluation."""

    temperature: float = 1.0
    """Divides logits, or multiplies a density's scale; 0 takes the most likely action."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability after temperature and top-k reaches this."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a value outside its range."""
        if not self.temperature >= 0:
            raise ConfigError(f"sampling.temperature: {self.temperature}; allowed: 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k: {self.top_k}; allowed: 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p: {self.top_p}; allowed: above 0, at most 1 (all)")


def check_sampling(sampling: object) -> None:
    """Raises ConfigError for what is no `Sampling`, such as None."""
    if not isinstance(sampling, Sampling):
        raise ConfigError(f"sampling: {sampling!r}; give a treadle.Sampling, such as Sampling(temperature=0)")
