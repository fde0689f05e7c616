"""What the commands that train share: the flags of TrainingArguments that most runs want to see, and how they end."""

import argparse
import dataclasses

# Of TrainingArguments' more than hundred flags; --help_all shows the rest.
COMMON = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "seed",
    "bf16",
    "activation_checkpointing",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "resume_from_checkpoint",
    "push_to_hub",
)


def hide_rare(parser: argparse.ArgumentParser, arguments: type, *, help_all: bool) -> None:
    """Add --help_all, without which --help leaves out those of TrainingArguments' flags that most runs never see."""
    names = {f.name for f in dataclasses.fields(arguments)}
    for action in parser._actions:
        if action.dest in names:
            if action.dest not in COMMON and not help_all:
                action.help = argparse.SUPPRESS
            elif action.help:
                action.help = " ".join(action.help.split()).split(". ")[0][:160]
    parser.add_argument("--help_all", action="store_true", help="show every TrainingArguments flag too")


def end_processes() -> None:
    """Let the processes of a run leave together: those that leave one by one abort the others."""
    from accelerate import PartialState

    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
