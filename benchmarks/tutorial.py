"""The script that a user writes from the guides of Ray Tune, Lightning and Optuna.

ImageFolder with transforms, DataLoader, a LightningModule, TuneReportCheckpointCallback (metrics
only), OptunaSearch and ASHAScheduler in one Tuner, a CPU a trial. It knows nothing of the project:
networks, data and metrics are written as textbooks write them. Nothing in it is slow on purpose:
no checkpoints, no logger, no progress bar; DataLoader workers would only take CPU time from the
trials, which fill all cores.

    python benchmarks/tutorial.py --data DIR --image-size 64 --width 16 --trials 8 --max-epochs 10

takes about 3 minutes on 2 cores. ``--lrs`` and ``--epochs-per-trial`` make it repeat given trials;
`benchmarks/speed.py` does that.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

STARTED = time.monotonic()

import lightning as L  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

CLASSES = 20


class Butterflies(L.LightningDataModule):
    def __init__(self, root: str, image_size: int, batch_size: int):
        super().__init__()
        self.root, self.batch_size = Path(root), batch_size
        self.transform = transforms.Compose(
            [
                transforms.Resize((image_size, image_size)),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def setup(self, stage: str) -> None:
        self.train = datasets.ImageFolder(str(self.root / "train"), self.transform)
        self.valid = datasets.ImageFolder(str(self.root / "valid"), self.transform)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, batch_size=self.batch_size)


def classifier_a(image_size: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (image_size // 4) ** 2, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, CLASSES),
    )


class Encoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            ]
        )
        self.pool, self.dropout = nn.MaxPool2d(2), nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = self.dropout(self.pool(F.relu(conv(x))))
        return x


class FrozenEncoderClassifier(nn.Module):
    def __init__(self, image_size: int, width: int, weights: str):
        super().__init__()
        from safetensors.torch import load_file

        self.encoder = Encoder(width)
        self.encoder.load_state_dict(load_file(weights))
        self.encoder.requires_grad_(False)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(4 * width * (image_size // 8) ** 2, 8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.encoder.eval()
        with torch.no_grad():
            features = self.encoder(x)
        return self.head(features)


class Classifier(L.LightningModule):
    def __init__(self, network: nn.Module, lr: float):
        super().__init__()
        self.network, self.lr = network, lr
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.f1 = MulticlassF1Score(CLASSES)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images)
        self.accuracy(logits, labels)
        self.f1(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_acc", self.accuracy)
        self.log("val_f1", self.f1)
        self.log("epoch", float(self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr=self.lr)


def train(config: dict, options: argparse.Namespace) -> None:
    if options.variant == "A":
        network = classifier_a(options.image_size, options.width)
    else:
        network = FrozenEncoderClassifier(options.image_size, options.width, options.encoder)
    epochs = options.max_epochs
    if options.epochs_per_trial:
        place = min(range(len(options.lrs)), key=lambda i: abs(options.lrs[i] - config["lr"]))
        epochs = options.epochs_per_trial[place]
    names = ("epoch", "val_loss", "val_acc", "val_f1")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        num_sanity_val_steps=0,
        callbacks=[TuneReportCheckpointCallback(list(names), save_checkpoints=False)],
    )
    trainer.fit(
        Classifier(network, config["lr"]),
        datamodule=Butterflies(options.data, options.image_size, batch_size=64),
    )


def search(options: argparse.Namespace) -> list[dict[str, float]]:
    """The trials' lr, epochs and last F1."""
    points = [{"lr": lr} for lr in options.lrs or ()]
    given = bool(options.epochs_per_trial)  # then nothing else may stop a trial
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, options=options), {"cpu": 1}),
        param_space={"lr": tune.loguniform(1e-4, 1e-2)},
        tune_config=tune.TuneConfig(
            metric="val_f1",
            mode="max",
            search_alg=OptunaSearch(points_to_evaluate=points or None),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=options.max_epochs + given,
                grace_period=options.max_epochs if given else 2,
                reduction_factor=3,
            ),
            num_samples=len(points) or options.trials,
            reuse_actors=options.reuse_actors,
        ),
        run_config=tune.RunConfig(storage_path=options.storage, verbose=0),
    )
    results = tuner.fit()
    for result in results:
        if result.error:
            raise result.error
    return [
        {
            "lr": result.config["lr"],
            "epochs": int(result.metrics["epoch"]),
            "val_f1": result.metrics["val_f1"],
        }
        for result in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with train/ and valid/")
    parser.add_argument("--variant", choices=("A", "B1"), default="A")
    parser.add_argument("--encoder", help="safetensors of the encoder, for B1")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--lrs", type=float, nargs="+", help="of the trials, in place of Optuna's")
    parser.add_argument("--epochs-per-trial", type=int, nargs="+", help="in place of ASHA's")
    parser.add_argument("--reuse-actors", action="store_true", help="which the guides leave off")
    parser.add_argument("--storage", default=None, help="Tune's folder; default ~/ray_results")
    options = parser.parse_args()
    if options.variant == "B1" and not options.encoder:
        parser.error("--variant B1 needs --encoder")
    if options.epochs_per_trial and len(options.epochs_per_trial) != len(options.lrs or ()):
        parser.error("--epochs-per-trial needs as many --lrs")
    options.data = str(Path(options.data).resolve())
    trials = search(options)
    seconds = round(time.monotonic() - STARTED, 2)
    epochs = sum(trial["epochs"] for trial in trials)
    print(json.dumps({"seconds": seconds, "epochs": epochs, "trials": trials}))


if __name__ == "__main__":
    main()
