"""What every adversarially trained task shares: two optimisers, one step count, one average."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lmdvid import checkpoints, losses
from lmdvid.ema import ExponentialMovingAverage
from lmdvid.navigator import LatentNavigator
from lmdvid.ops.recording import RecordedModule, records
from lmdvid.tasks import nonfinite as bad_numbers
from lmdvid.tasks.finite import Watch, finite_gradient, poison
from lmdvid.tasks.gradients import send_what_learns
from lmdvid.tasks.nonfinite import NonFiniteLossError

__all__ = [
    "AdversarialTask",
    "Batch",
    "NonFiniteLossError",
    "PrecisionError",
    "PredictionError",
    "StrategyError",
]

Batch = dict[str, Any]


class PrecisionError(ValueError):
    """The trainer's precision is one that the networks cannot run in."""


class StrategyError(ValueError):
    """The trainer's strategy is one that the task cannot be trained with."""


class PredictionError(ValueError):
    """The data module gives something else to predict from than the task takes."""


class AdversarialTask(L.LightningModule):
    """A generator against a discriminator, one step of each per batch, on the same samples.

    A task defines `generator_step`; everything a paper does not decide is here.

    Args:
        generator: What is trained and averaged. Its `config` holds its constructor's arguments.
        discriminator: Samples to logits (B, 1), or to several of them by name where it is several
            discriminators; their losses, and their penalties, are summed. None trains without.
        lr: Adam's learning rate before the scaling below.
        betas: Adam's betas before the scaling below.
        generator_every: Adam's settings of the generator are scaled by c = k / (k + 1), as if a
            regulariser ran every k-th step (StyleGAN2, Appendix B): lr c and betas
            (beta1^c, beta2^c). 0 leaves them unscaled.
        discriminator_every: The same for the discriminator; also how often R1 runs.
        adversarial: Weight of the generator's adversarial loss; at 0 the discriminator rests.
        r1: Weight gamma of the R1 penalty gamma / 2 E |grad D|^2 on real samples; 0 turns it off.
        ema: Decay of the generator's moving average, which is validated, saved and shown; at 0
            it is the generator itself.
        nonfinite: What to do where a loss or a gradient is NaN or infinite: `stop`, or `skip`,
            which leaves the batch out, names it and counts (`nonfinite/skipped` in the log). With
            `skip` the host waits for a GPU at every step. With `stop` it does not: weights take no
            such step, but that there was one is seen a few steps later, or before a checkpoint.
        nonfinite_limit: So many batches in a row are left out; at the next one weights and
            optimisers of the run's last good checkpoint are taken up (`nonfinite/returns`), and
            the data go on.
        discriminator_first: Let the discriminator step first; else the generator does.
    """

    generator_loss = staticmethod(losses.generator_loss)
    discriminator_loss = staticmethod(losses.discriminator_loss)

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        lr: float,
        betas: tuple[float, float],
        generator_every: int,
        discriminator_every: int,
        adversarial: float,
        r1: float,
        ema: float,
        discriminator_first: bool = False,
        nonfinite: bad_numbers.Policy = "stop",
        nonfinite_limit: int = 10,
    ) -> None:
        super().__init__()
        if nonfinite_limit < 0:
            raise ValueError(f"nonfinite_limit={nonfinite_limit}: choose 0 or more")
        self.automatic_optimization = False
        self.generator = generator
        # Without one it is never asked.
        self.discriminator = cast(nn.Module, discriminator)
        self.generator_ema = ExponentialMovingAverage(generator, ema)
        self.lr = lr
        self.betas = betas
        self.generator_every = generator_every
        self.discriminator_every = discriminator_every
        self.adversarial = adversarial
        self.r1 = r1
        self.discriminator_first = discriminator_first
        self._skipping = bad_numbers.Skipping(nonfinite_limit) if nonfinite == "skip" else None
        self._watch = Watch(lag=4)  # the reports of two steps of both networks
        self._recorded: dict[str, RecordedModule] = {}
        self._launched: set[str] = set()
        self._judged = ""
        self._seed: int | None = None

    def generator_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Generate from a training batch.

        Returns:
            The generator's losses by name, without the adversarial one; the fake samples with
            their graph; the real samples to tell them from.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it generates")

    def discriminate(self, samples: Tensor, batch: Batch) -> Tensor | dict[str, Tensor]:
        """The discriminator's logits of fake or real samples; a task may tell it more."""
        return self.discriminator(samples)

    def replayed(self, use: str, module: nn.Module, *given: Any) -> Any:
        """Call a module; on one GPU its passes are recorded and replayed, see `RecordedModule`.

        Args:
            use: What for: calls before the same backward pass need names of their own.
            module: One that does the same operations at every step.
            given: Tensors and other values.
        """
        if not self._waits_for_nothing:  # only GPUs record
            return module(*given)
        if self.trainer.world_size > 1 and records() != "all":
            if use not in self._launched:
                self._launched.add(use)
                rank_zero_info(
                    f"{use}: launched operation by operation, since recording was never tried with "
                    "several GPUs; LMDVID_GRAPHS=all records"
                )
            return module(*given)
        if use not in self._recorded:
            self._recorded[use] = RecordedModule(module)
        return self._recorded[use](*given)

    def judge_replayed(self, samples: Tensor, *given: Any) -> Any:
        """The discriminator's logits, replayed where no second derivatives are asked for."""
        if self._judged == "penalised":
            return self.discriminator(samples, *given)
        return self.replayed(f"discriminator {self._judged}", self.discriminator, samples, *given)

    def adversarial_terms(self, fake: Tensor, real: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The generator's losses against the discriminator, by name."""
        return {
            f"adversarial{name}": self.adversarial * self.generator_loss(logits)
            for name, logits in self._judge(fake, batch, "for the generator").items()
        }

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the generator and one of the discriminator, on the same samples."""
        generator, discriminator = self._both_optimizers()
        # Lightning counts every optimiser's steps in `global_step`, which would double max_steps
        # and every period (Lightning issue 17958). The loop resets the hooks at each batch.
        if discriminator is not None:
            discriminator._on_before_step = discriminator._on_after_step = lambda: None
        penalised = self.r1 > 0 and self.global_step % max(1, self.discriminator_every) == 0
        if self._skipping is not None:
            self._skipping.remember(self.generator, self.discriminator)

        with self.toggled_optimizer(generator):
            terms, fake, real = self.generator_step(batch)
        criticise = partial(self._discriminator_step, discriminator, fake.detach(), real, batch)
        if self.discriminator_first and not criticise(penalised):
            return
        with self.toggled_optimizer(generator):
            if self.adversarial > 0:
                terms |= self.adversarial_terms(fake, real, batch)
            if not self._descend(generator, terms, batch):
                return
        for module in self.generator.modules():
            if isinstance(module, LatentNavigator):
                module.align_signs()
        self.generator_ema.update(self.generator)
        self._log_terms("generator", terms)
        if self.discriminator_first or criticise(penalised):
            self._all_was_finite()

    def _discriminator_step(
        self, optimizer: Any, fake: Tensor, real: Tensor, batch: Batch, penalised: bool
    ) -> bool:
        """Learn to tell fake from real, unless the generator does without; say whether it went."""
        if self.adversarial == 0:
            return True
        with self.toggled_optimizer(optimizer):
            real = real.detach().requires_grad_(penalised)
            real_logits = self._judge(real, batch, "penalised" if penalised else "real")
            fake_logits = self._judge(fake, batch, "fake")
            terms = {
                f"adversarial{name}": self.discriminator_loss(logits, fake_logits[name])
                for name, logits in real_logits.items()
            }
            if penalised:
                for name, logits in real_logits.items():
                    penalty = losses.r1_penalty(real, logits, self.r1)
                    terms[f"r1{name}"] = penalty * max(1, self.discriminator_every)
            if not self._descend(optimizer, terms, batch):
                return False
        self._log_terms("discriminator", terms)
        return True

    def _both_optimizers(self) -> tuple[Any, Any]:
        optimizers = self.optimizers()
        return tuple(optimizers) if isinstance(optimizers, list) else (optimizers, None)  # pyright: ignore[reportReturnType]

    def _judge(self, samples: Tensor, batch: Batch, what: str) -> dict[str, Tensor]:
        """Logits by the discriminator's name, as it follows the name of a loss."""
        self._judged = what
        logits = self.discriminate(samples, batch)
        if isinstance(logits, Mapping):
            return {f"_{name}": value for name, value in logits.items()}
        return {"": logits}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam twice, with StyleGAN2's scaling for lazy regularisation."""
        optimizers = [self._adam(self.generator, self.generator_every)]
        if self.discriminator is not None:
            optimizers.append(self._adam(self.discriminator, self.discriminator_every))
        return optimizers

    def setup(self, stage: str) -> None:
        """Refuse what cannot work; lay the weights out as tensor cores want them."""
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise StrategyError(
                f"trainer.strategy {type(self.trainer.strategy).__name__} splits the weights, and "
                "the moving average and the orthonormal basis need them whole: use "
                "ddp_find_unused_parameters_true; what one GPU holds is below 5 GB"
            )
        if self.trainer.precision not in ("32-true", "64-true", "bf16-mixed", "16-mixed"):
            raise PrecisionError(
                f"trainer.precision is {self.trainer.precision}: the orthonormal basis needs "
                "float32 weights. Use bf16-mixed (or 32-true)"
            )
        if self.trainer.strategy.root_device.type == "cuda":
            for parameter in self.parameters():
                if parameter.ndim == 4:  # `Module.to` fails at the 3-D kernels of video networks
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if (
            self.trainer.precision == "bf16-mixed"
            and self.trainer.strategy.root_device.type == "cpu"
            and torch.backends.mkldnn.is_available()
            and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        ):
            rank_zero_warn(
                "this processor has no bf16 instructions and only imitates bf16-mixed, many times "
                "slower than float32: add --trainer.precision 32-true"
            )

    def on_fit_start(self) -> None:
        """Agree on the seed of the run, unless a checkpoint has brought it; forget another run."""
        self._watch = Watch(self._watch.lag)
        self._recorded.clear()
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_start(self) -> None:
        """Go on in the right epoch, after the validation that was to follow the last step.

        Of the network that rests in a backward pass, processes send each other no gradients.
        """
        checkpoints.continue_epoch(self.trainer)
        send_what_learns(self.trainer.strategy.model)
        checkpoints.make_up_validation(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let what a step draws depend on the run's seed, the step and the process alone.

        So a resumed run draws what an undisturbed one does, whatever validation, workers or the
        start of an epoch have drawn in between.
        """
        torch.manual_seed(hash((self._seed, self.global_step, self.global_rank)))

    def on_validation_start(self) -> None:
        """Let all processes judge one network: their batch norms have seen different clips.

        Raises:
            NonFiniteLossError: If there was a step with numbers that are none.
        """
        self._watch.look()
        if self.trainer.world_size > 1:
            buffers = list(self.generator_ema.network.buffers())
            first = self.trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
            for buffer, value in zip(buffers, first, strict=True):
                buffer.copy_(value)

    def on_train_end(self) -> None:
        """As before validation."""
        self.on_validation_start()

    def teardown(self, stage: str) -> None:
        """Give back what was recorded: Lightning moves the weights after a run."""
        self._recorded.clear()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed of the run over."""
        self._seed = checkpoint.get("lmdvid_seed")
        if self._skipping is not None and bad_numbers.KEY in checkpoint:
            self._skipping.load(checkpoint[bad_numbers.KEY])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's seed, and what rebuilds the generator without this task.

        Raises:
            NonFiniteLossError: As before validation; there is no checkpoint then.
        """
        self._watch.look()
        checkpoint["lmdvid_seed"] = self._seed
        if self._skipping is not None:
            checkpoint[bad_numbers.KEY] = self._skipping.state()
        network = type(self.generator)
        checkpoint["lmdvid_generator"] = {
            "network": f"{network.__module__}.{network.__qualname__}",
            "config": dict(self.generator.config),  # pyright: ignore[reportArgumentType, reportCallIssue]
        }

    def _adam(self, network: nn.Module, every: int) -> torch.optim.Optimizer:
        c = every / (every + 1) if every else 1.0
        beta1, beta2 = self.betas
        betas = (beta1**c, beta2**c)
        adam = torch.optim.Adam(network.parameters(), self.lr * c, betas=betas, fused=True)
        adam.register_load_state_dict_post_hook(_lay_out)
        return adam

    def _descend(self, optimizer: Any, terms: dict[str, Tensor], batch: Batch) -> bool:
        """Take a step, unless something is not finite; say whether it was taken."""
        loss = poison(torch.stack(list(terms.values())).sum())
        optimizer.zero_grad()
        # Lightning runs this step under autocast, which would reach the backward of the parts
        # that ask for float32.
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)
        groups = optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        # The scaler of 16-mixed expects infinite gradients, and deals with them itself.
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            finite = self.trainer.strategy.reduce_boolean_decision(bool(loss.isfinite()))
        elif self._skipping is None and self._waits_for_nothing:
            finite = finite_gradient(parameters)
            # Fused Adam leaves the weights as they are where this is 1.
            optimizer.optimizer.found_inf = finite.logical_not().float()
            step, names, clips = self.global_step, list(terms), batch.get("key")
            optimizer.step()

            def look(values: list[float]) -> None:
                if not values[0]:
                    self._not_finite(step, dict(zip(names, values[1:], strict=True)), clips)

            self._watch.send(torch.stack([finite, *(v.detach() for v in terms.values())]), look)
            return True
        else:
            finite = bool(finite_gradient(parameters))
        if finite:
            optimizer.step()
            return True
        optimizer.zero_grad()
        values = {name: value.item() for name, value in terms.items()}
        self._not_finite(self.global_step, values, batch.get("key"))
        return False

    @property
    def _waits_for_nothing(self) -> bool:
        return self.device.type == "cuda"

    def _not_finite(self, step: int, terms: dict[str, float], clips: Iterable[Any] | None) -> None:
        values = ", ".join(f"{k} {v:.4g}" for k, v in terms.items())
        what = "gradient" if math.isfinite(sum(terms.values())) else "loss"
        reason = (
            f"{what} is not finite at step {step} ({values}); "
            f"clips of this batch: {', '.join(map(str, clips or ['unknown']))}"
        )
        if self._skipping is None:
            raise NonFiniteLossError(
                f"{reason}. The last checkpoint is kept; lower lr or remove the clips, then resume "
                "from it, or leave such batches out (model.init_args.nonfinite: skip)"
            )
        if self._skipping.skip(reason):
            self._skipping.go_back(self.trainer, reason)
        self._log_skipping()

    def _all_was_finite(self) -> None:
        if self._skipping is not None:
            self._skipping.in_a_row = 0
            self._log_skipping()

    def _log_skipping(self) -> None:
        if self._skipping is not None:
            self.log("nonfinite/skipped", float(self._skipping.skipped))
            self.log("nonfinite/returns", float(self._skipping.returns))

    def _log_terms(self, network: str, terms: dict[str, Tensor]) -> None:
        seldom = self._waits_for_nothing and isinstance(self.trainer, checkpoints.Trainer)
        for name, value in terms.items():
            shown = network == "generator"
            self.log(f"{network}/{name}", value.detach(), prog_bar=shown and not seldom)
            if shown and seldom:
                self.trainer.shown[f"{network}/{name}"] = value.detach()  # pyright: ignore[reportAttributeAccessIssue]


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Averages as their weights lie in memory: fused Adam reads both in one order.

    A checkpoint may come from a device on which weights are laid out otherwise.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
