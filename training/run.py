"""One training run: read the YAML, go on where the folder left off, fit, and leave a checkpoint folder behind.

FOLDER/                 the checkpoint folder (see checkpoints/store.py), written when training ends
FOLDER/trainer/         config.yaml, last.ckpt (everything needed to resume), logs/
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shlex
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from mull.checkpoints.files import read_yaml, replace_all
from mull.checkpoints.store import TRAINING, save
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.results import to_json
from mull.inference.measure.table import print_table
from mull.models import LanguageModel
from mull.models.families import family_of
from mull.models.loop import check_count
from mull.training.callbacks import Calibration, DepthValidation, ProgressBar, Throughput, calibrate
from mull.training.module import NonFiniteLossError, TrainingModule

# settings of the trainer that decide what the weights become; the others only decide what is seen of it
DECIDES = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "callbacks",
    "devices",
    "num_nodes",
    "limit_train_batches",
)


class TrainingCLI(LightningCLI):
    """Lightning's command line over `TrainingModule` and any data module, plus where the run goes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str | None, default=None, help="folder of the run (checkpoints/<config>)")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads of torch (its own choice)")
        parser.add_argument("--save_every", type=int, default=100, help="steps between resumable states")
        parser.add_argument(
            "--logger", type=Literal["csv", "wandb"], default="csv", help="wandb starts offline; `wandb sync` uploads"
        )
        # what the network must know of the data, and one seed for everything
        parser.link_arguments("data.vocab_size", "model.network.init_args.config.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.stop_tokens", "model.network.init_args.config.stop_tokens", apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_instantiate_classes(self) -> None:
        check_count("save_every", self.config.save_every)
        check_count("trainer.max_steps", self.config.trainer.max_steps)
        if self.config.threads is not None:
            check_count("threads", self.config.threads)
            torch.set_num_threads(self.config.threads)
        self.folder = Path(self.config.output or default_folder(self.config))
        self.resolved: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        for where in ("config", "output"):  # the run is what it is, wherever it lies
            self.resolved.pop(where, None)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer of the YAML with our checkpoints, logger and callbacks; nothing is written yet."""
        state = self.folder / "trainer"
        saving = ModelCheckpoint(
            dirpath=state, filename="last", every_n_train_steps=self.config.save_every, enable_version_counter=False
        )
        # beside those of the YAML; the trainer moves `saving` to the end, where it sees what the others did to a step
        self.trainer_defaults["callbacks"] = [Calibration(), DepthValidation(), Throughput(), saving]
        logger = self.config_init.trainer.logger or make_logger(self.config.logger, state)
        trainer = super().instantiate_trainer(logger=logger, **kwargs)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is not None:
            callbacks[callbacks.index(trainer.progress_bar_callback)] = ProgressBar()
        return trainer


def train(args: list[str]) -> Path:
    """Run `mull train ARGS`; return the folder of the finished run.

    Raises:
        ValueError: the folder holds another run, or the configuration is wrong.
        NonFiniteLossError: the loss is no number any more; the last good state stays.
    """
    quiet()
    if not args:
        raise ValueError("name the run: mull train --config FILE, for example configs/demo.yaml")
    cli = TrainingCLI(
        TrainingModule,
        pl.LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults={
            "max_steps": 1000,
            "log_every_n_steps": 10,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
        seed_everything_default=0,
        parser_kwargs={"exit_on_error": False, "prog": "mull train"},
        args=args,
        run=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # nothing of ours is read back from a pickle
    )
    folder, last = cli.folder, cli.folder / "trainer" / "last.ckpt"
    if is_finished(folder, cli.resolved):
        print(f"{folder} holds the finished run of this configuration; pass --output to train it anew")
        return folder
    cli.datamodule.prepare_data()  # text that cannot be read is the user's to mend before anything is written
    resume = last if last.exists() else None
    if resume is not None:
        check_state(last)
    replace_all(last.parent, {"config.yaml": yaml.safe_dump(cli.resolved, sort_keys=False).encode()})
    parameters = sum(p.numel() for p in cli.model.network.parameters())
    print(
        f"{'going on with' if resume else 'training'} {folder}: {parameters:,} parameters, "
        f"{cli.trainer.max_steps} steps, {torch.get_num_threads()} threads, {cli.trainer.strategy.root_device}"
    )
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)
    except NonFiniteLossError as error:
        kept = f"the last good state stays in {last}" if last.exists() else "no state was saved yet"
        raise NonFiniteLossError(
            f"{error}; {kept}; lower the learning rate or warm up longer, with another --output"
        ) from None
    cli.trainer.save_checkpoint(last, weights_only=False)  # the whole state
    if cli.trainer.is_global_zero:
        # what the state holds is what is exported: the average where a callback averages, resumed at the end or not
        cli.model.load_state_dict(torch.load(last, weights_only=True, map_location="cpu")["state_dict"])
        export(cli, args)
    return folder


def check_state(last: Path) -> None:
    """Raise a ValueError if the state to go on from cannot be read."""
    try:
        torch.load(last, weights_only=True, mmap=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{last} is damaged ({reason}); remove {last.parent} to train anew") from error


def export(cli: TrainingCLI, args: list[str]) -> None:
    """Write the checkpoint folder, with accuracy or loss by iteration count on held-out data."""
    network, data = cli.model.network, cli.datamodule
    if not isinstance(network, LanguageModel) or not is_known(network):
        print(f"a {type(network).__name__} has no folder format; its weights are in {cli.folder / 'trainer'}")
        return
    network.eval()
    calibrate(network, data.val_dataloader())
    depth = None
    if hasattr(data, "evaluation_batches"):
        counts = cli.model.validate_at or None
        results = evaluate(network, data.evaluation_batches(), counts, bytes_per_token=data.bytes_per_token)
        print_table(results)
        depth = {"command": shlex.join(["mull", "train", *args]), **json.loads(to_json(results))}
    text = (cli.folder / "trainer" / "config.yaml").read_text()
    save(network, cli.folder, tokenizer=getattr(data, "tokenizer", None), training=text, depth=depth)
    print(f"wrote {cli.folder}")


def is_known(network: LanguageModel) -> bool:
    try:
        family_of(network)
    except ValueError:
        return False
    return True


def is_finished(folder: Path, resolved: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, finished; False if it is empty or holds the run unfinished.

    Raises:
        ValueError: the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder with --output")
    remedy = "pass another --output, or remove the folder"
    started = (folder / "trainer" / "last.ckpt").exists()  # a run that saved no state is nobody's loss
    for path, finished in ((folder / TRAINING, True), (folder / "trainer" / "config.yaml", False)):
        if path.exists() and (finished or started):
            different = differences(decisive(read_yaml(path)), decisive(resolved))
            if different:
                raise ValueError(f"{folder} holds a run of another configuration ({different[0]}); {remedy}")
            return finished
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a checkpoint whose training is unknown; {remedy}")
    return False


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what the weights become."""
    trainer = {name: config.get("trainer", {}).get(name) for name in DECIDES}
    return {name: config.get(name) for name in ("seed_everything", "model", "data")} | {"trainer": trainer}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested configurations differ, as `field: old, now new`."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(one) + [key for key in other if key not in one]
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}.{key}".strip("."))]
    return [] if one == other else [f"{path}: {one}, now {other}"]


def default_folder(config: Any) -> Path:
    if not config.config:
        raise ValueError("name the run: pass --config FILE or --output FOLDER")
    return Path("checkpoints") / Path(str(config.config[-1])).stem


def make_logger(name: str, folder: Path) -> Logger:
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        return WandbLogger(project="mull", save_dir=folder)
    return CSVLogger(folder, name="logs")


def quiet() -> None:
    """Keep the trainer's product tips and hardware notes off the screen; warnings about the run still show."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*tensorboardX.*", ".*LightningCLI's args.*", ".*LeafSpec.*",
                    ".*IterableDataset.*__len__.*", ".*Checkpoint directory.*"):  # fmt: skip
        warnings.filterwarnings("ignore", message)
