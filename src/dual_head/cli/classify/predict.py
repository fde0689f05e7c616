"""`dual-head classify predict CLASSIFIER`: classify each row of a file or a stream, in constant memory.

Every row in gives one line of JSON out, in order; a row that cannot be classified gives one with "error". A killed run
goes on where it stopped when the same command is given again, and leaves the same bytes.
"""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dual_head.cli.classify.loading import CLASSIFIER, PredictorOptions, load_predictor
from dual_head.console.gauge import Gauge
from dual_head.data import Dropped
from dual_head.errors import DualHeadError
from dual_head.files.places import atomic_folder, exclusive, file_digest, require_unread
from dual_head.files.reading import ANEW, read_json, reading
from dual_head.options import option
from dual_head.options.flags import OptionParser
from dual_head.options.values import fit

if TYPE_CHECKING:
    from dual_head.classify.data.stream import Query
    from dual_head.classify.predict import Prediction, Predictor

RECORD = ".run.json"  # beside the output: what wrote it
CUT = "cut to what the classifier reads"
DIGITS = 6  # of a probability


@dataclass(kw_only=True)
class PredictOptions(PredictorOptions):
    """Which rows, where they are, and where predictions go."""

    classifier: str = option(help=CLASSIFIER, positional=True)
    input: str = option("-", "JSON lines, parquet, CSV or plain text; - is standard input", heading="rows")
    output: str = option("-", "JSON lines, one for each row; - is standard output")
    kind: str = option("auto", "jsonl, json, parquet, csv, tsv, txt; default: by the name")
    column: str | None = option(None, "the text's column; default: input, input_text, sentence or text")
    template: str | None = option(None, "how a text is written from columns; default: as in training")
    format: str | None = option(None, "format of the rows, if not that of training: esnli, boolq, ...")
    restart: bool = option(False, "write the output anew instead of going on")
    temperature: float | None = option(
        None, "divides the logits; default: that of calibration.json, or 1", heading="classifying", least=1e-6
    )
    threshold: float = option(0.5, "least probability of a label, where a row may have several", least=0, most=1)


build_parser = partial(OptionParser, PredictOptions, command="classify predict", description=__doc__)


def run(arguments: Sequence[str]) -> int:
    """Parse, load, classify what is left, say what became of the rows."""
    (args,) = build_parser().read(arguments)
    # Imported late: a mistyped flag should not wait for torch.
    from dual_head.classify.data.stream import count_rows, read_rows, reader_of

    if args.output != "-":
        if not Path(args.output).name or Path(args.output).is_dir():
            raise DualHeadError(f"--output is a file, and '{args.output}' is a folder. Name a file in it.")
        require_unread(Path(args.output), [None if args.input == "-" else args.input])
    rows = read_rows(args.input, kind=args.kind)
    predictor = load_predictor(args, args.classifier, temperature=args.temperature, threshold=args.threshold)
    text = predictor.model.config.text
    read = reader_of(text, column=args.column, format=args.format, template=args.template)
    total = count_rows(args.input, kind=args.kind) if sys.stderr.isatty() else None
    started, counts = time.perf_counter(), Counter()
    with nullcontext() if args.output == "-" else exclusive(args.output):
        done = _predict(args, rows, predictor, read, counts, total)
    print(_account(counts, done, time.perf_counter() - started), file=sys.stderr)
    return 0


def _predict(
    args: PredictOptions,
    rows: Iterator[Any],
    predictor: "Predictor",
    read: "Callable[[Any], Query]",
    counts: Counter[str],
    total: int | None,
) -> int:
    """Classify what is left, and write each window; the output is opened when the first one is right. Rows before."""
    printed = args.output == "-"
    identity = {} if printed else _identity(args, predictor)
    done, end = (0, None) if printed else _done(args, identity, rows, predictor.window)
    stream: IO[bytes] | None = sys.stdout.buffer if printed else None
    try:
        with Gauge("rows", total, done=done) as gauge:
            for lines in chain(classified(rows, predictor, read, start=done, counts=counts), [b""]):
                stream = stream or _output(args, identity, end)
                stream.write(lines)
                stream.flush()
                gauge.reach(done + counts["rows"])
    finally:
        if stream is not None and not printed:
            stream.close()
    return done


def classified(
    rows: Iterator[Any],
    predictor: "Predictor",
    read: "Callable[[Any], Query]",
    *,
    start: int = 0,
    counts: Counter[str] | None = None,
) -> Iterator[bytes]:
    """Classify rows a window at a time: the lines of each window. start: index of the first; counts: kept up to date.

    Windows are windows of rows, broken ones included, so that a run which starts at any of them makes the same
    batches. Errors: no row of the first window has a text.
    """
    counts = Counter() if counts is None else counts
    while window := list(islice(rows, predictor.window)):
        queries = [_query(row, read) for row in window]
        texts = [query.text for query in queries if not isinstance(query, str)]
        if not texts and not start:
            raise DualHeadError(
                f"None of the first {len(queries)} rows has a text to classify: "
                f"{Counter(queries).most_common(1)[0][0]}. Say where it is with --column, --template or --format."
            )
        predictions = predictor.predict(texts)
        lines = []
        for index, (row, query) in enumerate(zip(window, queries, strict=True), start):
            outcome = query if isinstance(query, str) else next(predictions)
            row_id = row.get("id") if isinstance(query, str) and isinstance(row, dict) else getattr(query, "id", None)
            lines.append(_line(index, row_id, outcome, counts))
        start += len(window)
        yield "".join(lines).encode()


def _query(row: Any, read: "Callable[[Any], Query]") -> "Query | str":
    """The text of a row, or why it has none."""
    try:
        return read(row)
    except Dropped as reason:
        return str(reason)


def _line(index: int, row_id: Any, outcome: "Prediction | str", counts: Counter[str]) -> str:
    """One line of the output: a prediction, or why there is none."""
    line: dict[str, Any] = {"index": index} | ({} if row_id is None else {"id": row_id})
    if isinstance(outcome, str):
        line["error"] = outcome
    elif not all(map(math.isfinite, outcome.probabilities.values())):
        line["error"] = "its logits are not finite; try --dtype float32"
    else:
        line["label"] = outcome.label
        line["probabilities"] = {name: round(share, DIGITS) for name, share in outcome.probabilities.items()}
        if outcome.truncated:
            line["truncated"] = True
    counts.update({"rows": 1, "error": "error" in line, CUT: "truncated" in line})
    return json.dumps(line, default=str) + "\n"  # in ASCII: an id may hold what UTF-8 cannot


def _account(counts: Counter[str], done: int, seconds: float) -> str:
    rows, errors, cut = counts["rows"], counts["error"], counts[CUT]
    account = f"{rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f} rows/s)"
    account += f", after {done:,} of an earlier run" if done else ""
    account += f"; {cut:,} {CUT}" if cut else ""
    return account + (f'; {errors:,} could not be classified and say why in "error"' if errors else "") + "."


# ---- a run that may have been stopped ----------------------------------------------------------------------


def _output(args: PredictOptions, identity: dict[str, Any], end: int | None) -> IO[bytes]:
    """Open the output to go on at byte `end`, or a new one where that is None. Errors: it cannot be written."""
    output = Path(args.output)
    try:
        if end is None:
            output.unlink(missing_ok=True)
        with atomic_folder(output.parent) as staging:
            (staging / (output.name + RECORD)).write_text(json.dumps(identity, indent=2) + "\n")
        stream = output.open("ab")
        stream.truncate(end or 0)
    except OSError as error:
        raise DualHeadError(f"Cannot write to '{output}': {error.strerror}. Choose another --output.") from error
    return stream


def _done(args: PredictOptions, identity: dict[str, Any], rows: Iterator[Any], window: int) -> tuple[int, int | None]:
    """Pass over the rows of whole windows that are classified: how many, and where they end; nothing is written.

    Errors: another run's output, or one of more rows than there are.
    """
    output = Path(args.output)
    record = output.with_name(output.name + RECORD)
    if args.restart or not output.exists():
        return 0, None
    if not record.is_file():
        raise DualHeadError(
            f"'{output}' is there already, and nothing says what wrote it. Choose another --output, or add --restart."
        )
    recorded = read_json(record, ANEW)
    if recorded.get("data") and args.input != "-":
        # Rows may be added to the input: what was there then is what must be the same.
        with reading(f"Cannot read '{record}'", ANEW):
            length = fit(recorded["data"]["bytes"], int, "bytes")
        identity = identity | {"data": file_digest(Path(args.input), length)}
    changed = sorted(key for key in recorded.keys() | identity.keys() if recorded.get(key) != identity.get(key))
    if changed:
        raise DualHeadError(
            f"'{output}' holds predictions of another run (of other {', '.join(changed)}). Choose another --output, or "
            "add --restart to delete them."
        )
    with output.open("rb") as stream:
        done, end = whole_lines(stream, window)
    if (present := sum(1 for _ in islice(rows, done))) < done:
        raise DualHeadError(
            f"'{args.output}' has {done} rows and '{args.input}' only {present}: it is not the file that was "
            "classified. Choose another --output, or add --restart to write it anew."
        )
    return done, end


def whole_lines(stream: IO[bytes], window: int) -> tuple[int, int]:
    """How many lines of whole windows a file begins with, and where they end; a line that was cut does not count."""
    stream.seek(0)
    place = done = end = 0
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            break
        place += len(line)
        if number % window == 0:
            done, end = number, place
    return done, end


def _identity(args: PredictOptions, predictor: "Predictor") -> dict[str, Any]:
    """Collect what makes predictions these predictions: a run that goes on must agree on all of it."""
    from dual_head.backbone.fingerprint import sketch

    names = ("column", "format", "template", "kind", "dtype", "autocast", "threshold", "batch_tokens")
    return {
        "input": args.input if args.input == "-" else str(Path(args.input).resolve()),
        "data": None if args.input == "-" else file_digest(Path(args.input)),
        "backbone": predictor.model.decoder.fingerprint().short,
        "head": json.loads(json.dumps([sketch(x) for x in predictor.model.head.state_dict().values()])),
        "labels": list(predictor.labels),
        "temperature": predictor.temperature,
        "window": predictor.window,
        "max_rows_per_batch": predictor.max_rows_per_batch,
        **{name: getattr(args, name) for name in names},
    }
