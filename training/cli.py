"""The parser of `mull train`: Lightning's command line over `TrainingModule` and any data module.

Every argument of the trainer, the module and the data module is a field of the YAML file and an option of the command
line; the options after --config override the files, and a later --config overrides an earlier one.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.seed import max_seed_value
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from yaml.representer import RepresenterError

from mull.checkpoints.files import path_of, safe_loader
from mull.checkpoints.plugins import import_plugins
from mull.models.loop import check_count
from mull.training.alarms import Alarms
from mull.training.callbacks import Calibration, DepthValidation, Throughput, check_callbacks, check_monitored
from mull.training.data.stream_data import StreamData
from mull.training.help import page_of_train
from mull.training.identity import decisive
from mull.training.mistakes import check_linked, check_mappings, check_nulls, in_words
from mull.training.mistakes import plain as plain_words
from mull.training.module import TrainingModule
from mull.training.progress import make_progress
from mull.training.ranks import expect_unused
from mull.training.records import Choice, make_loggers
from mull.training.saving import Saving
from mull.training.sharding import Sharded
from mull.training.shipped import with_paths
from mull.training.start import Start, base_configuration, check_architecture, give_weights, read_start
from mull.training.states import StateFiles

MAX_THREADS = 1024  # thousands more, and the process ends without a word of Python's
# What the trainer does where the configuration says nothing; its other defaults are Lightning's own.
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 1000,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def read_configuration(args: list[str]) -> TrainingCLI:
    """Parse the arguments of `mull train`; build the network, the data module and the trainer. Nothing is written.

    Raises:
        ValueError: no configuration is named, or a value in it is wrong.
    """
    if not args:
        raise ValueError("name the run: mull train --config FILE, or a name, as mull train --config demo")
    named, args = split_off(plain(args))
    import_plugins(named.plugin)  # before any field is read: the fields may name their classes
    start = None if named.start is None else read_start(named.start)
    args = with_paths(args)
    check_mappings(args)
    check_linked(args)
    if start is not None:
        args = ["--config", base_configuration(start), *args]
    run = TrainingCLI(
        TrainingModule,
        pl.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False, "prog": "mull train", "allow_abbrev": False},
        args=args,
        run=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # nothing of ours is read back from a pickle
    )
    check_epochs(run)
    callbacks: list[pl.Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
    if not named.plugin:  # which may log what it likes
        check_monitored(callbacks, run.model)
    check_callbacks(callbacks, -1 if run.trainer.fast_dev_run else run.trainer.max_steps)  # type: ignore[attr-defined]
    if isinstance(run.datamodule, StreamData):  # which is never shuffled; the trainer takes it for that
        warnings.filterwarnings("ignore", ".*requested to overfit but enabled train dataloader shuffling.*")
    expect_unused(run.trainer, run.model.may_leave_out)
    if isinstance(run.trainer.strategy, Sharded):
        run.model.check_dividing()  # before further processes are started
        averages = [type(each).__name__ for each in callbacks if isinstance(each, WeightAveraging)]
        if averages:
            raise ValueError(f"{averages[0]} copies the network, which fsdp2 divides: leave it out, or take ddp")
    else:  # its callback of averages takes our configure_model, which compiles, for one that divides the network
        warnings.filterwarnings("ignore", ".*WeightAveraging doesn't support sharding.*")
    run.start = start
    if start is not None:
        check_architecture(start, run.resolved["model"]["network"])
        give_weights(start, run.model, run.datamodule)
    return run


class TrainingCLI(LightningCLI):
    """A configured run.

    Attributes:
        model, datamodule, trainer: the `TrainingModule`, the data module and Lightning's Trainer.
        folder: folder of the run.
        start: the checkpoint folder that its first weights come from, as --from names it; None for random ones.
        states: folder of the trainer's states, inside it.
        saving: the callback that saves them.
        identity: what decides the weights of the run; known once the data is prepared.
        resolved: every field of the configuration with its value, but for the place of the run and its plugins.
    """

    folder: Path
    start: Start | None
    states: Path
    saving: Saving
    identity: dict[str, Any]
    resolved: dict[str, Any]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output", type=str, default=None, help="folder of the run (default: checkpoints/<config>)"
        )
        parser.add_argument(
            "--threads", type=int | None, default=None, help="CPU threads of torch (default: measured at the start)"
        )
        parser.add_argument(
            "--plugin", type=str | None, default=None, help="module or .py file of your own to import first; repeatable"
        )
        parser.add_argument(
            "--from",
            type=str | None,
            default=None,
            help="folder or name of a checkpoint whose weights the run starts from",
        )
        parser.add_argument("--save_every", type=int, default=100, help="steps between resumable states")
        parser.add_argument(
            "--logger",
            type=Choice,
            default="csv",
            help="where a run can be looked at, beside metrics.csv; wandb starts offline, `wandb sync` uploads",
        )
        # what the network must know of the data, and one seed for everything
        parser.link_arguments("data.vocab_size", "model.network.init_args.config.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.stop_tokens", "model.network.init_args.config.stop_tokens", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        asked = [at for at, word in enumerate(args) if word in ("-h", "--help")]
        if asked:
            print(page_of_train(parser, " ".join(args[asked[0] + 1 :])))
            raise SystemExit(0)
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            # torch.nn.Module is the class that the parser takes where fields of a network are given and no class_path
            if not any(sign in str(error) for sign in ("'torch.nn.Module'", "required: model.network")):
                raise in_words(error, parser) from error
            raise ValueError(
                "model.network has no class_path; a configuration that only changes some fields comes after its base: "
                "mull train --config BASE --config CHANGES (the first comment of each file in configs/ has the line)"
            ) from error

        seed = self.config.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed <= max_seed_value:
            raise ValueError(f"seed_everything is {seed}; give an integer from 0 to {max_seed_value:,}")

    def before_instantiate_classes(self) -> None:
        if self.config.plugin is not None:
            raise ValueError(f"plugins are named on the command line, in full: --plugin {self.config.plugin}")
        if self.config["from"] is not None:
            raise ValueError(f"weights to start from are named on the command line: --from {self.config['from']}")
        check_count("save_every", self.config.save_every)
        if self.config.trainer.max_steps != -1 or self.config.trainer.max_epochs is None:  # -1: max_epochs alone
            check_count("trainer.max_steps", self.config.trainer.max_steps)
        check_count("trainer.accumulate_grad_batches", self.config.trainer.accumulate_grad_batches)
        if self.config.trainer.check_val_every_n_epoch is not None:
            check_count("trainer.check_val_every_n_epoch", self.config.trainer.check_val_every_n_epoch)
        devices = self.config.trainer.devices
        if not isinstance(devices, int | list) and not re.fullmatch(r"auto|-1|\d+( *, *\d+)*,?", str(devices)):
            raise ValueError(f"trainer.devices is {devices}; give a number, a list of numbers, or auto")
        limit, every = self.config.trainer.gradient_clip_val, self.config.trainer.val_check_interval
        if limit is not None and not limit >= 0:  # below 0 it would turn gradients round; NaN is no limit either
            raise ValueError(f"trainer.gradient_clip_val is {limit}; give 0 or more, where 0 and null clip nothing")
        clipping = self.config.trainer.gradient_clip_algorithm
        if clipping not in (None, "norm"):
            raise ValueError(
                f"trainer.gradient_clip_algorithm is {clipping}; leave it out, or give norm: gradients are clipped by "
                "their norm over all parameters"
            )
        if isinstance(every, int | float) and not every > 0:
            raise ValueError(f"trainer.val_check_interval is {every}; give 1 or more steps, or a share of an epoch")
        if self.config.threads is not None:
            if check_count("threads", self.config.threads) > MAX_THREADS:
                raise ValueError(f"threads is {self.config.threads}, above the limit of {MAX_THREADS:,}: give fewer")
            torch.set_num_threads(self.config.threads)
        if (self.config.trainer.limit_train_batches or 0) > sys.maxsize:
            raise ValueError(
                f"trainer.limit_train_batches is {self.config.trainer.limit_train_batches}, above {sys.maxsize:,}: "
                "give less"
            )
        asked = self.config.output
        self.folder = default_folder(self.config) if asked is None else path_of(asked, "--output")
        self.states = self.folder / "trainer"
        self.resolved = self.resolve(self.config)
        check_nulls(self.resolved)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Union subtypes" in str(error):  # what a class refuses, as the parser hands it on
                raise ValueError(plain_words(str(error))) from error
            raise
        except TypeError as error:
            if "`devices`" in str(error):  # a list of them on CPUs
                raise ValueError(f"trainer.devices is {self.config.trainer.devices}: {error}") from error
            raise

    def resolve(self, config: Any) -> dict[str, Any]:
        """All fields of a parsed configuration but its places: moved files are no other run, no record has plugins."""
        try:
            text = self.parser.dump(config, skip_unset=False, skip_validation=True)  # parsing did it
            fields = yaml.load(text, safe_loader(text))
        except RepresenterError as error:  # what a class of others has by itself, as Interval.step
            raise ValueError(
                f"{error.args[-1]!r}, which a class has by itself, cannot be kept in a file: give that argument, as a "
                "text or a number"
            ) from error
        return {name: value for name, value in fields.items() if name not in ("config", "output", "plugin", "from")}

    def completed(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A configuration that an earlier version has recorded, with the defaults of fields that came after it.

        One that this version cannot read is left as it is, and so is that of this very run, which lacks nothing.
        """
        if recorded == decisive(self.resolved):
            return recorded
        trainer = {name: value for name, value in recorded["trainer"].items() if value is not None}
        try:
            return self.resolve(self.parser.parse_object({**recorded, "trainer": trainer}))
        except (ArgumentError, ValueError, TypeError, KeyError, AttributeError):
            return recorded

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer of the configuration with our checkpoints, logger and callbacks; nothing is written yet."""
        self.saving = Saving(self.states, self.config.save_every, lambda: self.identity)
        # They stand behind those of the configuration. The trainer moves `saving` to the end, so that a saved state
        # holds what the other callbacks did at that step.
        self.trainer_defaults["callbacks"] = [Calibration(), DepthValidation(), Throughput(), Alarms(), self.saving]
        ours = make_loggers(
            self.config.logger, self.states, self.folder.resolve().name, configuration_name(self.config)
        )
        trainer = super().instantiate_trainer(logger=self.config_init.trainer.logger or ours, **kwargs)
        if isinstance(trainer.strategy.checkpoint_io, TorchCheckpointIO):  # unless the configuration brings its own
            trainer.strategy.checkpoint_io = StateFiles()
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if type(trainer.progress_bar_callback) is RichProgressBar:  # Lightning's own choice
            callbacks[callbacks.index(trainer.progress_bar_callback)] = make_progress()
        return trainer


def split_off(args: list[str]) -> tuple[Namespace, list[str]]:
    """The values of --plugin (all of them) and --from (as `start`), which come first, and the other arguments."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("--from", dest="start")
    return parser.parse_known_args(args)


def check_overfitting(run: TrainingCLI, few: int) -> None:
    """Raise a ValueError where what is asked for beside it does not go with a few batches that come over and over."""
    trainer, data, here = run.config.trainer, run.datamodule, f"trainer.overfit_batches is {few}"
    others = {
        "data.init_args.advance": getattr(data, "advance", None) is not None,
        "data.init_args.repeat": getattr(data, "repeat", 1) > 1,
        "model.carry": run.model.carried is not None,
    }
    for name in (name for name, asked in others.items() if asked):
        raise ValueError(f"{here}, and {name} has what comes next depend on what came before: leave one of them out")
    often = trainer.val_check_interval
    if isinstance(often, int) and often > few and trainer.check_val_every_n_epoch is not None:
        raise ValueError(f"{here}, and trainer.val_check_interval {often}, in an epoch of {few}: give {few} or less")


def check_epochs(run: TrainingCLI) -> None:
    """Raise a ValueError if epochs are to be counted, or a share is to be taken, where the data never ends."""
    trainer, data = run.config.trainer, run.datamodule
    if not isinstance(data, StreamData):
        return
    never_ends = f"and the data of {type(data).__name__} never ends"
    if isinstance(trainer.overfit_batches, float) and trainer.overfit_batches > 0:
        raise ValueError(
            f"trainer.overfit_batches is the share {trainer.overfit_batches}, {never_ends}; give a number of batches, "
            "as 2, or 0 to leave it out"
        )
    if trainer.overfit_batches:
        check_overfitting(run, trainer.overfit_batches)
    endless = trainer.limit_train_batches is None and not trainer.overfit_batches
    if endless and trainer.max_epochs not in (None, -1):
        raise ValueError(
            f"trainer.max_epochs is {trainer.max_epochs}, {never_ends}; say how long with trainer.max_steps, or say "
            "with trainer.limit_train_batches how many batches an epoch has"
        )


def default_folder(config: Any) -> Path:
    """checkpoints/<name of the last configuration file>, for a run without --output."""
    name = configuration_name(config)
    if not name:
        raise ValueError("name the run: pass --config FILE or --output FOLDER")
    return Path("checkpoints") / name


def configuration_name(config: Any) -> str:
    """The name of the last configuration file; empty without one."""
    named = bool(config.config) and str(config.config[-1]).endswith((".yaml", ".yml", ".json"))
    return Path(str(config.config[-1])).stem if named else ""


def plain(args: list[str]) -> list[str]:
    """The arguments with `--trainer.logger NAME` as `--logger NAME`, where it is the name of a log of ours."""
    following = [*args[1:], ""]
    joined = [f"--logger={arg.partition('=')[2]}" if is_log(arg) else arg for arg in args]
    return ["--logger" if is_log(f"{arg}={after}") else arg for arg, after in zip(joined, following, strict=True)]


def is_log(arg: str) -> bool:
    """Whether an argument is `--trainer.logger=NAME` with the name of a log of ours."""
    option, _, value = arg.partition("=")
    return option == "--trainer.logger" and value in get_args(Choice)


def quiet() -> None:
    """Keep the trainer's product tips and hardware notes off the screen; warnings about the run still show."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*tensorboardX.*", ".*LightningCLI's args.*", ".*LeafSpec.*",
                    ".*IterableDataset.*__len__.*", ".*Checkpoint directory.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message)
